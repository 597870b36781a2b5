"""A vision-language model as a rater of a study: which of two pictures answers the question better?

It sees what raters see, and both orders of the two pictures. Shapes: N comparisons, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench import contracts
from bench.contracts import Comparison
from metrics.networks.vision_language import Asked, VisionLanguage

ANSWERS = ("A", "B")
TEXT = '{question} The text: "{prompt}". Answer A or B.'


class PreferenceJudge(contracts.Judge):
    """P(A) of two pictures called A and B, beside at most `examples` of the training images."""

    def __init__(self, network: VisionLanguage, examples: int = 4):
        self.network, self.examples, self.name = network, examples, network.name

    @property
    def id(self) -> str:
        return self.network.digest

    def missing(self) -> str | None:
        return self.network.missing()

    def left_is_better(self, question: str, comparisons: Sequence[Comparison]) -> np.ndarray:
        """float64 (N, 2); comparisons whose pictures have one size are asked about together."""
        found = np.empty((len(comparisons), 2))
        shown = [self._pictures(one) for one in comparisons]
        shapes = [tuple(picture.shape for picture in pictures) for pictures in shown]
        for shape in dict.fromkeys(shapes):
            rows = [row for row, own in enumerate(shapes) if own == shape]
            texts = [TEXT.format(question=question, prompt=comparisons[row].prompt) for row in rows]
            straight, exchanged = (self._first(shown, rows, texts, order) for order in ((-2, -1), (-1, -2)))
            found[rows] = np.stack([straight, 1 - exchanged], axis=1)
        return found

    def _pictures(self, comparison: Comparison) -> list[np.ndarray]:
        """The examples, then the left and the right picture."""
        return [*comparison.examples[: self.examples], comparison.left, comparison.right]

    def _first(
        self, shown: Sequence[list[np.ndarray]], rows: Sequence[int], texts: Sequence[str], order: tuple[int, int]
    ) -> np.ndarray:
        """P(A), float64 (rows,), when the two pictures stand in this order."""
        pictures = [[*shown[row][:-2], *(shown[row][place] for place in order)] for row in rows]
        (answer,) = self.network.ask(pictures, labels(len(pictures[0]) - 2), [Asked(texts, ANSWERS)])
        return answer[:, 0].astype(np.float64)


def labels(examples: int) -> list[str]:
    """What is written beside the pictures: examples as on the page of a study, then A and B."""
    written = ["Plain", "Example of the style"] if examples == 2 else ["Example"] * examples
    return [*written, *(f"Picture {name}" for name in ANSWERS)]
