"""Share of images in which a classifier of drawings reads the requested thing, and the artist's style.

The classifier (`bench.mini.readers`) was trained on real drawings by all artists; the backbone has nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from bench.contracts import Evaluation, Impossible, Metric, Quantity, Score
from metrics.features import feature_store
from metrics.fingerprint import fingerprint
from metrics.networks import ReadersNet

QUESTIONS = {"reads_content": "thing", "reads_style": "artist"}
SOURCE = "this project"


class Reads(Metric):
    """Share of images that show the requested thing, and share that are in the artist's style, in percent."""

    higher_is_better: ClassVar = {"reads_content": True, "reads_style": True}
    quantities: ClassVar = {
        "reads_content": Quantity(
            "Content read", "100 x share of y read as the thing of q", "0 to 100", SOURCE, "percent", "100"
        ),
        "reads_style": Quantity(
            "Style read", "100 x share of y read as by the dataset's artist", "0 to 100", SOURCE, "percent", "100"
        ),
    }

    def __init__(self, network: ReadersNet):
        self.network = network

    def missing(self) -> str | None:
        return self.network.missing()

    def score(self, evaluation: Evaluation) -> Score:
        """Impossible where the dataset does not say what a prompt shows, or in classes that the readers know."""
        expected = [_classes(evaluation, prompt) for prompt in evaluation.prompts]
        said = feature_store(evaluation.cache).features(evaluation.images, self.network).astype(int)
        right = {}
        for name, question in QUESTIONS.items():
            answers = self.network.classes[question]
            column = list(self.network.classes).index(question)
            unknown = {classes[question] for classes in expected} - set(answers)
            if unknown:
                raise Impossible(f"The readers know no {question} called {sorted(unknown)[0]!r}.")
            found = [answers[k] for k in said[:, column]]
            right[name] = 100.0 * np.array([a == b[question] for a, b in zip(found, expected, strict=True)])
        return Score(
            {name: float(values.mean()) for name, values in right.items()},
            right,
            fingerprint(f"reads {self.version}", len(said), self.network),
            [self._own_accuracy()],
        )

    def _own_accuracy(self) -> str:
        shares = ", ".join(f"{question} {share:.1%}" for question, share in self.network.accuracy.items())
        return f"the readers' own accuracy on real drawings that they were not trained on: {shares or 'not measured'}"


def _classes(evaluation: Evaluation, prompt: str) -> Mapping[str, str]:
    true = evaluation.dataset.truth(prompt) if evaluation.dataset.truth else None
    if true is None:
        raise Impossible(f"{evaluation.dataset.name} does not say which thing by which artist {prompt!r} shows.")
    return true.classes
