"""Pictures that anyone made for the prompts and seeds of a dataset, scored as they are (no paper).

Each picture is named by prompt and seed, as a record's images are (`004-s1.png`: fifth prompt, evaluation seed 1) or in
words (`a photo of a cat-s1.png`), or a CSV maps them: columns file, prompt (words or number) and seed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bench.contracts import Dataset, Impossible, Method, plain_guidance
from bench.data.decoding import read
from bench.data.image_files import image_name
from bench.data.image_folder import image_folder
from bench.data.text_tables import rows_of
from bench.errors import Unavailable
from bench.paths import located
from bench.sampling.sampler import shots

if TYPE_CHECKING:
    from bench.sampling.sampler import Shot

COLUMNS = ("file", "prompt", "seed")  # of a CSV
SHOWN = 5  # names in an error


@dataclass
class ExternalImages(Method):
    """The pictures of the folder `path`, one for each evaluation image; `file` is a CSV that maps them.

    Each is resized as a dataset's images are: the short side to the backbone's resolution (Lanczos, antialiased), then
    the centre. Errors list all that is missing, and every picture that no prompt asks for.
    """

    path: str | None = None
    file: str | None = None
    made_by: str = ""  # what is known of them; the yaml's footnote shows it
    strength: float = 1.0

    strength_knob: ClassVar[str] = "none"

    def missing(self) -> str | None:
        absent = [
            f"method.{key}={value} was requested, and there is no such {what}; correct the path."
            for key, value, what in (("path", self.path, "folder"), ("file", self.file, "file"))
            if value is not None and not (located(value).is_dir() if key == "path" else located(value).is_file())
        ]
        return absent[0] if absent else None

    def lacks(self, dataset: Dataset) -> str | None:
        self._pictures(dataset)
        return super().lacks(dataset)

    def from_baseline(self, baseline, dataset):
        return np.stack([read(picture, baseline.shape[-1]) for picture in self._pictures(dataset)])

    def prompts(self, prompt: str, dataset: Dataset) -> Mapping[str, str]:
        return {"content": prompt, "negative": "", "style": prompt}

    def guide(self, z, t, texts, cfg, strength):
        return (yield from plain_guidance(z, t, texts, cfg))

    def _pictures(self, dataset: Dataset) -> list[Path]:
        """One file for each evaluation image. Raises Unavailable for what is missing, doubled or not asked for."""
        if self.path is None:
            raise Impossible("method=external_images needs pictures; type method.path=/path/to/a/folder of them.")
        found = self._listed() if self.file is not None else _named(located(self.path))
        asked = [_keys(shot) for shot in shots(dataset)]
        chosen = [[path for key in keys for path in found.get(key, [])] for keys in asked]
        wrong = self._faults(dataset, found, chosen, asked)
        if wrong:
            raise Unavailable(f"{self.file or self.path} does not fit {dataset.name}: {', and '.join(wrong)}.")
        return [paths[0] for paths in chosen]

    def _faults(
        self,
        dataset: Dataset,
        found: Mapping[str, list[Path]],
        chosen: list[list[Path]],
        asked: list[list[str]],
    ) -> list[str]:
        called = [f"{image_name(shot.index, shot.seed)}.png ({shot.prompt})" for shot in shots(dataset)]
        known = {key for keys in asked for key in keys}
        absent = [name for name, paths in zip(called, chosen, strict=True) if not paths]
        doubled = [name for name, paths in zip(called, chosen, strict=True) if len(paths) > 1]
        spare = [path.name for key, paths in found.items() if key not in known for path in paths]
        gone = [path.name for paths in chosen for path in paths if not path.is_file()]
        kinds = {
            f"of {len(called)} pictures are missing": absent,
            "are there more than once": doubled,
            "belong to no prompt and seed (take them out, or ask for them with dataset.seeds)": spare,
            "files of the table do not exist": gone,
        }
        return [f"{len(names)} {what}: {_some(names)}" for what, names in kinds.items() if names]

    def _listed(self) -> dict[str, list[Path]]:
        """Key -> pictures of the CSV."""
        found: dict[str, list[Path]] = {}
        for line, row in rows_of(located(str(self.file)), COLUMNS):
            if not re.fullmatch(r"-?\d+", row["seed"].strip()):
                raise Unavailable(f"line {line} of {self.file} has the seed {row['seed']!r}; write a whole number.")
            picture = located(str(self.path)) / row["file"].strip()
            found.setdefault(_key(row["prompt"], int(row["seed"])), []).append(picture)
        return found


def _named(folder: Path) -> dict[str, list[Path]]:
    """Key -> pictures of a folder, by their names."""
    found: dict[str, list[Path]] = {}
    for picture in image_folder(folder).images:
        prompt, _, seed = picture.stem.rpartition("-s")
        found.setdefault(_key(prompt, int(seed)) if seed.isdigit() else picture.stem, []).append(picture)
    return found


def _keys(shot: Shot) -> list[str]:
    """What a picture of an evaluation image may be called: by number and by words."""
    return list(dict.fromkeys([_key(str(shot.index), shot.seed), _key(shot.prompt, shot.seed)]))


def _key(prompt: str, seed: int) -> str:
    """Capitals and all but letters and digits do not count; a number is a place in the list of prompts."""
    words = " ".join(re.findall(r"\w+", prompt.casefold().replace("_", " ")))
    return f"{int(words) if words.isdecimal() else words}-s{seed}"


def _some(names: list[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
