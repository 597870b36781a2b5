"""The page of a study and its key. The page holds pictures and random ids; only the key knows whose a picture is."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contracts import BenchError
from bench.files import atomic_write
from bench.report import gather
from bench.report.gallery import Gallery, galleries
from bench.report.page import _json, asset, render
from bench.report.thumbnails import PREFIX, encoded, training
from bench.study.trials import Side, Trial, trials

QUESTION = "Which picture shows the style of the example better, and still shows what the text says?"
SIDE = 512  # most pixels of a picture
FORMAT = 1


@dataclass(frozen=True)
class Wishes:
    """What was asked of the study."""

    root: Path
    conditions: Sequence[str] = ()
    trials: int = 40
    checks: int = 4
    repeats: int = 4
    seed: int = 0
    question: str = QUESTION
    example: bool = True  # show the training images


def make(wishes: Wishes, folder: Path) -> tuple[Path, Path]:
    """Write study.html and key.json into a folder. Raises BenchError when the records give too few comparisons."""
    records, _ = gather.chosen(wishes.root, wishes.conditions)
    shown = galleries(records, wishes.root, [])
    if not shown:
        raise BenchError(
            f"No finished cell with images below {wishes.root} meets --where {' '.join(wishes.conditions)}."
        )
    requested = trials(shown, wishes.trials, wishes.checks, wishes.repeats, wishes.seed)
    study, page = _page(requested, shown, wishes)
    folder.mkdir(exist_ok=True)
    atomic_write(folder / "study.html", page.encode())
    atomic_write(folder / "key.json", json.dumps(_key(study, requested, shown, wishes), indent=1).encode())
    return folder / "study.html", folder / "key.json"


def _page(requested: Sequence[Trial], shown: Sequence[Gallery], wishes: Wishes) -> tuple[str, str]:
    """The name of the study, and its page."""
    pictures = Pictures(random.Random(f"pictures {wishes.seed}"))
    examples = [training(gallery, SIDE)["images"] if wishes.example else [] for gallery in shown]
    entries = [_entry(trial, shown, pictures, examples) for trial in requested]
    study = hashlib.sha256(json.dumps([entry["id"] for entry in entries]).encode()).hexdigest()[:12]
    content = {"study": study, "question": wishes.question, "trials": entries, "pictures": pictures.shuffled()}
    own = {name: asset(f"study.{name}", "bench.study") for name in ("css", "js")}
    data = _json(content | {"prefix": PREFIX, "format": FORMAT})
    page = render("study.html", "bench.study", data=data, question=wishes.question, count=len(entries), **own)
    return study, page


class Pictures:
    """Pictures under random names, each once."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.names: dict[str, str] = {}  # base64 -> name

    def name(self, text: str) -> str:
        return self.names.setdefault(text, f"{self.rng.getrandbits(64):016x}")

    def of(self, path: Path) -> str:
        """The name of an image file, encoded anew: nothing of its name or metadata is kept."""
        from PIL import Image

        try:
            with Image.open(path) as picture:
                return self.name(encoded(picture, SIDE, quality=92))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise BenchError(f"The image {path} cannot be read ({error}); run its cell again.") from None

    def shuffled(self) -> dict[str, str]:
        """Name -> picture, in an order that tells nothing."""
        return {name: text for name, text in sorted((name, text) for text, name in self.names.items())}


def _entry(trial: Trial, shown: Sequence[Gallery], pictures: Pictures, examples: Sequence[list]) -> dict[str, Any]:
    """What the page may know of a trial: a repeat looks like any other."""
    if trial.left is None or trial.right is None:
        left, right = [pictures.name(_written(side == trial.answer)) for side in ("left", "right")]
        return {"id": trial.id, "prompt": "Please read the two pictures.", "left": left, "right": right, "example": []}
    left, right = pictures.of(trial.left.path), pictures.of(trial.right.path)
    names = [pictures.name(image["data"]) for image in examples[trial.gallery]]
    prompt = shown[trial.gallery].prompt(trial.prompt)
    return {"id": trial.id, "prompt": prompt, "left": left, "right": right, "example": names}


def _written(wanted: bool) -> str:
    """A picture that says whether it is the one to choose: who does not look cannot know."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (256, 256), "#e8e8e8")
    text = "Attention check.\nChoose\nTHIS picture." if wanted else "Attention check.\nDo NOT choose\nthis picture."
    font = ImageFont.load_default(size=26)
    ImageDraw.Draw(picture).multiline_text((128, 128), text, fill="#202020", font=font, anchor="mm", align="center")
    return encoded(picture, 256)


def _key(study: str, requested: Sequence[Trial], shown: Sequence[Gallery], wishes: Wishes) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "study": study,
        "question": wishes.question,
        "seed": wishes.seed,
        "trials": {trial.id: _secret(trial, shown) for trial in requested},
    }


def _secret(trial: Trial, shown: Sequence[Gallery]) -> dict[str, Any]:
    if trial.left is None or trial.right is None:
        return {"kind": trial.kind, "answer": trial.answer}
    gallery = shown[trial.gallery]
    sides = {name: _whose(side) for name, side in (("left", trial.left), ("right", trial.right))}
    where = {"dataset": gallery.dataset, "prompt": gallery.prompt(trial.prompt), "seed": trial.seed}
    return {"kind": trial.kind, "of": trial.of, **where, **sides}


def _whose(side: Side) -> dict[str, Any]:
    return {"item": side.item, "run_id": side.run_id, "strength": side.strength}
