"""Where the cells of a pack train: seats on one bank of adapters. Who ends leaves, one that waits takes the seat."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from bench.adapters.bank import Bank
from bench.contracts import FullSpec
from bench.progress import progress
from bench.seeding import generator
from bench.training.compiling import Pace, offered, ways_of
from bench.training.trainer import Training
from bench.work import Work, draw

log = logging.getLogger(__name__)
Size = int | Callable[[Work], int]  # of a pack, or what tells it from the first cell


def trained(works: Iterator[Work], size: Size, stop: Callable[[], bool], count: int = 1) -> Iterator[list[Work]]:
    """Works whose training is over, well or not, in lists of those that ended together and can be sampled together.

    They keep their seats until the next list is asked for. Works that fit none of the seats wait for other ones.
    """
    queue = Queue(works, count)
    while not stop() and (first := queue.take()) is not None:
        seats = first.attempt(partial(Seats, first, size))
        if seats is None:
            yield [first]
            continue
        try:
            yield from seats.trained(first, queue, stop)
        finally:
            seats.close()
        size = seats.most or size


def sample(works: Sequence[Work]) -> None:
    """Draw together what works of one bank lack; what cannot be drawn together is left for each to draw alone."""
    sound = [work for work in works if work.error is None]
    for strength in dict.fromkeys(s for work in sound for s in work.cell.strengths):
        for group in _groups([work for work in sound if _to_draw(work, strength)]):
            try:
                for work, images in zip(group, draw(group, strength), strict=True):
                    work.keep(strength, images)
            except Exception as error:
                log.warning("%d cells could not be sampled together (%s); each is sampled alone.", len(group), error)


def _to_draw(work: Work, strength: float) -> bool:
    """Whether images must be drawn."""
    if strength not in work.cell.strengths or not work.lacks_images(strength):
        return False
    return work.attempt(lambda: work.undrawn(strength)) is None and work.error is None


def _groups(works: Sequence[Work]) -> Iterator[list[Work]]:
    """Works with equally many images, so few that together they fill one batch of the sampler.

    One whose own images fill it is drawn alone: rows of one cell are quicker than as many rows of several.
    """
    by_count: dict[int, list[Work]] = {}
    for work in works:
        by_count.setdefault(len(work.shots), []).append(work)
    for group in by_count.values():
        most = max(1, group[0].sampler.batch // max(1, len(group[0].shots)))
        parts = [group[i : i + most] for i in range(0, len(group), most)]
        yield from (part for part in parts if len(part) > 1)


class Queue:
    """Works that wait, about `count`. One that was looked at and did not fit waits aside, for its own seats."""

    def __init__(self, works: Iterator[Work], count: int):
        self.works, self.count = works, count
        self.aside: list[Work] = []

    def take(self, fits: Callable[[Work], bool] = lambda work: True) -> Work | None:
        """The next one that fits. At most one that does not is taken along: others may claim what is left."""
        if not self.aside:
            self.aside += [work for work in [next(self.works, None)] if work is not None]
            self.count = max(0, self.count - 1)
        found = next((work for work in self.aside if fits(work)), None)
        if found is not None:
            self.aside.remove(found)
        return found


class Seats:
    """Up to `size` works on one bank, with the adapters that the first of them asks for."""

    def __init__(self, first: Work, size: Size):
        self.first = first
        self.specs = first.specs()
        alone = any(isinstance(spec, FullSpec) for spec in self.specs.values())
        seats = 1 if alone else size(first) if callable(size) else size
        self.bank = Bank(first.backbone, self.specs, [], seats)
        self.training = Training(self.bank)
        self.ways, self.paces = ways_of(first.backbone), dict[int, Pace]()  # cells in a tick -> how it runs
        self.asked = first.trainer.compile
        self.offered = offered(self.asked, first.backbone, self.specs)
        self.works: dict[int, Work] = {}  # seat -> work
        self.most: int | None = None  # works that may share seats from now on, when too many could not

    def close(self) -> None:
        self.bank.close()

    def fits(self, work: Work) -> bool:
        """Whether the work can share these seats; one with an error can sit anywhere, it leaves at once."""
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
            over = [work for seat, work in self.works.items() if seat in self._over()]
            if not over:
                return
            for work in over:
                work.attempt(work.save_adapters)
            yield over
            self.works = {seat: work for seat, work in self.works.items() if work not in over}

    def _fill(self, queue: Queue, stop: Callable[[], bool]) -> None:
        while len(self.works) < self.bank.cells and not stop() and (work := queue.take(self.fits)) is not None:
            self._take(work)

    def _take(self, work: Work) -> None:
        """Give the work a free seat and begin its training there."""
        work.seat = min(set(range(self.bank.cells)) - set(self.works))
        self.works[work.seat] = work
        work.bank = self.bank
        work.attempt(lambda: self._begin(work))

    def _begin(self, work: Work) -> None:
        assert work.seat is not None
        self.bank.start(work.seat, generator("adapters", work.cell.seed))
        if work.method.recipe is not None:
            if self.asked in (True, "graphs") and not self.offered:
                work.note("trainer.compile left out: only low-rank adapters train in compiled blocks")
            with work.clock("train_s"):
                self.training.add(work.job())

    def _over(self) -> set[int]:
        """Seats whose training is over: at its end, failed, or never begun."""
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
            self.ways.lay(channels_last=False)

    def _part(self, error: Exception, queue: Queue) -> None:
        """One work alone has failed. Of several, half as many at a time go on from their checkpoints in other seats."""
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
        sharing = [self.works[run.job.cell] for run in self.training.live]
        pace, started = self._pace(len(sharing)), time.perf_counter()
        with pace.running():
            for step in self.training.tick():
                self.works[step.cell].log(step)
        seconds = time.perf_counter() - started
        spent = [("train_s", seconds / len(sharing)), ("ticks", 1), ("sharing", len(sharing))]
        for work in sharing:
            for what, amount in spent + [(way, 1) for way in pace.ran()]:
                work.spend(what, amount)
            if pace.ran() != pace.on:
                work.note(str(self.ways.failure))
        pace.passed(seconds, self._ticks_left())

    def _pace(self, cells: int) -> Pace:
        """How ticks of so many cells run: others would be compiled anew."""
        if cells not in self.paces:
            method = self.first.method
            kind = (type(method), repr(self.specs), getattr(method.recipe, "batch_size", 0), self.bank.cells, cells)
            tried = self.ways.tried.setdefault(kind, {}) if self.asked == "auto" else {"compile": True}
            self.paces[cells] = Pace(self.ways, self.offered, tried, self.asked == "graphs")
        return self.paces[cells]

    def _left(self) -> int:
        """Steps until the first work is over."""
        return min((run.job.recipe.steps - run.k for run in self.training.live), default=0)

    def _ticks_left(self) -> int:
        """Ticks to come, at least, with as many cells as now."""
        runs = self.training.live
        waiting = self.queue.count // self.bank.cells if len(runs) == self.bank.cells else 0
        return self._left() + waiting * max((run.job.recipe.steps for run in runs), default=0)
