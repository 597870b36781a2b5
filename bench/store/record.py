"""One folder per cell, written atomically: what was run, on what, at what cost, and what came out.

A finished cell is `<root>/<run id>/`: record.json, config.yaml, adapters/<name>.safetensors, log.csv, per_image.csv,
grid.png and images/strength=<g>/<prompt index>-s<seed>.png. An unfinished one is `<root>/.work/<run id>/`, with files
called checkpoint*; it survives SIGKILL and becomes the finished folder by one rename, after record.json was written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from bench import reading
from bench.environment import using
from bench.errors import BenchError
from bench.files import atomic_write, replace_folder, set_aside
from bench.store import leases
from bench.store.old_names import renewed

FORMAT = 1
STATUSES = ("done", "failed", "skipped")
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+,-]{0,199}")
log = logging.getLogger(__name__)


@dataclass
class Record:
    """What is kept of one cell. Everything in it is plain: it can be written as JSON."""

    run_id: str
    status: str  # done | failed | skipped
    reason: str | None = None
    config: dict[str, Any] = field(default_factory=dict)  # method, dataset, backbone, trainer, sampler, seed, ...
    cost: dict[str, Any] = field(default_factory=dict)  # load_s, train_s, images_per_s, peak_gb, adapter_bytes, ...
    provenance: dict[str, Any] = field(default_factory=dict)
    scores: list[dict[str, Any]] = field(
        default_factory=list
    )  # strength, metric, value, higher_is_better, network, ...
    notes: list[str] = field(default_factory=list)  # deviations from the paper, metrics left out with their reason

    def __post_init__(self) -> None:
        check_run_id(self.run_id)
        if self.status not in STATUSES:
            raise BenchError(f"A record's status is one of {', '.join(STATUSES)}, not {self.status!r}.")


def check_run_id(run_id: str) -> None:
    """Raise BenchError unless the id is a plain folder name."""
    if not isinstance(run_id, str) or not RUN_ID.fullmatch(run_id) or ".." in run_id:
        raise BenchError(
            f"A run id is at most 200 letters, digits and . _ = + , - without '..', starting with a letter or digit; "
            f"{run_id!r} is not."
        )


def dumps(record: Record) -> str:
    """JSON of a record, with a checksum of its content; numbers that are not finite become null."""
    content = {"format": FORMAT} | _plain(asdict(record))
    return json.dumps(content | {"checksum": checksum(content)}, indent=1, allow_nan=False) + "\n"


def loads(text: str) -> Record:
    """A record from its JSON. Raises BenchError when it is cut short, damaged, or was written in another format."""
    found = reading.parsed(text)
    names = {f.name for f in fields(Record)}
    _check_sum(found)
    if found.pop("format", None) != FORMAT or set(found) != names:
        raise BenchError(f"not a record of format {FORMAT}")
    _check_shape(found)
    for score in found["scores"]:
        score["value"] = math.nan if score.get("value") is None else score["value"]
    return Record(**renewed(found))


def checksum(content: Mapping[str, Any]) -> str:
    """sha256 of a record's content as JSON, whatever the order of its keys. It finds damage, not forgery."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_sum(found: dict[str, Any]) -> None:
    """Take the checksum out of what was read and raise Damaged when it is another. Older records have none."""
    expected = found.pop("checksum", None)
    if expected is not None and expected != checksum(found):
        raise reading.Damaged("it changed after it was written; its checksum is another (remove that line to read it)")


UNITS = ("_s", "_gb", "_bytes", "_parameters")  # ends of the names of costs that are numbers
NUMBER = (int, float, type(None))
WORD = (str, type(None))
SHAPE: dict[str, Any] = {
    **{"status": str, "reason": WORD, "config": dict, "cost": dict, "provenance": dict, "scores": list, "notes": list}
}
SCORE: dict[str, Any] = {"metric": WORD, "value": NUMBER}
SCORE_EXTRA: dict[str, Any] = {"strength": NUMBER, "network": WORD, "fingerprint": (dict, type(None))}


Kinds = type | tuple[type, ...]


def _check_shape(found: Mapping[str, Any]) -> None:
    """Raise Damaged where a part of a record is of another type than whoever reads it expects."""
    reading.check(found, SHAPE)
    units: dict[str, Kinds] = dict.fromkeys((name for name in found["cost"] if name.endswith(UNITS)), NUMBER)
    reading.check(found["cost"], units, "cost.")
    for note in found["notes"]:
        reading.check({"note": note}, {"note": str})
    for score in found["scores"]:
        reading.check({"entry": score}, {"entry": dict}, "scores.")
        reading.check({"metric": None, "value": None} | score, SCORE, "scores.")
        reading.check(score, {key: kind for key, kind in SCORE_EXTRA.items() if key in score}, "scores.")
    _check_config(found["config"])


def _check_config(config: Mapping[str, Any]) -> None:
    kinds: dict[str, Kinds] = {"seed": (int, type(None)), "scored": list, "asked": dict, "requested": dict}
    reading.check(config, {key: kind for key, kind in kinds.items() if key in config}, "config.")
    for part in ("method", "dataset", "backbone"):
        if isinstance(config.get(part), Mapping):
            reading.check({"name": None} | config[part], {"name": WORD}, f"config.{part}.")
    for key in ("requested", "asked"):  # the latter in older records
        parts = config.get(key, {})
        reading.check(parts, dict.fromkeys(parts, dict), f"config.{key}.")
        reading.check({"strength": 1.0} | parts.get("method", {}), {"strength": (int, float)}, f"config.{key}.method.")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if hasattr(value, "tolist"):  # numpy and torch
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, (Path, datetime)) else value


class Store:
    """All cells below one folder."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._leases: dict[str, leases.Lease] = {}

    def folder(self, run_id: str) -> Path:
        """Where the finished cell lies, or will."""
        check_run_id(run_id)
        return self.root / run_id

    def read(self, run_id: str) -> Record | None:
        """The record of a finished cell, or None. A publication that was killed halfway is completed first."""
        path = self.folder(run_id) / "record.json"
        if not path.exists() or set_aside(self._unfinished(run_id)).exists():
            self._complete(run_id)
        return read_record(path)

    def records(self) -> Iterator[Record]:
        """All finished cells of any status, by run id; one that cannot be read costs a warning line."""
        for path in sorted(self.root.glob("[!.]*/record.json")):
            if (record := read_record(path)) is not None:
                yield record

    def work(self, run_id: str) -> Path:
        """Folder of an unfinished cell, held by this process until `publish` or `release`.

        Raises BenchError when another process, here or on another machine, holds it.
        """
        folder = self._unfinished(run_id)
        if run_id not in self._leases:
            self._leases[run_id] = leases.take(self.lease_file(run_id), f"Cell {run_id}")
            (folder / "record.json").unlink(missing_ok=True)
        folder.mkdir(exist_ok=True)
        return folder

    def reserve(self, run_id: str, lease_s: float = leases.LEASE_S) -> leases.Lease:
        """Hold a cell for a later `work` of this process, by whatever store. Raises BenchError as `work` does."""
        return leases.reserve(self.lease_file(run_id), f"Cell {run_id}", lease_s)

    def release(self, run_id: str) -> None:
        """Let others work on this cell; what was made so far stays."""
        if (lease := self._leases.pop(run_id, None)) is not None:
            lease.release()

    def lease_file(self, run_id: str) -> Path:
        """What says who works on a cell; its folder is there afterwards."""
        path = self._unfinished(run_id).with_name(f".{run_id}.lease")
        with using(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def publish(self, record: Record) -> Path:
        """Turn the work folder into the finished cell, in place of an earlier one, and drop its checkpoints."""
        import yaml

        folder = self.work(record.run_id)
        self.check_mine(record.run_id)
        atomic_write(folder / "config.yaml", yaml.safe_dump(_plain(record.config), sort_keys=False).encode())
        atomic_write(folder / "record.json", dumps(record).encode())
        self.check_mine(record.run_id)
        finished = self._move(record.run_id)
        self.release(record.run_id)
        return finished

    def check_mine(self, run_id: str) -> None:
        """Raises Taken when another process took the cell over while this one was paused."""
        if self.lost(run_id, look=True):
            raise leases.Taken(f"Cell {run_id} was taken over while this process was paused; nothing is lost.")

    def update(self, record: Record) -> None:
        """Rewrite record.json of a finished cell, for example with a new metric."""
        folder = self.folder(record.run_id)
        if not (folder / "record.json").exists():
            raise BenchError(f"{folder} holds no finished cell to update; publish it first.")
        atomic_write(folder / "record.json", dumps(record).encode())

    def _unfinished(self, run_id: str) -> Path:
        check_run_id(run_id)
        return self.root / ".work" / run_id

    def _complete(self, run_id: str) -> None:
        """Finish a publication that was killed between record.json and the end of its cleaning up."""
        work = self._unfinished(run_id)
        if run_id in self._leases or not (set_aside(work).exists() or read_record(work / "record.json") is not None):
            return
        with contextlib.suppress(OSError, BenchError):  # no right to write, or another process is at it
            self._leases[run_id] = leases.take(self.lease_file(run_id), f"Cell {run_id}")
            try:
                if read_record(work / "record.json") is not None:
                    self._move(run_id)
                elif self.folder(run_id).exists():
                    shutil.rmtree(set_aside(work))
                leases.forget_deaths(self.lease_file(run_id))
            finally:
                self.release(run_id)

    def _move(self, run_id: str) -> Path:
        """What nobody needs goes before the folder appears in its place, so that a kill leaves nothing behind."""
        source, target = self._unfinished(run_id), self.folder(run_id)
        for path in [*source.glob("checkpoint*"), *source.glob("**/.*")]:  # the latter from killed writes
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        replace_folder(source, target)
        leases.forget_deaths(self.lease_file(run_id))
        return target

    def lost(self, run_id: str, look: bool = False) -> bool:
        """Whether another process took over a cell while this one was paused; `look` reads the lease again."""
        lease = self._leases.get(run_id)
        return lease is not None and (lease.lost or (look and not lease.mine()))


def read_record(path: Path) -> Record | None:
    """The record in a file, or None; one that cannot be read costs a warning line."""
    try:
        return loads(reading.text(path))
    except FileNotFoundError:
        return None
    except (OSError, BenchError) as error:
        reading.warn_left_out(log, path, error)
        return None
