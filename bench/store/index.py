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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.files import atomic_write
from bench.reading import content

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "folder"  # the column that says from which record folder a row is
BATCH = 500  # folders parsed at once
HASH = 32  # bytes of the sha256 at the end
KEY = b"bench.store.index"

Parse = Callable[[Sequence[Path]], "pd.DataFrame"]  # record folders -> their rows, with the column `folder`


def load(root: Path | str, name: str, file: str, version: str, parse: Parse) -> pd.DataFrame:
    """The rows of all record folders below root, by folder. `version` is that of the parser: another one reads anew."""
    import pandas as pd

    root = Path(root)
    path = root / ".index" / f"{name}.parquet"
    found = stamps(root, file)
    rows, known = _read(path, version)
    rows = parse([]) if rows is None else rows
    fresh = [folder for folder, stamp in found.items() if known.get(folder) != stamp]
    gone = known.keys() - found
    if not fresh and not gone:
        return rows
    kept = rows[rows[FOLDER].isin(known.keys() - gone - set(fresh))]
    batches = [fresh[i : i + BATCH] for i in range(0, len(fresh), BATCH)]
    parts = [kept, *(parse([root / folder for folder in batch]) for batch in batches)]
    rows = pd.concat([part for part in parts if len(part)] or [kept], ignore_index=True)
    rows = rows.sort_values(FOLDER, kind="stable", ignore_index=True)
    whole = {folder: found[folder] for folder in rows[FOLDER].unique()}  # one that cannot be read is tried each time
    if whole != known:
        _write(path, rows, whole, version)
    return rows


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


def _read(path: Path, version: str) -> tuple[pd.DataFrame | None, dict[str, str]]:
    """The rows and the stamps that they were read under; nothing when there is no file, or one of another version."""
    import pyarrow
    from pyarrow import parquet

    try:
        data = content(path)
        if hashlib.sha256(data[:-HASH]).digest() != data[-HASH:]:
            return None, {}
        table = parquet.read_table(pyarrow.BufferReader(data[:-HASH]))
        about = json.loads(table.schema.metadata[KEY])
    except (OSError, ValueError, KeyError, TypeError, BenchError, pyarrow.ArrowException):
        return None, {}
    if about["version"] != version:
        return None, {}
    return table.to_pandas(), about["stamps"]


def _write(path: Path, rows: pd.DataFrame, found: dict[str, str], version: str) -> None:
    """Keep the rows for the next one who asks; a folder that cannot be written costs time only."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.Table.from_pandas(rows, preserve_index=False)
    about = json.dumps({"version": version, "stamps": found}).encode()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), KEY: about})
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    with contextlib.suppress(OSError, BenchError):
        path.parent.mkdir(exist_ok=True)
        atomic_write(path, buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())
