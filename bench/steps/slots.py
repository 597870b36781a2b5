"""The slots of a pack: the cells that train on one bank of adapters. A cell that ends frees its slot."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial

from bench.adapters.bank import Bank
from bench.contracts import FullSpec
from bench.progress import progress
from bench.seeding import generator
from bench.steps.job import log_step, save_adapters, training_job
from bench.steps.previews import preview
from bench.steps.work import Work
from bench.training.compiling import Timing, backends_of, offered
from bench.training.trainer import Training

log = logging.getLogger(__name__)
Size = int | Callable[[Work], int]  # of a pack, or what finds it from the first cell


class Queue:
    """Works that wait, about `count`. One that was looked at and did not fit waits aside, for its own slots."""

    def __init__(self, works: Iterator[Work], count: int):
        self.works, self.count = works, count
        self.aside: list[Work] = []

    def take(self, fits: Callable[[Work], bool] = lambda work: True) -> Work | None:
        """The next one that fits. At most one that does not is taken along: others may lease what is left."""
        if not self.aside:
            self.aside += [work for work in [next(self.works, None)] if work is not None]
            self.count = max(0, self.count - 1)
        found = next((work for work in self.aside if fits(work)), None)
        if found is not None:
            self.aside.remove(found)
        return found


class Slots:
    """Up to `size` cells on one bank, with the adapters that the first of them asks for."""

    def __init__(self, first: Work, size: Size):
        self.first = first
        self.specs = first.specs()
        alone = any(isinstance(spec, FullSpec) for spec in self.specs.values())
        slots = 1 if alone else size(first) if callable(size) else size
        self.bank = Bank(first.backbone, self.specs, [], slots)
        self.training = Training(self.bank)
        self.backends, self.timings = backends_of(first.backbone), dict[int, Timing]()  # cells in a tick -> how it runs
        self.requested = first.trainer.compile
        self.offered = offered(self.requested, first.backbone, self.specs)
        self.works: dict[int, Work] = {}  # slot -> work
        self.most: int | None = None  # works that may share slots from now on, when too many could not

    def close(self) -> None:
        self.bank.close()

    def fits(self, work: Work) -> bool:
        """Whether the work can share these slots; one with an error can sit anywhere, it leaves at once."""
        if work.error is not None:
            return True
        same = all(getattr(work.cell, part) == getattr(self.first.cell, part) for part in ("backbone", "sampler"))
        return same and work.attempt(lambda: work.specs() == self.specs) is not False

    def trained(self, first: Work, queue: Queue, stop: Callable[[], bool]) -> Iterator[list[Work]]:
        self.queue = queue
        self._take(first)
        while True:
            self._fill(queue, stop)
            try:
                self._advance(stop)
            except Exception as error:  # of all together: out of memory, or a fault that shows in the backward pass
                self._part(error, queue)
            over = [work for slot, work in self.works.items() if slot in self._over()]
            if not over:
                return
            for work in over:
                work.attempt(partial(save_adapters, work))
            yield over
            self.works = {slot: work for slot, work in self.works.items() if work not in over}

    def _fill(self, queue: Queue, stop: Callable[[], bool]) -> None:
        while len(self.works) < self.bank.cells and not stop() and (work := queue.take(self.fits)) is not None:
            self._take(work)

    def _take(self, work: Work) -> None:
        """Give the work a free slot and begin its training there."""
        work.slot = min(set(range(self.bank.cells)) - set(self.works))
        self.works[work.slot] = work
        work.bank = self.bank
        work.attempt(lambda: self._begin(work))

    def _begin(self, work: Work) -> None:
        assert work.slot is not None
        self.bank.start(work.slot, generator("adapters", work.cell.seed))
        if work.method.recipe is not None:
            if self.requested in (True, "graphs") and not self.offered:
                work.note("trainer.compile left out: only low-rank adapters without dropout train in compiled blocks")
            with work.clock("train_s"):
                self.training.add(training_job(work))

    def _over(self) -> set[int]:
        """Slots whose training is over: at its end, failed, or never begun."""
        under_way = {run.job.cell for run in self.training.live} | self.training.let_go
        return set(self.works) - under_way

    def _advance(self, stop: Callable[[], bool]) -> None:
        """Train until some work is over, or all are let go."""
        if self._over() or not self.training.live:
            return
        jobs = [run.job for run in self.training.live]
        name, more = self.works[jobs[0].cell].cell.run_id, f" and {len(jobs) - 1} more" * (len(jobs) > 1)
        try:
            for _ in progress(self._steps(stop), f"train {name}{more}", "step", self._left()):
                pass
        finally:
            self.backends.lay(channels_last=False)

    def _part(self, error: Exception, queue: Queue) -> None:
        """One work alone has failed. Of several, half as many at a time go on from their checkpoints in other slots."""
        works, self.training.live = list(self.works.values()), []
        if len(works) == 1:
            works[0].error = error
            return
        self.most, self.works = len(works) // 2, {}
        log.warning("%d cells could not go on together (%s); from here %d at a time.", len(works), error, self.most)
        for work in works:
            work.leave_bank()
        queue.aside[:0] = works

    def _steps(self, stop: Callable[[], bool]) -> Iterator[None]:
        """Steps of the work that will be over first; when it takes several ticks, other works end theirs between."""
        left = self._left()
        while self.training.live and not self._over():
            self.training.stopping = self.training.stopping or stop()
            self._tick()
            if self._over() or self._left() < left:
                left = self._left()
                yield

    def _tick(self) -> None:
        """One tick, its seconds split evenly among the works that took part."""
        self._leave_lost()
        sharing = [self.works[run.job.cell] for run in self.training.live]
        if not sharing:
            return
        timing, started = self._timing(len(sharing)), time.perf_counter()
        steps = []
        with timing.running():
            for step in self.training.tick():
                log_step(self.works[step.cell], step)
                steps.append(step)
        seconds = time.perf_counter() - started
        spent = [("train_s", seconds / len(sharing)), ("ticks", 1), ("sharing", len(sharing))]
        for work in sharing:
            for what, amount in spent + [(backend, 1) for backend in timing.ran()]:
                work.spend(what, amount)
            if timing.ran() != timing.on:
                work.note(str(self.backends.failure))
        timing.passed(seconds, self._ticks_left())
        for step in steps:
            preview(self.works[step.cell], step)

    def _leave_lost(self) -> None:
        """Works that another process took over while this one was paused end here, without a trace."""
        for run in [run for run in self.training.live if self.works[run.job.cell].is_lost()]:
            work = self.works[run.job.cell]
            work.attempt(work.heed)
            self.training.live.remove(run)

    def _timing(self, cells: int) -> Timing:
        """How ticks of so many cells run: others would be compiled anew."""
        if cells not in self.timings:
            method = self.first.method
            kind = (type(method), repr(self.specs), getattr(method.recipe, "batch_size", 0), self.bank.cells, cells)
            tried = self.backends.tried.setdefault(kind, {}) if self.requested == "auto" else {"compile": True}
            self.timings[cells] = Timing(self.backends, self.offered, tried, self.requested == "graphs")
        return self.timings[cells]

    def _left(self) -> int:
        """Steps until the first work is over."""
        return min((run.job.recipe.steps - run.k for run in self.training.live), default=0)

    def _ticks_left(self) -> int:
        """Ticks to come, at least, with as many cells as now."""
        runs = self.training.live
        waiting = self.queue.count // self.bank.cells if len(runs) == self.bank.cells else 0
        return self._left() + waiting * max((run.job.recipe.steps for run in runs), default=0)
