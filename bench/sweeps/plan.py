"""What a sweep would do and cost, before it is started: python -m bench -m ... plan=true (or plan=probe)

Times rest on earlier records of the same method on the same backbone. Each such record foretells a cell, from its
seconds per step, per image and per scored image, without loading and the shared baselines. The mean of what the records
foretell is the estimate. Their spread gives an interval: Student's t, 80 %, of the sum over the cells, from what a
single cell may be off and what the mean may be off. Where there is no record nothing is invented; `plan=probe`
measures short cells for it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bench.cell import Cell
from bench.contracts import BenchError
from bench.data import evaluation
from bench.progress import clock
from bench.settings import digest
from bench.steps.missing import staging_command, without_remedy
from bench.store.record import Record, Store
from bench.sweeps.obstacles import Obstacles
from bench.sweeps.settings import Settings
from bench.sweeps.sweep import Statuses, Sweep

PROBES = ".probe"
LEVEL = 0.8  # of the interval
SHORT = {"steps": 12, "prompts": 2, "strengths": 1}  # a probe's cell
NEWEST = 20  # records of a kind that an estimate rests on


@dataclass
class Forecast:
    """Seconds of all cells that are to be run, with an interval where several records give one."""

    each: dict[str, float] = field(default_factory=dict)  # run id -> seconds
    total_s: float = 0.0
    off_s: float | None = 0.0  # half the width of the interval; None when a single record gives no spread
    bytes: float = 0.0
    records: int = 0
    devices: set[str] = field(default_factory=set)
    unknown: list[Cell] = field(default_factory=list)  # no record speaks of them

    @property
    def longest_s(self) -> float:
        return max(self.each.values(), default=0.0)


def forecast(cells: Sequence[Cell], results: Path) -> Forecast:
    """From all records below `results`, and from its probes."""
    kinds: dict[str, list[Cell]] = {}
    for cell in cells:
        kinds.setdefault(kind(cell.method, cell.backbone, cell.trainer), []).append(cell)
    known = _known(results, set(kinds))
    made = Forecast()
    for key, group in kinds.items():
        try:
            told = _told(group, known[key]) if known.get(key) else {}
        except BenchError:  # its prompts are not here yet
            told = {}
        if told:
            _add(made, told, known[key])
        else:
            made.unknown += group
    return made


def _told(cells: Sequence[Cell], records: Sequence[tuple[Record, Path]]) -> dict[str, list[float]]:
    """Run id -> the seconds that each record foretells."""
    return {cell.run_id: [foretold(cell, record) for record, _ in records] for cell in cells}


def kind(method: Mapping[str, Any], backbone: Mapping[str, Any], trainer: Mapping[str, Any]) -> str:
    """Equal for cells of the same speed per step and per image, as far as settings tell."""
    recipe = method.get("recipe") or {}
    speed = {key: method.get(key) for key in ("_target_", "tune", "text_encoder", "rank", "where")}
    speed |= {"batch_size": recipe.get("batch_size")}
    speed |= {key: trainer.get(key) for key in ("accumulate", "resolution", "dora", "text_encoder_lr", "optimizer")}
    return digest([speed, {key: backbone.get(key) for key in ("_target_", "name", "resolution", "dtype")}])


def _known(results: Path, wanted: set[str]) -> dict[str, list[tuple[Record, Path]]]:
    """The newest records of each kind, done and with their times, all of one device."""
    found: dict[str, list[tuple[Record, Path]]] = {}
    for store in (Store(results), Store(results / PROBES)):
        for record in store.records():
            requested = record.config.get("requested")
            if (
                record.status == "done"
                and requested
                and (key := kind(requested["method"], requested["backbone"], requested.get("trainer", {}))) in wanted
            ):
                found.setdefault(key, []).append((record, store.folder(record.run_id)))
    return {key: _newest_of_a_device(records) for key, records in found.items()}


def _newest_of_a_device(records: list[tuple[Record, Path]]) -> list[tuple[Record, Path]]:
    records.sort(key=lambda pair: pair[0].provenance.get("ended") or "", reverse=True)
    return [pair for pair in records if device(pair[0]) == device(records[0][0])][:NEWEST]


def device(record: Record) -> str:
    return str(record.provenance.get("gpu") or record.provenance.get("cpu") or "an unknown device")


def _add(made: Forecast, told: Mapping[str, list[float]], records: Sequence[tuple[Record, Path]]) -> None:
    """A group of cells of one kind."""
    means = {run_id: mean(values) for run_id, values in told.items()}
    made.each |= means
    made.total_s += sum(means.values())
    made.records += len(records)
    made.devices |= {device(record) for record, _ in records}
    made.bytes += len(told) * mean(_size(folder) for _, folder in records[:3])
    if len(records) < 2:
        made.off_s = None
    elif made.off_s is not None:
        spread = mean(stdev(values) for values in told.values())
        made.off_s = math.hypot(made.off_s, off(spread, len(records), len(told)))


def off(spread: float, n: int, cells: int) -> float:
    """Half the width of the interval of a sum: t sqrt(N^2 s^2 / n + N s^2), N cells foretold by n records."""
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, (1 + LEVEL) / 2)) * spread * math.sqrt(cells**2 / n + cells)


def foretold(cell: Cell, record: Record) -> float:
    """Seconds of a cell, at the speed that a record of its kind had."""
    cost, requested = record.cost, record.config["requested"]
    steps = (cell.method.get("recipe") or {}).get("steps", 0)
    scored = {text.rpartition(" ")[2] for text in record.config["scored"]}  # strengths
    made = evaluation.image_count(requested["dataset"]) * len(scored)
    wanted = evaluation.image_count(cell.dataset) * len(cell.strengths)
    total = steps / cost["steps_per_s"] if cost.get("steps_per_s") else 0.0
    total += wanted / cost["images_per_s"] if cost.get("images_per_s") else 0.0
    return total + cost.get("score_s", 0.0) * wanted / max(1, made)


def worked(record: Record) -> float:
    """The seconds of a finished cell that a forecast speaks of."""
    return sum(record.cost.get(key) or 0.0 for key in ("train_s", "sample_s", "score_s"))


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# --- probe


def probe(cells: Sequence[Cell]) -> None:
    """Run a short cell of each kind that no record speaks of; its record lies in <results>/.probe."""
    from bench.run import run

    tried = set()
    for cell in cells:
        key = kind(cell.method, cell.backbone, cell.trainer)
        if key not in tried:
            tried.add(key)
            run(shortened(cell))


def shortened(cell: Cell) -> Cell:
    """The same work in small: few steps, few images, one strength."""
    method, dataset = dict(cell.method), dict(cell.dataset)
    if method.get("recipe"):
        method["recipe"] = {**method["recipe"], "steps": min(SHORT["steps"], method["recipe"]["steps"])}
    if isinstance(dataset.get("prompts"), (list, tuple)):
        dataset["prompts"] = list(dataset["prompts"])[: SHORT["prompts"]]
    strengths = cell.strengths[: SHORT["strengths"]]
    cell = replace(cell, method=method, dataset=dataset, strengths=strengths)
    return replace(cell, results=cell.results / PROBES, mode="cached", tracker=SILENT, group=None)


SILENT = {"_target_": "bench.track.Silent"}


# --- in words


def text(
    cells: Sequence[Cell], statuses: Statuses, found: Obstacles, forecasted: Forecast, settings: Settings, workers: int
) -> str:
    """The plan, for people."""
    lines = [f"{len(cells)} cells: {counts(statuses, found)}"]
    lines += [f"  failed: {n} of them: {reason}" for reason, n in Counter(r for _, r in statuses.failed).items()]
    lines += [f"  impossible: {n} cells: {reason}" for reason, n in _impossible(statuses, found).items()]
    lines += [f"  missing: {n} cells: {reason}" for reason, n in _listed(found.missing).items()]
    if len(found.missing) > 1:
        lines.append(f"  to stage everything: {staging_command(list(found.missing))}")
    return "\n".join([*lines, *_estimate(forecasted, settings, workers)])


def counts(statuses: Statuses, found: Obstacles | None = None) -> str:
    """ "85 to run, 12 finished, 3 failed" """
    found = found or Obstacles()
    runs = len(statuses.todo) - len(found.stopped)
    words = {"to run": runs, "finished": len(statuses.done), "failed": len(statuses.failed)}
    words |= {"impossible": sum(_impossible(statuses, found).values())}
    words |= {"stopped by what is missing": found.lacking}
    text = ", ".join(f"{n} {word}" for word, n in words.items() if n or word == "to run")
    return text + (f" ({len(statuses.again)} with a record already)" if statuses.again else "")


def _impossible(statuses: Statuses, found: Obstacles) -> Counter[str]:
    return found.impossible + Counter(reason for _, reason in statuses.skipped)


def _listed(missing: Counter[str]) -> Counter[str]:
    """Of several things only what they are, since one command stages all of them."""
    return missing if len(missing) == 1 else Counter({without_remedy(text): n for text, n in missing.items()})


def _estimate(made: Forecast, settings: Settings, workers: int) -> list[str]:
    lines = []
    if made.each:
        wall = max(made.total_s / workers, made.longest_s)
        rest = "no interval: a kind of cell has a single record"
        if made.off_s is not None:
            low, high = max(0.0, made.total_s - made.off_s), made.total_s + made.off_s
            rest = f"80 % interval {low / 3600:.3g} to {high / 3600:.3g} h"
        lines.append(f"{made.total_s / 3600:.3g} device hours ({rest}), {clock(wall)} on {workers} workers")
        lines.append(f"{made.bytes / 1e9:.3g} GB on disk; from {made.records} records on {', '.join(made.devices)}")
        if settings.price_per_gpu_hour is not None:
            price = settings.price_per_gpu_hour
            lines.append(f"cost {made.total_s / 3600 * price:.2f} at {price:g} an hour")
    if made.unknown:
        names = sorted({f"{cell.method['name']} on {cell.backbone['name']}" for cell in made.unknown})
        lines.append(
            f"no estimate for {len(made.unknown)} cells: no record of {', '.join(names)} (plan=probe makes one)"
        )
    return lines


def kept(made: Forecast) -> dict[str, Any]:
    """What a sweep remembers of its forecast, to be compared with what it took."""
    return {"total_s": made.total_s, "off_s": made.off_s, "each": made.each, "unknown": len(made.unknown)}


def how_good(sweep: Sweep) -> str | None:
    """The forecast against what the cells took that it spoke of and that are done; None without a forecast."""
    each = (sweep.estimate or {}).get("each") or {}
    pairs = []
    for run_id, expected in each.items():
        record = sweep.store.read(run_id)
        if record is not None and record.status == "done":
            pairs.append((expected, worked(record)))
    if not pairs or not sum(expected for expected, _ in pairs):
        return None
    expected, took = (sum(column) for column in zip(*pairs, strict=True))
    assert sweep.estimate is not None
    off_s = sweep.estimate["off_s"]
    status = ""
    if off_s is not None and len(pairs) == len(each):
        status = ", inside its interval" if abs(took - expected) <= off_s else ", outside its interval"
    return f"forecast {expected / 3600:.3g} device hours for {len(pairs)} cells, they took {took / 3600:.3g}{status}"
