"""DreamSim (Fu et al. 2023, arXiv 2306.09344): an embedding tuned on human judgements, by its own package.

Only its single CLIP branches: the others fetch and run code through torch.hub. The package would download what it
misses, so everything is checked first, from the archive that is staged. Shapes: B images, D features.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench.contracts import BenchError
from bench.data.files import sha256
from bench.paths import cache_folder
from metrics.networks import ImageNetwork, best_device, misfit, resize_clean, weights_path

if TYPE_CHECKING:
    from torch import Tensor

BRANCHES = ("open_clip_vitb32", "clip_vitb32")


@dataclass(frozen=True, kw_only=True)
class Dreamsim(ImageNetwork):
    """`weights` is the published archive of the branch."""

    branch: str = "open_clip_vitb32"
    weights: str = "dreamsim_open_clip_vitb32"
    name: str = "dreamsim-open-clip-vit-b32"
    packages: ClassVar[tuple[str, ...]] = ("torch", "dreamsim", "peft")

    def files(self) -> tuple[Path, ...]:
        if self.branch not in BRANCHES:
            raise BenchError(f"DreamSim's branch {self.branch!r} was requested; give {' or '.join(BRANCHES)}.")
        if find_spec("dreamsim") is None:
            raise BenchError("DreamSim was requested, but its package is not installed; type uv pip install dreamsim.")
        return (weights_path(self.weights),)

    @property
    def recipe(self) -> str:
        return f"DreamSim {self.branch}, float bicubic antialias clamp 224, centred"

    def forward(self, images: Tensor) -> Tensor:
        return _load(self).embed(resize_clean(images, 224) / 255)


@functools.cache
def _load(network: Dreamsim) -> Any:
    from dreamsim import dreamsim

    device, folder = str(best_device(network.device)), str(_unpacked(network))
    with _own_hub_folder(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")  # it wraps the network twice, of which peft warns
        try:
            model, _ = dreamsim(device=device, cache_dir=folder, dreamsim_type=network.branch)
        except (RuntimeError, KeyError, ValueError, OSError) as error:
            raise misfit(network, error) from error
    lost = [warning.message for warning in said if "missing adapter keys" in str(warning.message)]
    if lost:
        raise misfit(network, RuntimeError(str(lost[0])))
    return model.eval().requires_grad_(False)


@contextlib.contextmanager
def _own_hub_folder() -> Iterator[None]:
    """The package moves torch.hub's folder for the whole process; put it back."""
    import torch

    before = torch.hub._hub_dir
    try:
        yield
    finally:
        torch.hub._hub_dir = before


def _unpacked(network: Dreamsim) -> Path:
    """The archive's content in the cache, whole or not at all, with all that the package would else download."""
    (archive,) = network.files()
    folder = cache_folder() / "dreamsim" / sha256(archive)[:16]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".part-"))
        try:
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(part)
            with contextlib.suppress(FileExistsError, OSError):  # another process was quicker
                os.rename(part, folder)
        except zipfile.BadZipFile as error:
            raise misfit(network, error) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    for name in (f"{network.branch}_pretrain.pth.tar", f"{network.branch}_single_lora"):
        if not (folder / name).exists():
            raise BenchError(f"{archive} holds no {name}, so it is no DreamSim archive of {network.branch}.")
    return folder
