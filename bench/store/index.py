"""A columnar copy of what the record folders hold, beside them: ten thousand records load in a second.

`<root>/.index/<name>.parquet` is Parquet with its sha256 behind it. It holds the rows that were read from one file of
every record folder, and in its metadata a stamp of each such file (time, size, inode). Rows of folders whose stamp
changed are read anew, those of folders that are gone are dropped, and the file is replaced by one rename. So it needs
no lock: of several writers the last one wins, what it did not know is read by whoever comes next, and a reader has a
whole file at any time. It may be deleted; a damaged one is written anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.files import atomic_write
from bench.reading import Damaged

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow

FOLDER = "folder"  # the column that says from which record folder a row is
BATCH = 500  # folders parsed at once
HASH = 32  # bytes of the sha256 at the end
PART = 1 << 20  # bytes hashed at once
KEY = b"bench.store.index"

Parse = Callable[[Sequence[Path]], "pyarrow.Table"]  # record folders -> their rows, with the column `folder`
Read = Callable[[Any], "pyarrow.Table"]  # names of columns, None for all -> these columns
Keep = Callable[[Callable[[str], "pd.Series"]], "pd.Series"]  # a reader of columns -> which rows are wanted
Choose = Callable[[Sequence[str]], Sequence[str]]  # names of columns -> those that are wanted


def load(
    root: Path | str,
    name: str,
    file: str,
    version: str,
    parse: Parse,
    choose: Choose | None = None,
    keep: Keep | None = None,
) -> pd.DataFrame:
    """The rows of all record folders below root, by folder. `version` is that of the parser: another one reads anew.

    `choose` and `keep` say which columns and rows are wanted. Texts are categories, in their order.
    """
    import pyarrow

    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # the default one keeps what was freed: 40 MB more
    root = Path(root)
    path, found = root / ".index" / f"{name}.parquet", stamps(root, file)
    table, rows = None, _kept(path, version, found, choose, keep)
    if rows is None:
        table = _renewed(root, path, version, found, parse)
        whole = table.num_rows > 0 and len(table[FOLDER].unique()) == len(found)
        if whole and path.is_file():
            table = None  # to read back what is wanted takes less memory than to choose it
            rows = _kept(path, version, found, choose, keep)
    if rows is None:
        table = _renewed(root, path, version, found, parse) if table is None else table
        rows = _frame(table.column_names, table.select, choose, keep)
    assert rows is not None
    return rows


def _kept(
    path: Path, version: str, found: dict[str, str], choose: Choose | None, keep: Keep | None
) -> pd.DataFrame | None:
    """What is wanted from the file, where it is of these folders as they are now."""
    with _stored(path, version) as (kept, known):
        if kept is None or known != found:
            return None
        return _frame(kept.schema_arrow.names, partial(kept.read, use_threads=False), choose, keep)


def _renewed(root: Path, path: Path, version: str, found: dict[str, str], parse: Parse) -> pyarrow.Table:
    """All rows, those of new and changed folders read now, and the file written again where they changed."""
    import pyarrow

    with _stored(path, version) as (kept, known):
        rows = None if kept is None else _read(kept)
    known = {} if rows is None else known
    fresh = [folder for folder, stamp in found.items() if known.get(folder) != stamp]
    parts = [] if rows is None else [_of(rows, known.keys() & found.keys() - set(fresh))]
    parts += [parse([root / folder for folder in fresh[i : i + BATCH]]) for i in range(0, len(fresh), BATCH)]
    parts = [part for part in parts if part.num_rows] or parts[:1] or [parse([])]
    table = _sorted(pyarrow.concat_tables(parts, promote_options="permissive").unify_dictionaries())
    whole = {folder: found[folder] for folder in table[FOLDER].unique().to_pylist()}  # a damaged one is tried each time
    if whole != known:
        _write(path, table, whole, version)
    return table


def _of(rows: pyarrow.Table, folders: set[str]) -> pyarrow.Table:
    import pyarrow
    from pyarrow import compute

    texts = rows[FOLDER].cast(pyarrow.string())
    return rows.filter(compute.is_in(texts, value_set=pyarrow.array(sorted(folders), pyarrow.string())))


def _sorted(rows: pyarrow.Table) -> pyarrow.Table:
    """By folder, the rows of one in their order."""
    import numpy as np
    import pyarrow

    texts = rows[FOLDER].combine_chunks().dictionary.to_numpy(zero_copy_only=False) if rows.num_rows else []
    ranks = np.argsort(np.argsort(np.array(texts, dtype=object)))
    order = ranks[rows[FOLDER].combine_chunks().indices.to_numpy()] if rows.num_rows else ranks
    return rows if (order[1:] >= order[:-1]).all() else rows.take(pyarrow.array(np.argsort(order, kind="stable")))


def _frame(names: Sequence[str], read: Read, choose: Choose | None, keep: Keep | None) -> pd.DataFrame | None:
    """The chosen columns and rows in pandas; None where one cannot be read.

    They are read one after the other, which takes little memory. Categories are those that occur, sorted as texts are.
    """
    import pandas as pd
    import pyarrow

    def column(name: str) -> pd.Series:
        return read([name]).to_pandas(use_threads=False)[name]

    chosen = names if choose is None else [name for name in names if name in choose(names)]
    try:
        mask = None if keep is None else keep(column)
        found = (
            {name: column(name) for name in chosen} if mask is None else {name: column(name)[mask] for name in chosen}
        )
    except (OSError, ValueError, pyarrow.ArrowException):
        return None
    made = {name: _sorted_categories(values) for name, values in found.items()}
    return pd.DataFrame(made, copy=False).reset_index(drop=True)


def _sorted_categories(values: pd.Series) -> pd.Series:
    import pandas as pd

    if not isinstance(values.dtype, pd.CategoricalDtype):
        return values
    used = values.cat.remove_unused_categories()
    return used.cat.set_categories(sorted(used.cat.categories))


def stamps(root: Path, file: str) -> dict[str, str]:
    """Record folder -> what changes when its file is written again, in the order of the names."""
    found = {}
    with contextlib.suppress(FileNotFoundError), os.scandir(root) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                with contextlib.suppress(OSError):  # no such file in it, or it is no folder
                    about = os.stat(f"{entry.path}/{file}")
                    found[entry.name] = f"{about.st_mtime_ns}:{about.st_size}:{about.st_ino}"
    return dict(sorted(found.items()))


class _Body(io.FileIO):
    """A file that ends before its hash, for who seeks from its end."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return super().seek(offset - HASH, whence) if whence == os.SEEK_END else super().seek(offset, whence)


@contextlib.contextmanager
def _stored(path: Path, version: str) -> Iterator[tuple[Any, dict[str, str]]]:
    """The file as it is now, whoever replaces it meanwhile, and the stamps that its rows were read under.

    None and no stamps when there is no file, or one that is damaged or of another version.
    """
    import pyarrow
    from pyarrow import parquet

    with contextlib.ExitStack() as stack:
        try:
            if not path.is_file():  # to open a pipe would wait
                raise Damaged("it is no file")
            body = stack.enter_context(_Body(path))
            _check(body)
            file = parquet.ParquetFile(pyarrow.PythonFile(body, "r"))
            about = json.loads(file.schema_arrow.metadata[KEY])
            made = (file, about["stamps"]) if about["version"] == version else (None, {})
        except (OSError, ValueError, KeyError, TypeError, BenchError, pyarrow.ArrowException):
            made = None, {}
        yield made


def _read(file: Any) -> pyarrow.Table | None:
    """All rows; nothing where the file cannot be read after all."""
    import pyarrow

    try:
        return file.read()
    except (OSError, ValueError, pyarrow.ArrowException):
        return None


def _check(body: _Body) -> None:
    """Raise Damaged unless the hash at the end of the file is that of what stands before."""
    about = os.fstat(body.fileno())
    if not stat.S_ISREG(about.st_mode) or about.st_size <= HASH:
        raise Damaged("it is no index")
    made, left = hashlib.sha256(), about.st_size - HASH
    while left:
        part = body.read(min(PART, left))
        if not part:
            raise Damaged("it was cut short")
        made.update(part)
        left -= len(part)
    if body.read(HASH + 1) != made.digest():
        raise Damaged("it is not as it was written")


def _write(path: Path, table: pyarrow.Table, found: dict[str, str], version: str) -> None:
    """Keep the rows for the next one who asks; a folder that cannot be written costs time only."""
    from pyarrow import parquet

    about = json.dumps({"version": version, "stamps": found}).encode()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), KEY: about})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    buffer.write(hashlib.sha256(buffer.getbuffer()).digest())
    with contextlib.suppress(OSError, BenchError):
        path.parent.mkdir(exist_ok=True)
        atomic_write(path, buffer.getbuffer())
