"""A cell under way: its settings, its folder, the parts that its steps need, and what they noted and cost."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bench.backbones.sites import check_where
from bench.cell import PARTS, Cell
from bench.contracts import AdapterSpec, Backbone, BenchError, Dataset, Method, Metric, Spec
from bench.data import schema
from bench.data.images import StoredImages
from bench.errors import Stopped, Unavailable
from bench.settings import build, construct
from bench.store import contents
from bench.store.record import Record, Store

if TYPE_CHECKING:
    from bench.adapters.bank import Bank
    from bench.sampling.sampler import Sampler, Shot
    from bench.track import Tracker
    from bench.training.log import TrainingLog
    from bench.training.settings import TrainerSettings

T = TypeVar("T")
LABELS = (
    "name",
    "title",
    "version",
    "strength_sweep",
    "curve",
    "deviations",
)  # keys of a method's yaml that are not arguments of its class


@dataclass(eq=False)
class Work:
    """One cell under way. Each part is loaded when it is first needed."""

    cell: Cell
    folder: Path
    notes: list[str] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=dict)
    scored: list[str] = field(default_factory=list)
    store: Store | None = None  # that holds the folder for this process
    slot: int | None = None  # place in a bank that is shared with other cells; None: a bank of its own
    error: Exception | None = None  # what ended the cell
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    baseline: StoredImages | None = None  # set by `steps.baseline`
    record: Record | None = None  # of the finished cell that is opened again
    drawn: set[str] = field(default_factory=set)  # folders of images that were written, below `folder`
    stop: Callable[[], bool] = bool  # whether this process was asked to leave

    def attempt(self, step: Callable[[], T]) -> T | None:
        """Do a step of a cell that nothing has ended so far; what goes wrong ends it, and no other cell."""
        if self.error is None:
            try:
                return step()
            except Exception as error:
                self.error = error
        return None

    def heed(self) -> None:
        """Raise Stopped when this process was asked to leave, and Taken when another one took the cell over meanwhile.

        Called between batches, between metrics, and before what was made is kept.
        """
        if self.store is not None:
            self.store.check_mine(self.cell.run_id)
        if self.stop():
            raise Stopped

    def is_lost(self, look: bool = False) -> bool:
        """Whether another process took the cell over while this one was paused; see `Store.lost`."""
        return self.store is not None and self.store.lost(self.cell.run_id, look)

    # --- the parts

    @cached_property
    def method(self) -> Method:
        return build({key: value for key, value in self.cell.method.items() if key not in LABELS}, "method")

    @cached_property
    def backbone(self) -> Backbone:
        with self.clock("load_s"):
            return loaded_backbone(json.dumps(dict(self.cell.backbone)))

    @cached_property
    def dataset(self) -> Dataset:
        from bench.data import sources

        missing = sources.missing(dict(self.cell.dataset))
        if missing:
            raise (Unavailable if sources.absent(dict(self.cell.dataset)) else BenchError)(missing)
        return self._dataset_at(self.cell.backbone["resolution"])

    def _dataset_at(self, resolution: int) -> Dataset:
        content = self.cell.identity["dataset"]["content"]
        return _dataset(json.dumps(dict(self.cell.dataset)), resolution, content)

    @cached_property
    def training_backbone(self) -> Backbone:
        """As training describes it: its images may have another size than those that are drawn."""
        return self.backbone.in_training(self.trainer.resolution, self.trainer.time_ids)

    @cached_property
    def training_dataset(self) -> Dataset:
        return self._dataset_at(self.training_backbone.resolution)

    @cached_property
    def sampler(self) -> Sampler:
        from bench.sampling.sampler import Sampler

        return construct(Sampler, self.cell.sampler, "sampler")

    @cached_property
    def trainer(self) -> TrainerSettings:
        from bench.training.settings import TrainerSettings

        return construct(TrainerSettings, self.cell.trainer, "trainer")

    @cached_property
    def metrics(self) -> dict[str, Metric]:
        """The metrics that this machine can compute; asked before training, so nothing is found missing after it."""
        metrics = {name: build(spec, f"metrics.{name}") for name, spec in self.cell.metrics.items()}
        for name, sentence in [(name, metric.missing()) for name, metric in metrics.items()]:
            if sentence and self.cell.missing_metrics != "skip":
                raise Unavailable(f"{sentence} Or leave such metrics out with missing_metrics=skip.")
            if sentence:
                self.notes.append(f"metric {name} left out: {sentence}")
                del metrics[name]
        return metrics

    @cached_property
    def bank(self) -> Bank:
        """The finished cell's adapters on the backbone. Raises BenchError unless they are as the record says."""
        from bench.adapters.bank import Bank
        from bench.seeding import generator

        self.check("adapters/")
        bank = Bank(self.backbone, self.specs(), [generator("adapters", self.cell.seed)])
        try:
            for name in self.trained(bank):
                bank.read(name, 0, self.folder / "adapters")
        except BaseException:
            bank.close()
            raise
        return bank

    def trained(self, bank: Bank) -> list[str]:
        """The adapters that training makes, and that are stored: not those that are read from a file."""
        return [name for name, spec in bank.specs.items() if spec.file is None and self.method.recipe is not None]

    def check(self, part: str) -> None:
        """Raises BenchError unless a part of a finished cell is as its record lists it; see `store.contents`."""
        if self.record is not None:
            contents.check(self.folder, self.record.config, part)

    @cached_property
    def shots(self) -> list[Shot]:
        from bench.sampling.sampler import shots

        return shots(self.dataset)

    @cached_property
    def tracker(self) -> Tracker:
        tracker = build({"folder": str(self.cell.results), **self.cell.tracker}, "tracker")
        tags = (self.cell.method["name"], self.cell.dataset["name"], self.cell.backbone["name"])
        again = (
            {"resume": run} if self.record is not None and (run := self.record.provenance.get("tracker_run")) else {}
        )
        tracker.start(self.cell.run_id, self.cell.identity, self.cell.group or "", tags, **again)
        return tracker

    @cached_property
    def training_log(self) -> TrainingLog:
        from bench.training.log import TrainingLog

        return TrainingLog(self.folder / "log.csv")

    def specs(self) -> dict[str, Spec]:
        """The adapters that the method asks for, at the layers that stand for the named ones on this backbone."""
        places, specs = self.trainer.where, dict(self.method.adapters(self.dataset))
        for name, spec in specs.items():
            if isinstance(spec, AdapterSpec):
                check_where(spec.where, f"the adapter {name}")
            if isinstance(spec, AdapterSpec) and spec.where in places:
                self.note(f"adapters for {spec.where} go to {places[spec.where]} on this backbone")
                specs[name] = replace(spec, where=places[spec.where])
        return self._with_options(specs)

    def _with_options(self, specs: dict[str, Spec]) -> dict[str, Spec]:
        """The trainer's options of low-rank adapters, for those that training makes. Raises BenchError for none."""
        trainer = self.trainer
        changes: dict[str, Any] = {"dora": trainer.dora, "dropout": trainer.lora_dropout}
        changes["text_encoder"] = trainer.text_encoder_lr is not None
        if self.method.recipe is None or not any(changes.values()):
            return specs
        low_rank = {n: spec for n, spec in specs.items() if isinstance(spec, AdapterSpec) and spec.file is None}
        if not low_rank:
            raise BenchError(
                "An option of low-rank adapters was requested (trainer.dora, lora_dropout or text_encoder_lr), and "
                f"{self.cell.method['name']} trains none; leave it out for this method."
            )
        return specs | {name: replace(spec, **changes) for name, spec in low_rank.items()}

    # --- notes and costs

    def config(self) -> dict[str, Any]:
        """All that the images depend on, what was measured on them, and what is needed to open the cell again."""
        requested = {part: dict(getattr(self.cell, part)) for part in PARTS}
        requested["dataset"] = schema.portable(requested["dataset"])
        images = dict(self.dataset.counts) if "dataset" in vars(self) else {}  # a cell may end before they are read
        return {**self.cell.identity, "scored": self.scored, "requested": requested, "images": images}

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

    # --- the end

    def leave_bank(self) -> None:
        """Be as before training, but for what is in the folder."""
        self.slot = None
        for part in ("bank", "training_log"):
            vars(self).pop(part, None)

    def close(self) -> None:
        """Leave the backbone as it was."""
        if "bank" in vars(self) and self.slot is None:
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


@lru_cache(maxsize=1)
def loaded_backbone(backbone: str) -> Backbone:
    """The backbone of a json spec; the last one stays loaded, so the cells of a sweep in one process share it."""
    return build(json.loads(backbone), "backbone")


@lru_cache(maxsize=4)
def _dataset(spec: str, resolution: int, content: str) -> Dataset:
    """The dataset of a json spec with this content; the cells of a sweep in one process share it."""
    from bench.data import loading

    return loading.load(json.loads(spec), resolution)
