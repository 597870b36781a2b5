"""One cell of the benchmark, from its settings to its record. Read this file to understand the project.

    identify -> load -> baseline -> train -> sample -> score -> record

A finished cell is shown, not done again. A finished cell that lacks a metric or a strength gets just that: stored
images are scored, the stored adapter is sampled. A killed cell goes on where its last checkpoint left it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.contracts import Backbone, BenchError, Evaluation, Example, Impossible, Method, Metric
from bench.progress import progress
from bench.record import Record, Store, atomic_write, image_name, load_images, provenance, save_images, strength_folder

if TYPE_CHECKING:
    import numpy as np

    from bench.adapters import Bank
    from bench.sampling import Request, Sampler, Shot
    from bench.track import Tracker
    from bench.trainer import Job


@dataclass(frozen=True)
class Cell:
    """The settings of one cell, as plain dictionaries; `_target_` names a class, the other keys its arguments."""

    method: Mapping[str, Any]
    dataset: Mapping[str, Any]
    backbone: Mapping[str, Any]
    trainer: Mapping[str, Any]
    sampler: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]]
    tracker: Mapping[str, Any]
    seed: int
    strengths: tuple[float, ...] = ()  # empty: the method's own
    results: Path = Path("results")
    missing_metrics: str = "fail"
    mode: str = "cached"
    group: str | None = None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that the images depend on."""
        from bench import backbones, data

        return {
            "method": dict(self.method),
            "dataset": {"name": self.dataset["name"], "content": data.identity(dict(self.dataset))},
            "backbone": {**self.backbone, "weights": backbones.identity(dict(self.backbone))},
            "trainer": dict(self.trainer),
            "sampler": dict(self.sampler),
            "seed": self.seed,
        }

    @cached_property
    def run_id(self) -> str:
        words = [self.method["name"], self.dataset["name"].replace("/", "."), self.backbone["name"], f"s{self.seed}"]
        return "-".join([*words, digest(self.identity)])


def digest(value: Any, length: int = 10) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:length]


def build(spec: Any) -> Any:
    """Turn {_target_: package.Class, ...} into an object, inner ones first. `name` and `version` are labels."""
    if isinstance(spec, Mapping):
        made = {key: build(value) for key, value in spec.items()}
        if "_target_" not in made:
            return made
        module, _, attribute = made.pop("_target_").rpartition(".")
        return getattr(importlib.import_module(module), attribute)(**made)
    return [build(value) for value in spec] if isinstance(spec, (list, tuple)) else spec


@lru_cache(maxsize=1)
def _loaded(backbone: str) -> Backbone:
    """The backbone of a json spec; the last one stays loaded, so the cells of a sweep in one process share it."""
    return build(json.loads(backbone))


def run(cell: Cell) -> Record:
    """Do what is still to do for a cell and return its record, whatever became of it."""
    store = Store(cell.results)
    record = store.read(cell.run_id)
    if record is not None and _settled(record, cell):
        return record
    if record is not None and record.status == "done" and cell.mode != "force":
        return _complete(cell, store, record)
    return _whole(cell, store)


def _settled(record: Record, cell: Cell) -> bool:
    """Whether the record already holds all that the cell asks for."""
    if cell.mode == "force" or (cell.mode == "retry" and record.status == "failed"):
        return False
    return record.status != "done" or not _todo(record, cell)


def _todo(record: Record, cell: Cell) -> list[tuple[float, list[str]]]:
    """Strengths with the metrics that the record lacks for them."""
    strengths = cell.strengths or tuple(record.config["strengths"][:1])
    have = {(entry["strength"], entry["group"]) for entry in record.scores}
    wanted = [(s, [name for name in cell.metrics if (s, name) not in have]) for s in strengths]
    return [(strength, names) for strength, names in wanted if names]


def _whole(cell: Cell, store: Store) -> Record:
    """A cell from its beginning, or from where a killed process left it; it leaves a record in any case."""
    started = datetime.now(UTC)
    with held(store, cell.run_id) as folder:
        work = Work(cell, folder)
        record = Record(cell.run_id, "done", notes=work.notes)
        tracker = work.tracker()
        try:
            work.check()
            work.train(tracker)
            for strength in work.strengths:
                record.scores += work.score(strength, list(cell.metrics))
            work.show(tracker, record)
        except Impossible as reason:
            record.status, record.reason = "skipped", str(reason)
        except BenchError as reason:
            record.status, record.reason = "failed", str(reason)
        except Exception as error:  # a bug of ours or of a library: kept with its traceback, the sweep goes on
            record.status, record.reason = "failed", f"{type(error).__name__}: {error}"
            atomic_write(folder / "error.txt", traceback.format_exc().encode())
        finally:
            work.close()
        record.config, record.cost = work.config(), work.costs()
        record.provenance = _provenance(cell, started)
        tracker.finish(record.status)
        store.publish(record)
    return record


def _complete(cell: Cell, store: Store, record: Record) -> Record:
    """A finished cell is asked for more strengths or metrics: nothing is trained."""
    with held(store, cell.run_id) as empty:
        work = Work(cell, store.folder(cell.run_id))
        try:
            work.check()
            for strength, names in _todo(record, cell):
                record.scores += work.score(strength, names)
        finally:
            work.close()
        record.config["strengths"] = sorted({*record.config["strengths"], *work.strengths})
        record.notes += [note for note in work.notes if note not in record.notes]
        store.update(record)
        empty.rmdir()
    return record


@contextmanager
def held(store: Store, run_id: str) -> Iterator[Path]:
    """The work folder of a cell, this process's own until the end."""
    folder = store.work(run_id)
    try:
        yield folder
    finally:
        store.release(run_id)


def _provenance(cell: Cell, started: datetime) -> dict[str, Any]:
    identity = cell.identity
    return provenance(identity["dataset"]["content"], identity["backbone"]["weights"], started)


def cache_folder() -> Path:
    """Where what many cells share is kept: BENCH_CACHE, or .cache beside the code."""
    return Path(os.environ.get("BENCH_CACHE", Path(__file__).parents[1] / ".cache"))


@dataclass
class Work:
    """The parts of a cell, each loaded when it is first needed."""

    cell: Cell
    folder: Path
    notes: list[str] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=dict)

    # --- the parts

    @cached_property
    def method(self) -> Method:
        return build({key: value for key, value in self.cell.method.items() if key not in ("name", "version")})

    @cached_property
    def backbone(self):
        with self.clock("load_s"):
            return _loaded(json.dumps(dict(self.cell.backbone)))

    @cached_property
    def dataset(self):
        from bench import data

        missing = data.missing(dict(self.cell.dataset))
        if missing:
            raise BenchError(missing)
        return data.load(dict(self.cell.dataset), self.backbone.resolution)

    @cached_property
    def sampler(self) -> Sampler:
        from bench.sampling import Sampler

        return Sampler(**self.cell.sampler)

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """The metrics that this machine can compute, asked before training so that nothing is found missing after it."""
        metrics = {name: build(spec) for name, spec in self.cell.metrics.items()}
        for name, sentence in [(name, metric.missing()) for name, metric in metrics.items()]:
            if sentence and self.cell.missing_metrics != "skip":
                raise BenchError(f"{sentence} Or leave such metrics out with missing_metrics=skip.")
            if sentence:
                self.notes.append(f"metric {name} left out: {sentence}")
                del metrics[name]
        return metrics

    @cached_property
    def bank(self) -> Bank:
        """The cell's adapters on the backbone, trained if the cell is finished."""
        from bench.adapters import Bank, read_lora
        from bench.trainer import generator

        bank = Bank(self.backbone, self.method.adapters(self.dataset), [generator("adapters", self.cell.seed)])
        for file in sorted((self.folder / "adapters").glob("*.safetensors")):
            bank.load(file.stem, 0, read_lora(file))
        return bank

    @cached_property
    def shots(self) -> list[Shot]:
        from bench.sampling import shots

        return shots(self.dataset)

    @property
    def strengths(self) -> tuple[float, ...]:
        return self.cell.strengths or (self.method.strength,)

    # --- the steps, in their order

    def check(self) -> None:
        """Everything that can stop a cell is found before it costs anything."""
        _ = self.metrics
        lacks = self.method.lacks(self.dataset)
        if lacks:
            raise Impossible(
                f"Method {self.cell.method['name']} needs {lacks}; dataset {self.dataset.name} "
                f"provides {', '.join(sorted(self.dataset.provides)) or 'nothing'}."
            )
        for prompt in self.dataset.prompts:
            lost = max(map(self.backbone.truncated, self.method.prompts(prompt, self.dataset).values()))
            if lost:
                self.notes.append(f"prompt cut by {lost} tokens, its end token kept: {prompt!r}")

    @cached_property
    def baseline(self) -> np.ndarray:
        """Images of the untouched backbone, (N, 3, P, P); kept for all cells with these prompts, seeds and sampler."""
        from bench.sampling import Untouched

        with self.clock("baseline_s"):
            return self._own_images(Untouched(), self.shots, "baseline")

    def train(self, tracker: Tracker) -> None:
        """Train the adapters; a finished training is read from its last checkpoint."""
        if self.method.recipe is None:
            return
        from bench.trainer import train

        with self.clock("train_s"):
            job = self._job()
            log = TrainingLog(self.folder / "log.csv")
            for step in progress(train(self.bank, [job]), f"train {self.cell.run_id}", "step", job.recipe.steps):
                if step.error:
                    raise step.error
                log.write(step)
                tracker.log(step.k, {"loss": step.losses[-1], "lr": step.lr})
                self.cost["steps"] = self.cost.get("steps", 0) + 1
        self._save_adapters()

    def sample(self, strength: float) -> np.ndarray:
        """Images (N, 3, P, P) at one strength, drawn or, when they are stored, read."""
        from bench.sampling import Request

        folder = self.folder / "images" / strength_folder(strength)
        if not folder.is_dir():
            with self.clock("sample_s"):
                request = Request(0, self.method, self.dataset, self.shots, strength)
                images = self._draw(self.bank, request, f"sample {self.cell.run_id} strength {strength:g}")
                save_images(folder, images, self._names(self.shots))
                self.cost["images"] = self.cost.get("images", 0) + len(images)
        return load_images(folder, self._names(self.shots))

    def score(self, strength: float, names: Sequence[str]) -> list[dict]:
        """Entries of the record for some metrics, and their per-image values in per_image.csv."""
        evaluation = self._evaluation(strength)
        entries = []
        with self.clock("score_s"):
            for name in progress([name for name in names if name in self.metrics], "score", "metric"):
                entries += self._measure(name, strength, evaluation)
        return entries

    def show(self, tracker: Tracker, record: Record) -> None:
        """A grid of images, and what the tracker wants to see."""
        from bench import table
        from bench.grid import grid

        first = [i for i, shot in enumerate(self.shots) if shot.seed == self.shots[0].seed][:8]
        rows = [("backbone", self.baseline[first])]
        rows += [(f"{self.method.strength_knob} {s:g}", self.sample(s)[first]) for s in self.strengths]
        if self.dataset.oracle is not None:
            import numpy as np

            rows.append(("style itself", np.stack([self.dataset.oracle(image) for image in self.baseline[first]])))
        path = self.folder / "grid.png"
        grid(rows, [self.shots[i].prompt for i in first], path)
        tracker.images("grid", path)
        tracker.table("metrics", table.long([record]))
        for file in sorted((self.folder / "adapters").glob("*.safetensors")):
            tracker.artifact(f"{self.cell.run_id}-{file.stem}", file, "adapter")

    # --- how

    def _job(self) -> Job:
        from bench.latents import Latents
        from bench.trainer import Job

        scale = self.cell.trainer["lr_scale"]
        recipe = replace(self.method.recipe, lr=self.method.recipe.lr * scale)
        if scale != 1:
            self.notes.append(
                f"the method's learning rate {self.method.recipe.lr:g} of the method times {scale:g} for this backbone"
            )
        data = Latents(self.dataset, self.backbone, recipe, self._prior(), self.cell.trainer["resample"])
        return Job(0, self.method, data, recipe, self.cell.seed, self.folder / "checkpoint.safetensors")

    def _prior(self) -> list[Example]:
        """The backbone's own images of the class, for prior preservation; kept for all cells."""
        from bench.sampling import Shot, Untouched

        wanted = self.method.prior(self.dataset)
        if wanted is None:
            return []
        prompt, count = wanted
        most = self.cell.trainer["prior_images"]
        if most is not None and most < count:
            self.notes.append(f"{most} images for prior preservation instead of {count}")
            count = most
        chosen = [Shot(0, prompt, seed) for seed in range(-count, 0)]  # never an evaluation seed
        images = self._own_images(Untouched(), chosen, "class images")
        return [Example(image, prompt, self.dataset.noun) for image in images]

    def _own_images(self, method: Method, chosen: Sequence[Shot], label: str) -> np.ndarray:
        from bench.adapters import Bank
        from bench.sampling import Request

        asked = [(shot.index, shot.prompt, shot.seed) for shot in chosen]
        own = {"backbone": self.cell.identity["backbone"], "sampler": self.cell.sampler, "shots": asked}
        folder = cache_folder() / "baseline" / digest(own, 16)
        if not folder.is_dir():
            request = Request(0, method, self.dataset, chosen, 0.0)
            images = self._draw(Bank(self.backbone, {}, [None]), request, label)
            save_images(folder, images, self._names(chosen))
        return load_images(folder, self._names(chosen))

    def _draw(self, bank: Bank, request: Request, label: str) -> np.ndarray:
        import numpy as np

        from bench.sampling import sample

        drawn = (image for (images,) in sample(bank, [request], self.sampler) for image in images)
        return np.stack(list(progress(drawn, label, "image", len(request.shots))))

    def _names(self, chosen: Sequence[Shot]) -> list[str]:
        return [image_name(shot.index, shot.seed) for shot in chosen]

    def _evaluation(self, strength: float) -> Evaluation:
        styles = {shot.prompt: self.method.prompts(shot.prompt, self.dataset) for shot in self.shots}
        return Evaluation(
            images=self.sample(strength),
            baseline=self.baseline,
            prompts=[shot.prompt for shot in self.shots],
            full_prompts=[styles[shot.prompt].get("style", shot.prompt) for shot in self.shots],
            seeds=[shot.seed for shot in self.shots],
            dataset=self.dataset,
            cache=cache_folder(),
        )

    def _measure(self, name: str, strength: float, evaluation: Evaluation) -> list[dict]:
        metric = self.metrics[name]
        try:
            score = metric.score(evaluation)
        except Impossible as reason:
            self.notes.append(f"metric {name} left out: {reason}")
            return [{"strength": strength, "group": name, "metric": None, "value": None}]
        self._keep_per_image(strength, evaluation, score.per_image)
        return [
            {
                "strength": strength,
                "group": name,
                "metric": key,
                "value": value,
                "higher_is_better": metric.higher_is_better.get(key),
                "network": score.fingerprint.get("network"),
                "fingerprint": dict(score.fingerprint),
            }
            for key, value in score.values.items()
        ]

    def _keep_per_image(self, strength: float, evaluation: Evaluation, values: Mapping[str, np.ndarray]) -> None:
        """Add columns to per_image.csv: one line for each strength, prompt and seed."""
        import pandas as pd

        path = self.folder / "per_image.csv"
        index = ["strength", "prompt", "seed"]
        new = pd.DataFrame(
            {"strength": strength, "prompt": evaluation.prompts, "seed": evaluation.seeds, **values}
        ).set_index(index)
        old = pd.read_csv(path, index_col=index) if path.is_file() else new
        atomic_write(path, new.combine_first(old).to_csv().encode())

    def _save_adapters(self) -> None:
        from safetensors.torch import save

        (self.folder / "adapters").mkdir(exist_ok=True)
        for name, spec in self.bank.specs.items():
            if spec.file is None:
                atomic_write(self.folder / "adapters" / f"{name}.safetensors", save(self.bank.state(name, 0)))

    def config(self) -> dict[str, Any]:
        strengths = list(self.strengths) if self.cell.strengths or "method" in vars(self) else []
        return {**self.cell.identity, "strengths": strengths, "metrics": dict(self.cell.metrics)}

    def costs(self) -> dict[str, float]:
        """Seconds of each phase, rates, memory, and the size of what was trained."""
        costs = {"peak_gb": peak_gb(), **self.cost}
        if "sample_s" in costs and "images" in costs:
            costs["images_per_s"] = costs.pop("images") / costs["sample_s"]
        if "train_s" in costs and "steps" in costs:
            costs["steps_per_s"] = costs["steps"] / costs["train_s"]
        if "bank" in vars(self):
            costs["trainable_parameters"] = sum(theta.shape[1] for theta in self.bank.theta.values())
            style = self.folder / "adapters" / "style.safetensors"
            costs["adapter_bytes"] = style.stat().st_size if style.is_file() else 0
        return costs

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.cost[phase] = self.cost.get(phase, 0.0) + time.perf_counter() - started

    def tracker(self) -> Tracker:
        tracker = build({"folder": str(self.cell.results), **self.cell.tracker})
        tags = (self.cell.method["name"], self.cell.dataset["name"], self.cell.backbone["name"])
        tracker.start(self.cell.run_id, self.cell.identity, self.cell.group or "", tags)
        return tracker

    def close(self) -> None:
        """Leave the backbone as it was."""
        if "bank" in vars(self):
            self.bank.close()


def peak_gb() -> float:
    """Most memory used so far, in GB: of the GPU where one is used, else of this process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


class TrainingLog:
    """The losses of each step as a csv file; a resumed training goes on behind its last finished step."""

    def __init__(self, path: Path):
        self.path = path
        self.known = path.read_text().splitlines() if path.is_file() else []

    def write(self, step) -> None:
        if not self.path.is_file() or self.known:
            kept = [line for line in self.known[1:] if (k := line.split(",")[0]).isdigit() and int(k) < step.k]
            self.path.write_text("\n".join(["step,lr,losses", *kept]) + "\n")
            self.known = []
        with self.path.open("a") as file:
            file.write(f"{step.k},{step.lr:g},{' '.join(f'{loss:.6g}' for loss in step.losses)}\n")
