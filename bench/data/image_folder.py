"""What a user's folder of images holds: the files that are used, and by name those that are passed over.

Files whose names begin with a dot are skipped: systems put them there. Files of captions are read by `captions`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError

METADATA = ("metadata.jsonl", "metadata.csv")  # tables of captions, as Hugging Face's ImageFolder reads them
CAPTION = ".txt"  # ending of a caption beside its image
NAMED = 5  # names in a sentence


@dataclass(frozen=True)
class ImageFolder:
    """Image files, sorted, and the names of all other entries with the reason."""

    images: tuple[Path, ...]
    passed_over: tuple[str, ...]

    @property
    def note(self) -> str:
        """How many images are used, and what is passed over by name."""
        names = ", ".join(self.passed_over[:NAMED])
        more = len(self.passed_over) - NAMED
        return f"{len(self.images)} images used, {len(self.passed_over)} entries passed over: {names}" + (
            f" and {more} more" if more > 0 else ""
        )


def image_folder(folder: Path) -> ImageFolder:
    """The entries of a folder; one that only Pillow can name an image is one. Raises BenchError."""
    from bench.data.pixel_limit import endings

    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise BenchError(f"the folder {folder} cannot be listed ({error.strerror}); correct its rights.") from error
    known = endings()
    images = tuple(entry for entry in entries if entry.suffix.lower() in known and entry.is_file())
    used = {*images, *_of_captions(entries, images)}
    return ImageFolder(images, tuple(_described(entry) for entry in entries if entry not in used))


def _of_captions(entries: Iterable[Path], images: Iterable[Path]) -> list[Path]:
    stems = {image.stem for image in images}
    return [
        entry
        for entry in entries
        if entry.name in METADATA or (entry.suffix.lower() == CAPTION and entry.stem in stems)
    ]


def _described(entry: Path) -> str:
    if entry.is_dir():
        return f"{entry.name} (a folder)"
    if entry.is_symlink() and not entry.exists():
        return f"{entry.name} (a broken link)"
    return entry.name
