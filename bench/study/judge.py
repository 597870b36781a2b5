"""A judge as one more rater: it reads the page of a study as people do, blind, and leaves a result file like theirs.

Its probability for the left picture is the mean of both orders of the two pictures; a half is "no difference".
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import paths, reading
from bench.contracts import BenchError, Comparison, Judge
from bench.files import atomic_write
from bench.settings import build
from bench.study.make import FORMAT

if TYPE_CHECKING:
    import numpy as np

DATA = '<script type="application/json" id="data">'
TRIAL: dict[str, Any] = {"id": str, "prompt": str, "left": str, "right": str, "example": list}


def configured(model: str | None) -> Judge:
    """The judge of conf/study.yaml, or the same with the model in a folder of the user's own."""
    import yaml

    spec = yaml.safe_load(paths.configuration("study.yaml").read_text())["judge"]
    if model is not None:
        spec["network"] |= {"model": model, "name": Path(model).name, "sha256": None}
    return build(spec, "judge")


def judge(page: Path, judge: Judge, out: Path) -> int:
    """Write the judge's answers to all trials of a page, and return how many. Raises BenchError."""
    study = read_page(page)
    lacking = judge.missing()
    if lacking:
        raise BenchError(lacking)
    shown = [_comparison(trial, study) for trial in study["trials"]]
    chances = judge.left_is_better(study["question"], shown)
    answers = [_answer(trial["id"], chance) for trial, chance in zip(study["trials"], chances, strict=True)]
    about = {"name": judge.name, "id": judge.id}
    result = {"format": FORMAT, "study": study["study"], "rater": judge.name, "session": judge.id, "judge": about}
    atomic_write(out, json.dumps(result | {"answers": answers}, indent=1).encode())
    return len(answers)


def _answer(trial: str, chances: np.ndarray) -> dict[str, Any]:
    """The choice by the mean of both orders; `left` keeps the two probabilities."""
    mean = float(chances.mean())
    choice = "none" if mean == 0.5 else "left" if mean > 0.5 else "right"
    return {"trial": trial, "choice": choice, "left": [float(chance) for chance in chances]}


def read_page(path: Path) -> dict[str, Any]:
    """The data of study.html. Raises BenchError when it is no page of a study."""
    try:
        study = reading.parsed(reading.text(path).partition(DATA)[2].partition("</script>")[0])
        reading.check(study, {"study": str, "question": str, "trials": list, "pictures": dict, "prefix": str})
        for trial in study["trials"]:
            reading.check({"trial": trial}, {"trial": dict})
            reading.check(trial, TRIAL, "trial.")
    except (OSError, BenchError) as error:
        raise BenchError(f"{path} is no page of a study ({error}); give the study.html that `make` wrote.") from None
    return study


def _comparison(trial: Mapping[str, Any], study: Mapping[str, Any]) -> Comparison:
    left, right, *examples = (_picture(name, study) for name in (trial["left"], trial["right"], *trial["example"]))
    return Comparison(left, right, tuple(examples), trial["prompt"])


def _picture(name: str, study: Mapping[str, Any]) -> np.ndarray:
    """uint8 (3, H, W)"""
    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(base64.b64decode(study["pictures"][name]))) as picture:
            return np.ascontiguousarray(np.asarray(picture.convert("RGB")).transpose(2, 0, 1))
    except (KeyError, TypeError, OSError, SyntaxError, ValueError, binascii.Error) as error:
        raise BenchError(f"The picture {name} of the study cannot be read ({error}); make the study again.") from None
