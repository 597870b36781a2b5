"""A style as a folder of folders, the form of StyleForge's six styles (arXiv 2404.05256), for images of your own.

<root>/references/       what is learned from (the paper: 15 to 20), persons and places mixed; or, instead of it,
<root>/person/           those that show persons, and
<root>/background/       those that show none
<root>/auxiliary/        more general art, mostly persons, not of this style (optional)
<root>/reference_set/    images that FID and KID compare with, none of them a reference (optional)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.contracts import BenchError
from bench.data.files import sha256

PARTED = ("person", "background")
ROLES = ("references", *PARTED, "auxiliary", "reference_set")


def laid_out(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A dataset's settings with the roles that the subfolders of its `root` hold. Raises BenchError."""
    if not spec["root"]:
        return dict(spec)
    root = Path(spec["root"]).expanduser()
    if not root.is_dir():
        raise BenchError(f"dataset.root names {root}, which is not a folder; type dataset.root=/path/to/a/style.")
    found = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    _check(root, found)
    return {**spec, **{role: str(root / role) for role in found if spec[role] is None}}


def _check(root: Path, found: list[str]) -> None:
    """The subfolders make sense together. Raises BenchError."""
    for name in found:
        if name not in ROLES:
            near = difflib.get_close_matches(name, ROLES, 1) or [", ".join(ROLES)]
            raise BenchError(f"{root} holds the folder {name}, which means nothing here; did you mean {near[0]}?")
    parted = [name for name in PARTED if name in found]
    if "references" in found and parted:
        raise BenchError(f"{root} holds references/ and {parted[0]}/; keep references/, or person/ and background/.")
    if "references" not in found and len(parted) < 2:
        lacking = [f"{name}/" for name in PARTED if name not in parted] if parted else ["references/"]
        raise BenchError(f"{root} holds no {lacking[0]}; make it and put images of the style there.")


def seen_in_both(training: Iterable[Path], reference_set: Iterable[Path]) -> Path | None:
    """An image of the reference set that is trained on, too: distances to it would reward copying."""
    known = {sha256(path) for path in training}
    return next((path for path in reference_set if sha256(path) in known), None)
