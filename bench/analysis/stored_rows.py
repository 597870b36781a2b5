"""Rows of the index: what record.json and per_image.csv of many record folders hold, as Arrow tables.

Texts are dictionaries (categories in pandas): ten thousand records repeat few of them.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import reading
from bench.analysis import variants
from bench.cell import default_strength_of
from bench.contracts import CONVENTION
from bench.errors import BenchError
from bench.fairness import PREFIX
from bench.settings import digest
from bench.store.record import Record, read_record

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow

log = logging.getLogger(__name__)
CELL = ["method", "dataset", "backbone", "settings", "seed"]
STATE = ["status", "reason", "deviations", "run_id"]
SCORE = ["strength", "metric", "network", "value", "higher_is_better"]
COST = (
    "load_s baseline_s prior_s train_s sample_s score_s images_per_s steps_per_s peak_gb adapter_bytes "
    "trainable_parameters"
).split()
TRAINED = "trained"  # whether the cell trained anything
OWN = ["seed", TRAINED, *COST]  # of a record, what is no text
READ = [*CELL, *variants.KEPT, *SCORE, "default_strength", *STATE, TRAINED, *COST, "fingerprint"]
FIRST = "first"  # of the index alone: the first line of a record and strength, which stands for its costs
NO_TEXT = {*OWN, "strength", "value", "higher_is_better", "default_strength"}
VERSION = f"8 {' '.join(READ)}"  # of the rows in the index; raise the number when they are read otherwise
FOOTNOTES = (PREFIX, CONVENTION)
SETTINGS = ("method", "backbone", "trainer", "sampler")  # parts of a cell's config on which `settings` depends


# --- scores ------------------------------------------------------------------------------------------------------


def scores(folders: Sequence[Path]) -> pyarrow.Table:
    """The rows of `frame` of the records in these folders, with the column `folder`."""
    import pyarrow

    found = [(folder.name, read_record(folder / "record.json")) for folder in folders]
    kept = [(name, record) for name, record in found if record is not None]
    made = frame([record for _, record in kept], [name for name, _ in kept])
    texts = {column for column in made if column not in NO_TEXT}
    plain = pyarrow.Table.from_pandas(made[[column for column in made if column not in texts]], preserve_index=False)
    columns = {column: _dictionary(made[column]) if column in texts else plain[column] for column in made}
    return pyarrow.table(columns | {FIRST: pyarrow.array(~made.duplicated(["run_id", "strength"]))})


def _dictionary(texts: pd.Series) -> pyarrow.DictionaryArray:
    """Categories as Arrow keeps them, also where all are missing."""
    import pyarrow

    codes = texts.cat.codes.to_numpy("int32")
    words = pyarrow.array([str(word) for word in texts.cat.categories], pyarrow.string())
    return pyarrow.DictionaryArray.from_arrays(pyarrow.array(codes, mask=codes < 0), words)


def frame(records: Sequence[Record], folders: Sequence[str] | None = None) -> pd.DataFrame:
    """One line per record, strength and metric, with the columns READ; a record without scores has one line."""
    import numpy as np
    import pandas as pd

    entries = [_entries(record) for record in records]
    heads = pd.DataFrame([_head(record) for record in records], columns=[c for c in READ if c not in ENTRY])
    if folders is not None:
        heads = heads.assign(folder=list(folders))
    heads = _typed(heads)
    places = np.repeat(np.arange(len(records)), [len(part) for part in entries])
    lines = pd.DataFrame([entry for part in entries for entry in part], columns=ENTRY)
    lines = _typed(lines.astype({"strength": float, "value": float}))
    whole = heads.take(places).reset_index(drop=True)
    return pd.concat([whole, lines], axis=1)[[*READ, *(["folder"] if folders is not None else [])]]


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    texts = [column for column in table if column not in NO_TEXT]
    made = {column: pd.Categorical(table[column].astype(object)) for column in texts}
    return table.assign(**made).astype({column: float for column in COST if column in table})


ENTRY = [*SCORE, "default_strength", "fingerprint"]  # columns of a line that are the score's own


def _entries(record: Record) -> list[tuple[Any, ...]]:
    default = default_strength_of(record.config)
    made = [
        (*[score.get(key) for key in SCORE], score.get("strength") == default, _text(score.get("fingerprint") or {}))
        for score in record.scores
        if score.get("metric") is not None
    ]
    return made or [(None,) * len(ENTRY)]


def _text(fingerprint: Mapping[str, Any]) -> str:
    """A fingerprint as text, equal for numbers that are alike."""
    return _sorted(json.dumps(fingerprint)) if len(fingerprint) > 1 else json.dumps(fingerprint)


@functools.lru_cache(maxsize=4096)
def _sorted(text: str) -> str:
    return json.dumps(json.loads(text), sort_keys=True)


def _head(record: Record) -> dict[str, Any]:
    cell = {key: variants.name_of(record.config.get(key)) for key in CELL if key != "settings"}
    cell |= variants.of_config(record.config)
    head = {**cell, "settings": settings_hash(record.config), "status": record.status, "reason": record.reason}
    head |= {"deviations": "; ".join(_deviations(record)), "run_id": record.run_id}
    return head | {TRAINED: _trained(record)} | {key: record.cost.get(key) for key in COST}


def _trained(record: Record) -> bool:
    """Where a record does not say, it did."""
    cost = record.cost
    return not ("score_s" in cost and "train_s" not in cost and not cost.get("trainable_parameters"))


def _deviations(record: Record) -> list[str]:
    """The notes that are footnotes: departures from the fairness rules, and the conventions of a flow model."""
    return [note.removeprefix(mark) for note in record.notes for mark in FOOTNOTES if note.startswith(mark)]


def settings_hash(config: Mapping[str, Any]) -> str:
    """A short hash of everything but the dataset and the seed: cells that differ in it are not averaged."""
    what = {key: config.get(key) for key in SETTINGS}
    return digest(what, 6)


# --- images ------------------------------------------------------------------------------------------------------


def per_image(folders: Sequence[Path]) -> pyarrow.Table:
    """The lines of per_image.csv in these folders, with the column `folder`."""
    import pyarrow

    read = [(folder.name, folder / "per_image.csv") for folder in folders]
    known = [(name, path, data) for name, path in read if (data := _content(path))]
    alike: dict[bytes, list[tuple[str, Path, bytes]]] = {}
    for one in known:
        alike.setdefault(one[2].partition(b"\n")[0], []).append(one)
    parts = [part for files in alike.values() for part in _together(files)]
    empty = pyarrow.table({"folder": pyarrow.array([], pyarrow.string())})
    made = pyarrow.concat_tables([empty, *parts], promote_options="permissive")
    for name in ("folder", *(["prompt"] if "prompt" in made.column_names else [])):
        place = made.column_names.index(name)
        made = made.set_column(place, name, made[name].cast(pyarrow.string()).dictionary_encode())
    return made


def _content(path: Path) -> bytes | None:
    try:
        return reading.content(path)
    except FileNotFoundError:
        return None
    except (OSError, BenchError) as error:
        reading.warn_left_out(log, path, error)
        return None


def _together(files: Sequence[tuple[str, Path, bytes]]) -> Iterable[pyarrow.Table]:
    """Files of one heading as one table, parsed at once where each line is surely a row; else one by one."""
    import pyarrow

    bodies = [data.partition(b"\n")[2] for _, _, data in files]
    counts = [body.count(b"\n") for body in bodies]
    plain = all(
        body.endswith(b"\n") and b'"' not in body and b"\r" not in body and b"\n\n" not in body for body in bodies
    )
    if len(files) > 1 and plain and min(counts):
        try:
            part = _parsed(files[0][2].partition(b"\n")[0] + b"\n" + b"".join(bodies))
            if part.num_rows == sum(counts):
                return [_named(part, [name for name, _, _ in files], counts)]
        except (ValueError, BenchError, pyarrow.ArrowException):
            pass  # one of them is damaged: each alone says which
    made = [(name, _alone(path, data)) for name, path, data in files]
    return [_named(part, [name], [part.num_rows]) for name, part in made if part is not None]


def _named(part: pyarrow.Table, names: Sequence[str], counts: Sequence[int]) -> pyarrow.Table:
    import numpy as np
    import pyarrow

    places = np.repeat(np.arange(len(names), dtype=np.int32), counts)
    folder = pyarrow.DictionaryArray.from_arrays(pyarrow.array(places), pyarrow.array(names, pyarrow.string()))
    return part.append_column("folder", folder.cast(pyarrow.string()))


def _alone(path: Path, data: bytes) -> pyarrow.Table | None:
    """A per_image.csv as a table; a damaged one costs a warning line."""
    import pyarrow

    try:
        return _parsed(data)
    except (ValueError, BenchError, pyarrow.ArrowException) as error:
        reading.warn_left_out(log, path, error)
        return None


def _parsed(data: bytes) -> pyarrow.Table:
    """The lines of a per_image.csv. Raises Damaged and ArrowException."""
    import pyarrow
    from pyarrow import csv, types

    words = csv.ConvertOptions(column_types={"prompt": pyarrow.string()})
    lines = csv.ParseOptions(newlines_in_values=True)
    part = csv.read_csv(pyarrow.BufferReader(data), None, lines, words)
    numbers = (types.is_floating, types.is_integer, types.is_null)
    odd = [f.name for f in part.schema if f.name != "prompt" and not any(kind(f.type) for kind in numbers)]
    absent = [name for name in reading.INDEX if name not in part.column_names]
    if odd or absent or len(set(part.column_names)) < part.num_columns or "folder" in part.column_names:
        raise reading.Damaged(f"its column {(odd or absent or ['names'])[0]} is not as it should be")
    return part
