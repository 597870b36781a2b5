"""Result files of a study joined with its key: votes of raters who passed the attention checks, and their agreement."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import reading
from bench.contracts import BenchError
from bench.study.make import FORMAT

log = logging.getLogger(__name__)
CHOICES = ("left", "right", "none")


@dataclass(frozen=True)
class Vote:
    """One rater's answer to one comparison."""

    rater: str
    trial: str
    choice: str  # of CHOICES
    left: str  # items
    right: str
    unit: str  # dataset and prompt: what an interval resamples

    @property
    def winner(self) -> str | None:
        return {"left": self.left, "right": self.right}.get(self.choice)


@dataclass(frozen=True)
class Rater:
    """How carefully somebody answered."""

    name: str
    answered: int
    checks: int
    missed: int
    repeats: int
    consistent: int
    left: int
    kept: bool
    reason: str = ""


@dataclass(frozen=True)
class Judged:
    """The answers of a judge (`bench.study.judge`); attention checks are not asked of it."""

    name: str
    id: str
    votes: Sequence[Vote]  # comparisons only
    steady: float  # share of the comparisons in which both orders of the two pictures gave the same choice


@dataclass(frozen=True)
class Answers:
    """What a study brought in."""

    key: Mapping[str, Any]
    votes: Sequence[Vote]  # of the raters kept, comparisons only
    raters: Sequence[Rater]
    judges: Sequence[Judged] = ()

    @property
    def items(self) -> list[str]:
        compared = [trial for trial in self.key["trials"].values() if trial["kind"] == "compare"]
        return sorted({trial[side]["item"] for trial in compared for side in ("left", "right")})


def read(key_path: Path, files: Sequence[Path], most_missed: int = 0) -> Answers:
    """Raises BenchError for a file of another study, the same session twice, or answers that the key does not know."""
    key = _json(key_path, "trials")
    _check_key(key, key_path)
    results = [result for path in files if (result := _result(path, key)) is not None]
    if not results:
        raise BenchError(f"No result file can be read; give those that raters sent for {key_path}.")
    sessions = Counter((result["rater"], result["session"]) for result in results)
    names = Counter(result["rater"] for result in results)
    twice = [rater for (rater, _), n in sessions.items() if n > 1] or [rater for rater, n in names.items() if n > 1]
    if twice:
        raise BenchError(f"Rater {twice[0]!r} is in several of the files; keep one file of each rater.")
    people = [result for result in results if result["judge"] is None]
    raters = [_rater(result, key, most_missed) for result in people]
    kept = [result for result, rater in zip(people, raters, strict=True) if rater.kept]
    judges = [_judged(result, key) for result in results if result["judge"] is not None]
    return Answers(key, [vote for result in kept for vote in _votes(result, key)], raters, judges)


def _json(path: Path, field: str) -> dict[str, Any]:
    try:
        found = reading.mapping(path)
    except (OSError, BenchError) as error:
        raise BenchError(f"{path} cannot be read as JSON ({error}); give a key.json and result files.") from None
    if found.get("format") != FORMAT or field not in found:
        raise BenchError(f"{path} is no file of a study of format {FORMAT}: it has no {field!r}.")
    return found


SIDE: dict[str, Any] = {"item": str, "run_id": str, "strength": (int, float)}
COMPARISON: dict[str, Any] = {"left": dict, "right": dict, "dataset": str, "prompt": str}
KINDS: dict[str, dict[str, Any]] = {"compare": COMPARISON, "repeat": {"of": str}, "check": {"answer": str}}


def _check_key(key: Mapping[str, Any], path: Path) -> None:
    try:
        reading.check(key, {"study": str, "question": str, "trials": dict})
        for name, trial in key["trials"].items():
            reading.check({f"trial {name}": trial}, {f"trial {name}": dict})
            _check_trial(trial, key["trials"], f"trial {name}: ")
    except BenchError as error:
        raise BenchError(f"{path} is no whole key of a study ({error}); give the key.json of the study.") from None


def _check_trial(trial: Mapping[str, Any], trials: Mapping[str, Any], where: str) -> None:
    reading.check(trial, {"kind": str}, where)
    if trial["kind"] not in KINDS:
        raise reading.Damaged(f"{where}kind is {trial['kind'][:60]!r}")
    reading.check(trial, KINDS[trial["kind"]], where)
    for side in ("left", "right") if trial["kind"] == "compare" else ():
        reading.check(trial[side], SIDE, f"{where}{side}.")
    if trial["kind"] == "check" and trial["answer"] not in CHOICES[:2]:
        raise reading.Damaged(f"{where}answer is {trial['answer'][:60]!r}")
    if trial["kind"] == "repeat" and trial["of"] not in trials:
        raise reading.Damaged(f"{where}it repeats {trial['of'][:60]!r}, which is no trial")


def _result(path: Path, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """The answers in a file; a damaged file costs a warning line."""
    try:
        found = reading.mapping(path, answers=list)
        reading.check({"rater": "", "session": 0} | found, {"rater": str, "session": (str, int, float, type(None))})
        for answer in found["answers"]:
            reading.check({"answer": answer}, {"answer": dict})
            reading.check({"trial": "", "choice": ""} | answer, {"trial": str, "choice": (str, type(None))}, "answer.")
        _check_judge(found)
    except (OSError, BenchError) as error:
        log.warning("%s was left out: %s.", path, error)
        return None
    result = _json(path, "answers")
    if result.get("study") != key["study"]:
        raise BenchError(f"{path} answers study {result.get('study')}, the key is of {key['study']}; give its own key.")
    answers = {answer.get("trial"): answer.get("choice") for answer in result["answers"] if answer.get("choice")}
    odd = [str(k) for k, choice in answers.items() if k not in key["trials"] or choice not in CHOICES]
    if odd:
        raise BenchError(f"{path} has an answer that the key does not know, to trial {odd[0]}; ask its rater again.")
    orders = {answer.get("trial"): answer.get("left") for answer in result["answers"]}
    about = {"judge": result.get("judge"), "orders": orders}
    return {"rater": str(result.get("rater")), "session": result.get("session"), "answers": answers} | about


def _check_judge(found: Mapping[str, Any]) -> None:
    """The two probabilities of each answer of a judge. Raises Damaged."""
    about = found.get("judge")
    if about is None:
        return
    reading.check({"judge": about}, {"judge": dict})
    reading.check(about, {"name": str, "id": str}, "judge.")
    for answer in found["answers"]:
        left = answer.get("left")
        pair = isinstance(left, list) and len(left) == 2
        if not pair or not all(isinstance(chance, float) and 0 <= chance <= 1 for chance in left):
            raise reading.Damaged(f"answer.left is {str(left)[:60]!r}")


def _rater(result: Mapping[str, Any], key: Mapping[str, Any], most_missed: int) -> Rater:
    answers, trials = result["answers"], key["trials"]
    checks = [k for k, trial in trials.items() if trial["kind"] == "check"]
    missed = [k for k in checks if answers.get(k) != trials[k]["answer"]]
    again = [k for k, trial in trials.items() if trial["kind"] == "repeat" and {k, trial["of"]} <= set(answers)]
    same = [k for k in again if answers[k] == _mirrored(answers[trials[k]["of"]])]
    compared = [answers[k] for k, trial in trials.items() if trial["kind"] == "compare" and k in answers]
    reason = f"missed {len(missed)} of {len(checks)} attention checks" if len(missed) > most_missed else ""
    left = compared.count("left")
    return Rater(
        result["rater"], len(compared), len(checks), len(missed), len(again), len(same), left, not reason, reason
    )


def _judged(result: Mapping[str, Any], key: Mapping[str, Any]) -> Judged:
    votes = _votes(result, key)
    orders = [result["orders"][vote.trial] for vote in votes]
    same = [(first - 0.5) * (second - 0.5) > 0 for first, second in orders]
    steady = sum(same) / len(same) if same else math.nan
    return Judged(result["judge"]["name"], result["judge"]["id"], votes, steady)


def _mirrored(choice: str) -> str:
    return {"left": "right", "right": "left"}.get(choice, choice)


def _votes(result: Mapping[str, Any], key: Mapping[str, Any]) -> list[Vote]:
    requested = {
        k: trial for k, trial in key["trials"].items() if trial["kind"] == "compare" and k in result["answers"]
    }
    return [
        Vote(result["rater"], k, result["answers"][k], trial["left"]["item"], trial["right"]["item"],
             f"{trial['dataset']}: {trial['prompt']}")
        for k, trial in requested.items()
    ]  # fmt: skip


def alpha(votes: Sequence[Vote]) -> float:
    """Krippendorff's alpha of the choices, nominal; 1 is full agreement, 0 chance. NaN where two raters never met."""
    import krippendorff
    import numpy as np

    raters, trials = sorted({v.rater for v in votes}), sorted({v.trial for v in votes})
    table = np.full((len(raters), len(trials)), np.nan)
    for vote in votes:
        table[raters.index(vote.rater), trials.index(vote.trial)] = CHOICES.index(vote.choice)
    met = (~np.isnan(table)).sum(axis=0) > 1 if len(raters) else np.zeros(0, bool)
    if len(np.unique(table[:, met][~np.isnan(table[:, met])])) < 2:
        return math.nan  # nobody met, or everybody always chose the same side: chance agreement is not known
    return float(krippendorff.alpha(reliability_data=table, level_of_measurement="nominal"))
