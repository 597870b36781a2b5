"""A judge whose answers are known: what it sees of two pictures is their pixels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metrics.networks import VisionLanguage

CALLS = []  # (labels, texts, answers) of every question of every call


def colours(picture):
    """Mean and spread of each channel, (6,), in 0 to 1."""
    x = np.asarray(picture, np.float64) / 255
    return np.concatenate([x.mean((1, 2)), x.std((1, 2))])


def outlines(picture):
    """Differences of brightness between neighbours, (P - 1, P - 1)."""
    grey = np.asarray(picture, np.float64).mean(0) / 255
    return np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]


def likeness(x, y):
    return float(np.exp(-8 * np.abs(x - y).mean()))


@dataclass(frozen=True, kw_only=True)
class Rigged(VisionLanguage):
    """`first` is what it adds to the probability of the first answer whatever it sees; `sure` its share of the words.

    With two pictures it says how much they are alike; with one, how colourful it is.
    """

    name: str = "rigged"
    model: str = "rigged"
    first: float = 0.0
    sure: float = 1.0

    def files(self):
        return (Path(__file__),)

    @property
    def recipe(self):
        return f"rigged {self.first} {self.sure}"

    def ask(self, pictures, labels, questions):
        CALLS.append((tuple(labels), [tuple(q.texts) for q in questions], [q.answers for q in questions]))
        return [np.stack([self._answer(row, text, q.answers) for row, text in zip(pictures, q.texts, strict=True)])
                for q in questions]  # fmt: skip

    def _answer(self, row, text, answers):
        share = np.clip(self._seen(row, text) + self.first, 0, 1)
        if len(answers) == 5:  # its grade is 1 + 4 share, split between the two neighbours
            grades = np.maximum(0, 1 - np.abs(np.arange(5) - 4 * share))
        else:
            grades = np.array([share, 1 - share])
        return np.array([*grades, self.sure], np.float32)

    def _seen(self, row, text):
        if len(row) == 1:
            return float(np.ptp(np.asarray(row[0], np.float64).mean((1, 2)))) / 255
        look = colours if "Compare the artistic style" in text else outlines
        return likeness(look(row[0]), look(row[1]))
