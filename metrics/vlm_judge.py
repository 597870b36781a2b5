"""A vision-language model as the judge of images: closed questions, answered by probabilities (docs/judge.md).

A yes or no question gives P(yes) among the two; a grade from 1 to 5 gives its expectation (Liu et al. 2023, G-Eval,
section 3). Two pictures are shown in both orders and the answers averaged, as judges prefer a place (Zheng et al. 2023,
arXiv 2306.05685, section 4). Answers are kept with the features: the same pictures are asked about once.
Shapes: N images, M training images, A answers, P pixels per side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from bench.contracts import Evaluation, Images, Impossible, Metric, Quantity, Score
from bench.data.images import image_keys
from metrics.features import feature_store, joined, text_key
from metrics.fingerprint import fingerprint
from metrics.networks.vision_language import ROWS, Asked, VisionLanguage
from metrics.training_images import style

YES_NO, GRADES = ("yes", "no"), ("1", "2", "3", "4", "5")
SURE = 0.5  # the least share of the vocabulary that the allowed answers should have
LABELS = ("Picture 1", "Picture 2")


@dataclass(frozen=True)
class Question:
    """`text` may hold {prompt} or {noun}."""

    text: str
    answers: tuple[str, ...]

    def value(self, answer: np.ndarray) -> np.ndarray:
        """P(yes) or the expected grade, (..., A) -> (...), float64."""
        weights = np.arange(1, 6) if self.answers == GRADES else np.array([1, 0])
        return np.asarray(answer, np.float64) @ weights


STYLE = Question(
    "Compare the artistic style of the two pictures: colours, lines, texture, technique and light. Ignore what they "
    "show. How similar are the two styles? Answer with one number from 1 (entirely different) to 5 (the same style).",
    GRADES,
)
LEAK = Question(
    "Ignore the artistic style. Do the two pictures show the same objects or figures in the same arrangement, as if "
    "one was copied from the other? Answer yes or no.",
    YES_NO,
)
CONTENT = Question(
    "Compare what the two pictures show: the objects, their number, their shapes and where they are. Ignore the "
    "artistic style. How much of the content is the same? Answer with one number from 1 (nothing) to 5 (everything).",
    GRADES,
)
SUBJECT = Question(
    "Compare the {noun} in the two pictures: shape, colours, texture and details. Ignore the background. How similar "
    "are they? Answer with one number from 1 (entirely different) to 5 (the very same {noun}).",
    GRADES,
)
PROMPT = Question('Does this figure show "{prompt}"? Please answer yes or no.', YES_NO)
QUESTIONS = {"style": STYLE, "leak": LEAK, "content": CONTENT, "subject": SUBJECT, "prompt": PROMPT}


class Judging(Metric):
    """What the judge's numbers share: the model, the questions, and the training images that it is shown."""

    label: ClassVar[str]

    def __init__(self, network: VisionLanguage, examples: int = 4):
        self.network, self.examples = network, examples

    def identity(self) -> list[str]:
        return [*super().identity(), *_texts()]

    def missing(self) -> str | None:
        return self.network.missing()

    def _score(self, evaluation: Evaluation, asked: Interview, per_image: dict[str, np.ndarray]) -> Score:
        made = fingerprint(
            f"{self.label} {self.version}", len(evaluation.images), self.network, self._shown(evaluation),
            questions=text_key(" ".join(_texts())), judge=self.network.digest,
        )  # fmt: skip
        return Score({name: float(x.mean()) for name, x in per_image.items()}, per_image, made, asked.notes())

    def _shown(self, evaluation: Evaluation) -> np.ndarray:
        """The training images, uint8 (M, 3, P, P); Impossible where there are none."""
        return style(evaluation.dataset)[: self.examples]


def _texts() -> list[str]:
    return [question.text for question in QUESTIONS.values()]


def grade(name: str, formula: str, source: str, heading: str, ideal: str = "5") -> Quantity:
    return Quantity(name, formula, "1 to 5", source, "grade", ideal, heading)


class Judge(Judging):
    """Answers of a vision-language model about style, content and prompt (docs/judge.md).

    Style is compared with the first `examples` training images. A judge whose agreement with people was not measured
    (`python -m bench.study`) has a footnote in tables.
    """

    label = "judge"
    higher_is_better: ClassVar = {
        "judge_style": True,
        "judge_content": True,
        "judge_subject": True,
        "judge_prompt": True,
    }
    quantities: ClassVar = {
        "judge_style": grade(
            "Style likeness, by the judge", "mean E[grade of y and s]", "this project; Peng et al. 2024", "Judge: style"
        ),
        "judge_content": grade(
            "Content kept, by the judge", "mean E[grade of y and y0]", "this project; Peng et al. 2024",
            "Judge: content", "high, but 5 can mean that nothing was learned",
        ),
        "judge_subject": grade(
            "Likeness of the subject, by the judge", "mean E[grade of y and s]", "after Peng et al. 2024, DreamBench++",
            "Judge: subject",
        ),
        "judge_prompt": Quantity(
            "Prompt followed, by the judge", "mean P(yes; y, q)", "0 to 1", "Lin et al. 2024, VQAScore", "share", "1",
            "Judge: prompt",
        ),
    }  # fmt: skip

    def score(self, evaluation: Evaluation) -> Score:
        asked, shown = Interview(self.network, evaluation), self._shown(evaluation)
        if evaluation.dataset.style_words is None:
            about = Question(SUBJECT.text.format(noun=evaluation.dataset.noun), GRADES)
            per_image = {"judge_subject": asked.pairs(evaluation.images, shown, [about])[0].mean(axis=1)}
        else:
            likeness, _ = asked.pairs(evaluation.images, shown, [STYLE, LEAK])  # (N, M)
            content = asked.matched(evaluation.images, evaluation.baseline, CONTENT)
            per_image = {"judge_style": likeness.mean(axis=1), "judge_content": content}
        per_image["judge_prompt"] = asked.prompts(evaluation.images, evaluation.prompts)
        return self._score(evaluation, asked, per_image)


class JudgeLeak(Judging):
    """Whether a vision-language model sees training images copied (docs/judge.md).

    It is what the customised model adds to the answer for the untouched backbone's image of the same noise.
    """

    label = "judge_leak"
    copying: ClassVar = True
    higher_is_better: ClassVar = {"judge_leak": False}
    quantities: ClassVar = {
        "judge_leak": Quantity(
            "Leakage of training images, by the judge",
            "mean [max over s of P(yes; y, s) - max over s of P(yes; y0, s)]",
            "-1 to 1; positive is leakage",
            "this project",
            "share",
            "0",
            "Judge: leak",
        )
    }

    def score(self, evaluation: Evaluation) -> Score:
        """Impossible for a subject, which is to be copied. The questions of `Judge` about style are asked with it."""
        if evaluation.dataset.style_words is None:
            raise Impossible(f"{evaluation.dataset.name} is a subject, which its images are to repeat.")
        asked, shown = Interview(self.network, evaluation), self._shown(evaluation)
        sets = (evaluation.images, evaluation.baseline)
        after, before = (asked.pairs(images, shown, [STYLE, LEAK])[1].max(axis=1) for images in sets)
        return self._score(evaluation, asked, {"judge_leak": after - before})


Shown = tuple[Images, Sequence[int]]  # images, and which of them stand in one place of each row


class Interview:
    """Questions put to a model about the images of one evaluation."""

    def __init__(self, network: VisionLanguage, evaluation: Evaluation):
        self.network, self.store = network, feature_store(evaluation.cache)
        self.shares: list[np.ndarray] = []  # of the vocabulary
        self.gaps: dict[str, list[np.ndarray]] = {}  # between the two orders, by unit

    def prompts(self, images: Images, prompts: Sequence[str]) -> np.ndarray:
        """P(yes) that each image shows its prompt, float64 (N,)."""
        texts = [[PROMPT.text.format(prompt=prompt)] for prompt in prompts]
        return PROMPT.value(self._answers([(images, range(len(images)))], texts, [PROMPT])[0])

    def pairs(self, images: Images, others: Images, questions: Sequence[Question]) -> list[np.ndarray]:
        """Values of every image beside every other one, a float64 (N, M) for each question."""
        n, m = len(images), len(others)
        rows = np.repeat(np.arange(n), m), np.tile(np.arange(m), n)
        found = self._in_both_orders((images, rows[0]), (others, rows[1]), questions)
        return [values.reshape(n, m) for values in found]

    def matched(self, images: Images, others: Images, question: Question) -> np.ndarray:
        """Values of each image beside the other one of its row, float64 (N,)."""
        rows = range(len(images))
        return self._in_both_orders((images, rows), (others, rows), [question])[0]

    def _in_both_orders(self, first: Shown, second: Shown, questions: Sequence[Question]) -> list[np.ndarray]:
        texts = [[question.text for question in questions]] * len(first[1])
        straight, exchanged = (self._answers(pair, texts, questions) for pair in ([first, second], [second, first]))
        values = []
        for question, *answers in zip(questions, straight, exchanged, strict=True):
            one, other = (question.value(answer) for answer in answers)
            self.gaps.setdefault("grades" if question.answers == GRADES else "of P(yes)", []).append(abs(one - other))
            values.append((one + other) / 2)
        return values

    def _answers(
        self, shown: Sequence[Shown], texts: Sequence[Sequence[str]], questions: Sequence[Question]
    ) -> list[np.ndarray]:
        """Probabilities float32 (N, A) for each question; `texts` are the questions of each row."""
        names = zip(*(np.array(image_keys(images))[list(rows)] for images, rows in shown), strict=True)
        keys = [joined([*pictures, *map(text_key, asked)]) for pictures, asked in zip(names, texts, strict=True)]
        answers = [question.answers for question in questions]

        def compute(rows: list[int]) -> np.ndarray:
            parts = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]
            return np.concatenate([self._ask(shown, texts, answers, part) for part in parts])

        found = self.store.lookup(keys, f"{self.network.id} answers {answers}", compute)
        each = np.split(found, np.cumsum([len(some) + 1 for some in answers])[:-1], axis=1)
        self.shares += [answer[:, -1] for answer in each]
        return [answer[:, :-1] for answer in each]

    def _ask(
        self,
        shown: Sequence[Shown],
        texts: Sequence[Sequence[str]],
        answers: Sequence[tuple[str, ...]],
        part: list[int],
    ) -> np.ndarray:
        pictures = np.stack([images[[int(rows[k]) for k in part]] for images, rows in shown], axis=1)  # (B, K, 3, P, P)
        asked = [Asked([texts[row][k] for row in part], some) for k, some in enumerate(answers)]
        labels = LABELS if len(shown) > 1 else LABELS[:1]
        return np.concatenate(self.network.ask(pictures, labels, asked), axis=1)

    def notes(self) -> list[str]:
        """How much the order of two pictures mattered, and whether the model wanted to say something else."""
        said = [f"{np.concatenate(gaps).mean():.2g} {unit}" for unit, gaps in self.gaps.items()]
        found = [f"the two orders of pictures differ by {' and '.join(said)} on average"] if said else []
        share = float(np.concatenate(self.shares).mean())
        if share < SURE:
            found.append(
                f"the allowed answers have {share:.0%} of the probability of all that {self.network.name} could say: "
                "it wants to say something else, so do not trust it"
            )
        return found
