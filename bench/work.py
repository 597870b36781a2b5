"""The steps of a cell and the parts they need: backbone, dataset, method, adapters, images, scores."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bench.cell import PARTS, Cell
from bench.contracts import (
    AdapterSpec,
    Backbone,
    BenchError,
    Dataset,
    Evaluation,
    Example,
    Impossible,
    Method,
    Metric,
    Spec,
)
from bench.data.image_files import image_name, save_images, strength_folder
from bench.data.images import StoredImages, stored
from bench.fairness import contract
from bench.files import atomic_write
from bench.paths import cache_folder
from bench.progress import progress
from bench.settings import build, construct, digest
from bench.store.record import Record, Store
from bench.tokens import split_notes
from bench.training.checks import high_ends

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from bench.adapters.bank import Bank
    from bench.sampling.sampler import Request, Sampler, Shot
    from bench.track import Tracker
    from bench.training.trainer import Job, Step, TrainerSettings


T = TypeVar("T")
CLASS_IMAGES = 16  # of the customised model without its token, for metrics that ask for them
LABELS = ("name", "version", "curve", "deviations")  # keys of a method's yaml that are not arguments of its class


@dataclass(eq=False)
class Work:
    """The parts of a cell, each loaded when it is first needed."""

    cell: Cell
    folder: Path
    notes: list[str] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=dict)
    scored: list[str] = field(default_factory=list)
    store: Store | None = None  # that holds the folder for this process
    seat: int | None = None  # place in a bank that is shared with other cells; None: a bank of its own
    error: Exception | None = None  # what ended the cell
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    def attempt(self, step: Callable[[], T]) -> T | None:
        """Do a step of a cell that nothing has ended so far; what goes wrong ends it, and no other cell."""
        if self.error is None:
            try:
                return step()
            except Exception as error:
                self.error = error
        return None

    # --- the parts

    @cached_property
    def method(self) -> Method:
        return build({key: value for key, value in self.cell.method.items() if key not in LABELS}, "method")

    @cached_property
    def backbone(self) -> Backbone:
        with self.clock("load_s"):
            return _loaded(json.dumps(dict(self.cell.backbone)))

    @cached_property
    def dataset(self) -> Dataset:
        from bench.data import sources

        missing = sources.missing(dict(self.cell.dataset))
        if missing:
            raise BenchError(missing)
        content = self.cell.identity["dataset"]["content"]
        return _dataset(json.dumps(dict(self.cell.dataset)), self.cell.backbone["resolution"], content)

    @cached_property
    def sampler(self) -> Sampler:
        from bench.sampling.sampler import Sampler

        return construct(Sampler, self.cell.sampler, "sampler")

    @cached_property
    def trainer(self) -> TrainerSettings:
        from bench.training.trainer import TrainerSettings

        return construct(TrainerSettings, self.cell.trainer, "trainer")

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """The metrics that this machine can compute; asked before training, so nothing is found missing after it."""
        metrics = {name: build(spec, f"metrics.{name}") for name, spec in self.cell.metrics.items()}
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
        from bench.adapters.bank import Bank
        from bench.seeding import generator

        bank = Bank(self.backbone, self.specs(), [generator("adapters", self.cell.seed)])
        for name in bank.specs:
            bank.read(name, 0, self.folder / "adapters")
        return bank

    @cached_property
    def shots(self) -> list[Shot]:
        from bench.sampling.sampler import shots

        return shots(self.dataset)

    # --- the steps, in their order

    def possible(self) -> None:
        """Raises what stops a cell, as far as it can be told without the backbone."""
        contract(self.cell).check(self.cell)
        _ = self.metrics, self.sampler, self.trainer
        absent = self.method.missing()
        if absent:
            raise Impossible(absent)
        lacks = self.method.lacks(self.dataset)
        if lacks:
            raise Impossible(
                f"Method {self.cell.method['name']} needs {lacks}; dataset {self.dataset.name} "
                f"provides {', '.join(sorted(self.dataset.provides)) or 'nothing'}."
            )

    def check(self) -> None:
        """Everything that can stop a cell is found before it costs anything."""
        self.possible()
        self.notes += self.method.notes
        self.notes += split_notes(self.method.rare_tokens, self.backbone.tokenizers())
        for prompt in self.dataset.prompts:
            lost = max(map(self.backbone.truncated, self.method.prompts(prompt, self.dataset).values()))
            if lost:
                self.notes.append(f"prompt cut by {lost} tokens, its end token kept: {prompt!r}")

    @cached_property
    def baseline(self) -> StoredImages:
        """Images of the untouched backbone, (N, 3, P, P); kept for all cells with these prompts, seeds and sampler."""
        from bench.sampling.sampler import Untouched

        with self.clock("baseline_s"):
            return self._own_images(Untouched(), self.shots, "baseline")

    def specs(self) -> dict[str, Spec]:
        """The adapters that the method asks for, at the layers that stand for the named ones on this backbone."""
        places, specs = self.trainer.where, dict(self.method.adapters(self.dataset))
        for name, spec in specs.items():
            if isinstance(spec, AdapterSpec) and spec.where in places:
                self.note(f"adapters for {spec.where} go to {places[spec.where]} on this backbone")
                specs[name] = replace(spec, where=places[spec.where])
        return specs

    def job(self) -> Job:
        """The cell as the trainer sees it; its checkpoint, if there is one, is where it goes on."""
        from bench.training.latents import Latents
        from bench.training.trainer import Job

        scale, published = self.trainer.lr_scale, self.method.recipe
        assert published is not None
        recipe = replace(published, lr=published.lr * scale)
        if scale != 1:
            self.note(f"the method's learning rate {published.lr:g} times {scale:g} for this backbone")
        data = Latents(self.dataset, self.backbone, recipe, self._prior(), self.trainer.resample)
        return Job(self.seat or 0, self.method, data, recipe, self.cell.seed, self.folder / "checkpoint.safetensors")

    def log(self, step: Step) -> None:
        """A finished training step, or the error that was its last."""
        self.error = step.error
        if step.error is None:
            self._log.write(step)
            self.tracker.log(step.k, {"loss": step.losses[-1], "lr": step.lr})
            self.spend("steps", 1)

    def save_adapters(self) -> None:
        if self.method.recipe is not None:
            for sentence in high_ends(self._log.path):
                self.note(sentence)
            for name, spec in self.bank.specs.items():
                if getattr(spec, "file", None) is None:
                    self.bank.save(name, self.seat or 0, self.folder / "adapters")

    def lacks_images(self, strength: float) -> bool:
        return not self._image_folder(strength).is_dir()

    def sample(self, strength: float) -> StoredImages:
        """Images (N, 3, P, P) at one strength, drawn or, when they are stored, read."""
        if self.lacks_images(strength):
            images = self.undrawn(strength)
            self.keep(strength, draw([self], strength)[0] if images is None else images)
        return stored(self._image_folder(strength), self._names(self.shots))

    def undrawn(self, strength: float) -> np.ndarray | None:
        """Images that need no drawing: the method makes them out of the baseline's, or, as it trains nothing, a cell of
        another seed drew the same."""
        images = self.method.from_baseline(self.baseline, self.dataset)
        if images is None and self.method.recipe is None and self.seedless(strength).is_dir():
            self.note("images of a cell with another training seed: this method trains nothing")
            images = stored(self.seedless(strength), self._names(self.shots))[:]
        return images

    def seedless(self, strength: float) -> Path:
        """Where images are kept that no training seed has a part in."""
        own = {key: value for key, value in self.cell.identity.items() if key != "seed"}
        return cache_folder() / "untrained" / digest({**own, "strength": strength}, 16)

    def keep(self, strength: float, images: np.ndarray) -> None:
        save_images(self._image_folder(strength), images, self._names(self.shots))

    def score(self, strength: float, names: Sequence[str]) -> list[dict]:
        """Entries of the record for some metrics, and their per-image values in per_image.csv."""
        evaluation = self._evaluation(strength)
        entries = []
        with self.clock("score_s"):
            for name in progress([name for name in names if name in self.metrics], "score", "metric"):
                entries += self._measure(name, strength, evaluation)
                self.scored.append(self.cell.measure(name, strength))
        return entries

    def show(self, record: Record) -> None:
        """A grid of images, and what the tracker wants to see."""
        from bench.analysis import frames
        from bench.grid import grid

        shown = [shot.index for shot in self.shots]
        first = [i for i, index in enumerate(shown) if index not in shown[:i]][:8]  # one image of each prompt
        rows = [("backbone", self.baseline[first])]
        rows += [(f"{self.method.strength_knob} {s:g}", self.sample(s)[first]) for s in self.cell.strengths]
        if self.dataset.oracle is not None:
            import numpy as np

            rows.append(("style itself", np.stack([self.dataset.oracle(image) for image in self.baseline[first]])))
        path = self.folder / "grid.png"
        grid(rows, [self.shots[i].prompt for i in first], path)
        self.tracker.images("grid", path)
        self.tracker.table("metrics", frames.long([record]))
        for file in sorted((self.folder / "adapters").glob("*.safetensors")):
            self.tracker.artifact(f"{self.cell.run_id}-{file.stem}", file, "adapter")

    # --- how

    def _image_folder(self, strength: float) -> Path:
        return self.folder / "images" / strength_folder(strength)

    @cached_property
    def _log(self) -> TrainingLog:
        return TrainingLog(self.folder / "log.csv")

    def _prior(self) -> list[Example]:
        """The backbone's own images of the class, for prior preservation; kept for all cells."""
        from bench.sampling.sampler import Shot, Untouched

        wanted = self.method.prior(self.dataset)
        if wanted is None:
            return []
        prompt, count = wanted
        most = self.trainer.prior_images
        if most is not None and most < count:
            self.note(f"{most} images for prior preservation instead of {count}")
            count = most
        chosen = [Shot(0, prompt, seed) for seed in range(-count, 0)]  # never an evaluation seed
        with self.clock("prior_s"):
            images = self._own_images(Untouched(), chosen, "class images")
        return [Example(image, prompt, self.dataset.noun) for image in images]

    def _own_images(self, method: Method, chosen: Sequence[Shot], label: str) -> StoredImages:
        from bench.adapters.bank import Bank
        from bench.sampling.sampler import Request

        asked = [(shot.index, shot.prompt, shot.seed) for shot in chosen]
        own = {"backbone": self.cell.identity["backbone"], "sampler": self.cell.sampler, "shots": asked}
        folder = cache_folder() / "baseline" / digest(own, 16)
        if not folder.is_dir():
            request = Request(0, method, self.dataset, chosen, 0.0)
            (images,) = _drawn(Bank(self.backbone, {}, [None]), [request], self.sampler, label)
            save_images(folder, images, self._names(chosen))
        return stored(folder, self._names(chosen))

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
            class_images=lambda: self._class_images(strength),
        )

    def _class_images(self, strength: float) -> StoredImages:
        """What the customised model makes of the bare class, (16, 3, P, P); kept beside the cell's images."""
        from bench.sampling.sampler import Plain, Request, Shot

        if self.method.from_baseline(self.baseline, self.dataset) is not None:
            raise Impossible(f"The method {self.cell.method['name']} draws no images of its own.")
        prompt, place = f"a photo of a {self.dataset.noun}", len(self.dataset.prompts)
        chosen = [Shot(place, prompt, seed) for seed in range(CLASS_IMAGES)]
        folder = self.folder / "class_images" / strength_folder(strength)
        if not folder.is_dir():
            request = Request(self.seat or 0, Plain(self.method), self.dataset, chosen, strength)
            (images,) = _drawn(self.bank, [request], self.sampler, f"class images {strength:g}")
            save_images(folder, images, self._names(chosen))
        return stored(folder, self._names(chosen))

    def _measure(self, name: str, strength: float, evaluation: Evaluation) -> list[dict]:
        metric = self.metrics[name]
        try:
            score = metric.score(evaluation)
        except Impossible as reason:
            self.note(f"metric {name} left out: {reason}")
            return []
        for note in score.notes:
            self.note(f"metric {name}: {note}")
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
        old = self._per_image() if path.is_file() else new
        atomic_write(path, new.combine_first(old).to_csv().encode())

    def _per_image(self) -> pd.DataFrame:
        import pandas as pd

        return pd.read_csv(self.folder / "per_image.csv", index_col=["strength", "prompt", "seed"])

    def forget(self, strength: float, columns: Sequence[str]) -> None:
        """Remove per-image values of one strength that are about to be measured anew."""
        if not columns or not (self.folder / "per_image.csv").is_file():
            return
        table = self._per_image()
        known = [name for name in columns if name in table]
        table.loc[table.index.get_level_values("strength") == strength, known] = math.nan
        empty = [name for name in known if table[name].isna().all()]
        atomic_write(self.folder / "per_image.csv", table.drop(columns=empty).to_csv().encode())

    def config(self) -> dict[str, Any]:
        """All that the images depend on, what was measured on them, and what is needed to open the cell again."""
        asked = {part: dict(getattr(self.cell, part)) for part in PARTS}
        return {**self.cell.identity, "scored": self.scored, "asked": asked}

    def costs(self) -> dict[str, float]:
        """Seconds of each phase, rates, memory, and the size of what was trained.

        Seconds that cells of a pack share are split evenly among those that took part: `train_s` and `sample_s` add up
        to the time that passed, and `pack` says how many took part on average; `compile` and `channels_last` are the
        share of ticks that ran so. Whoever needs the backbone, a baseline or class images first pays for them.
        """
        costs = {"peak_gb": peak_gb(), **self.cost}
        if "ticks" in costs:
            ticks = costs.pop("ticks")
            costs["pack"] = costs.pop("sharing") / ticks
            costs |= {way: costs[way] / ticks for way in ("compile", "channels_last") if way in costs}
        if "sample_s" in costs and "images" in costs:
            costs["images_per_s"] = costs.pop("images") / costs["sample_s"]
        if "train_s" in costs and "steps" in costs:
            costs["steps_per_s"] = costs["steps"] / costs["train_s"]
        if "bank" in vars(self):
            trained = [name for name, spec in self.bank.specs.items() if spec.file is None]
            costs["trainable_parameters"] = sum(self.bank.theta[name].shape[1] for name in trained)
            costs["adapter_bytes"] = self._style_bytes()
        return costs

    def _style_bytes(self) -> int:
        """Size of what others load of this cell; 0 when there is none."""
        if "style" not in self.bank.specs:
            return 0
        files = [self.folder / "adapters" / path for path in self.bank.files("style")]
        return sum(file.stat().st_size for file in files if file.is_file())

    def note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def spend(self, what: str, amount: float) -> None:
        self.cost[what] = self.cost.get(what, 0.0) + amount

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.spend(phase, time.perf_counter() - started)

    @cached_property
    def tracker(self) -> Tracker:
        tracker = build({"folder": str(self.cell.results), **self.cell.tracker}, "tracker")
        tags = (self.cell.method["name"], self.cell.dataset["name"], self.cell.backbone["name"])
        tracker.start(self.cell.run_id, self.cell.identity, self.cell.group or "", tags)
        return tracker

    def leave_bank(self) -> None:
        """Be as before training, but for what is in the folder."""
        self.seat = None
        for part in ("bank", "_log"):
            vars(self).pop(part, None)

    # --- the end

    def close(self) -> None:
        """Leave the backbone as it was."""
        if "bank" in vars(self) and self.seat is None:
            self.bank.close()

    def publish(self, record: Record) -> None:
        assert self.store is not None
        self.close()
        self.tracker.finish(record.status)
        self.store.publish(record)
        self.store = None

    def let_go(self) -> None:
        """Without a record: let others work on the cell. What was made so far stays. Nothing to do after `publish`."""
        if self.store is not None:
            self.close()
            self.tracker.finish("interrupted")
            self.store.release(self.cell.run_id)
            self.store = None


def draw(works: Sequence[Work], strength: float) -> list[np.ndarray]:
    """Images (N, 3, P, P) of each of some cells on one bank, with equally many images each, in shared passes."""
    from bench.sampling.sampler import Request

    first, started = works[0], time.perf_counter()
    requests = [Request(work.seat or 0, work.method, work.dataset, work.shots, strength) for work in works]
    label = f"sample {first.cell.run_id}{f' and {len(works) - 1} more' * (len(works) > 1)} strength {strength:g}"
    images = _drawn(first.bank, requests, first.sampler, label)
    for work, own in zip(works, images, strict=True):
        if work.method.recipe is None:
            save_images(work.seedless(strength), own, work._names(work.shots))
        work.spend("sample_s", (time.perf_counter() - started) / len(works))
        work.spend("images", len(work.shots))
    return images


def _drawn(bank: Bank, requests: Sequence[Request], sampler: Sampler, label: str) -> list[np.ndarray]:
    import numpy as np

    from bench.sampling.sampler import sample

    drawn = (images for chunk in sample(bank, requests, sampler) for images in zip(*chunk, strict=True))
    rows = list(progress(drawn, label, "image", len(requests[0].shots)))
    return [np.stack(column) for column in zip(*rows, strict=True)]


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

    def write(self, step: Step) -> None:
        if not self.path.is_file() or self.known:
            kept = [line for line in self.known[1:] if (k := line.split(",")[0]).isdigit() and int(k) < step.k]
            self.path.write_text("\n".join(["step,lr,losses", *kept]) + "\n")
            self.known = []
        with self.path.open("a") as file:
            file.write(f"{step.k},{step.lr:g},{' '.join(f'{loss:.6g}' for loss in step.losses)}\n")


@lru_cache(maxsize=1)
def _loaded(backbone: str) -> Backbone:
    """The backbone of a json spec; the last one stays loaded, so the cells of a sweep in one process share it."""
    return build(json.loads(backbone), "backbone")


@lru_cache(maxsize=4)
def _dataset(spec: str, resolution: int, content: str) -> Dataset:
    """The dataset of a json spec with this content; the cells of a sweep in one process share it."""
    from bench.data import loading

    return loading.load(json.loads(spec), resolution)
