"""Feature networks: what they have in common, and how their weights are read.

Construction is cheap: weights are loaded at first use and shared by every metric that names the same network.
Shapes: B images, D features, C channels, P pixels per side.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bench.choices import check_device
from bench.contracts import BenchError
from bench.data.files import sha256, whole
from bench.data.weights import weights_file
from bench.paths import located

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


BATCH = 32


def weights_path(weights: str) -> Path:
    """A file or folder (absolute, or relative to the repository), or else a registered id of `bench.fetch`.

    Raises BenchError with what to type when it is not on this machine.
    """
    if "/" in weights or "\\" in weights:
        place = located(weights)
        if not place.exists():
            raise BenchError(f"The weights {weights} were requested, but {place} does not exist.")
        return whole(place, "copy it again.") if place.is_file() else place
    return weights_file(weights)


def read_state(network: Network, place: Path, also: Sequence[Any] = ()) -> dict[str, Any]:
    """The tensors of a weights file, on the CPU; `also` are classes of plain data that a checkpoint may hold, too.

    Raises BenchError when the file is truncated or of another kind.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if place.suffix == ".safetensors":
            return load_file(place)
        with torch.serialization.safe_globals(list(also)):
            return torch.load(place, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        raise BenchError(
            f"The weights of {network.name} cannot be read: {place} is truncated or no weights file "
            f"({reason_of(error)}); "
            "delete it and stage it again."
        ) from error


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], network: Network) -> None:
    """Every tensor in its place. Raises BenchError when the file is another network's."""
    try:
        module.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise misfit(network, error) from error


def misfit(network: Network, error: Exception) -> BenchError:
    return BenchError(
        f"The weights of {network.name} do not fit: {network.files()[0]} holds another network ({reason_of(error)}); "
        "put the right file there."
    )


def reason_of(error: Exception) -> str:
    """The first particulars of an error, on one short line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = lines[1] if len(lines) > 1 and lines[0].startswith("Error(s) in loading") else lines[0]
    return text if len(text) <= 120 else f"{text[:117]}..."


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Inference in float32: no gradient, no autocast, no TF32 (reduced precision moved FID features by 22 %)."""
    import torch

    matmul = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
                yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul


def resize_clean(images: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) in 0..255 -> float32 (B, 3, size, size): bicubic, antialiased, clamped (Parmar et al. 2022)."""
    from torch.nn.functional import interpolate

    images = images.float()
    if images.shape[-2:] != (size, size):
        images = interpolate(images, (size, size), mode="bicubic", antialias=True, align_corners=False)
    return images.clamp(0, 255)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows of (..., D) scaled to length one, float64."""
    x = np.asarray(x, dtype=np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def best_device(device: str | None) -> torch.device:
    import torch

    if device is not None:
        check_device("device", device)
    if device == "auto":
        device = None
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


@dataclass(frozen=True, kw_only=True)
class Network(ABC):
    """A frozen feature network. `name` is how tables call it; `device` is not part of its identity."""

    name: str
    device: str | None = None
    packages: ClassVar[tuple[str, ...]] = ("torch",)

    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """Weight files. Raises BenchError when one is not on this machine."""

    @property
    @abstractmethod
    def recipe(self) -> str:
        """Architecture, layer and preprocessing, in words that change when the features would."""

    def missing(self) -> str | None:
        try:
            self.files()
        except BenchError as error:
            return str(error)
        return None

    @property
    def weights_sha256(self) -> str:
        """Hex digest of the one weight file, or of the digests of several."""
        digests = [sha256(path) for path in self.files()]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    @property
    def id(self) -> str:
        return f"{self.name} {self.recipe} {self.weights_sha256[:16]} float32"


class ImageNetwork(Network):
    """A network with one feature vector per image."""

    points: ClassVar[str] = "features as they are"

    def as_points(self, features: np.ndarray) -> np.ndarray:
        """What distances between distributions (FID, KID) are taken of, float64 (N, D); `points` says it in words."""
        return np.asarray(features, dtype=np.float64)

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, P, P) on the device -> (B, D)."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, 3, P, P) -> float32 (N, D)."""
        import torch

        device, parts = best_device(self.device), []
        with exact():
            for start in range(0, len(images), BATCH):
                part = torch.from_numpy(np.ascontiguousarray(images[start : start + BATCH])).to(device)
                parts.append(self.forward(part).float().cpu().numpy())
        return np.concatenate(parts)


class PerceptualNetwork(Network):
    """A network with several layers of feature maps, each with a non-negative weight per channel (LPIPS)."""

    size: int

    @abstractmethod
    def maps(self, images: Tensor) -> list[Tensor]:
        """(B, 3, P, P) in 0..255 -> one map (B, C, h, w) per layer, unit length along channels."""

    @abstractmethod
    def heads(self) -> list[Tensor]:
        """Channel weights, one (C,) per layer."""


CONFIG = "open_clip_config.json"
TAPS = (1, 4, 7, 9, 11)  # the five ReLUs of AlexNet's convolutions
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # lpips.ScalingLayer
