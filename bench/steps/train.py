"""Train: cells share the slots of a pack where backbone and adapters allow it; others wait for slots of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from bench.steps.slots import Queue, Size, Slots
from bench.steps.work import Work


def train(works: Iterator[Work], size: Size, stop: Callable[[], bool], count: int = 1) -> Iterator[list[Work]]:
    """Works whose training is over, well or not, in lists of those that ended together and can be sampled together.

    They keep their slots until the next list is requested. Works that fit none of the slots wait for other ones.
    """
    queue = Queue(works, count)
    while not stop() and (first := queue.take()) is not None:
        slots = first.attempt(partial(Slots, first, size))
        if slots is None:
            yield [first]
            continue
        try:
            yield from slots.trained(first, queue, stop)
        finally:
            slots.close()
        size = slots.most or size
