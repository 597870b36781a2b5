"""Feature networks: what they have in common, how their weights are read, and OpenCLIP.

Construction is cheap: weights are loaded at first use and shared by every metric that names the same network.
Shapes: B images, D features, C channels, P pixels per side.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bench.contracts import BenchError
from bench.data.files import sha256, whole
from bench.data.weights import weights as registry
from bench.data.weights import weights_file
from bench.paths import located

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

BATCH = 32


# --- weights and arithmetic --------------------------------------------------------------------------------------


def weights_path(weights: str) -> Path:
    """A file or folder (absolute, or relative to the repository), or else a registered id of `bench.fetch`.

    Raises BenchError with what to type when it is not on this machine.
    """
    if "/" in weights or "\\" in weights:
        place = located(weights)
        if not place.exists():
            raise BenchError(f"The weights {weights} were asked for, but {place} does not exist.")
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
            f"The weights of {network.name} cannot be read: {place} is truncated or no weights file ({told(error)}); "
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
        f"The weights of {network.name} do not fit: {network.files()[0]} holds another network ({told(error)}); "
        "put the right file there."
    )


def told(error: Exception) -> str:
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

    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


# --- the interface -----------------------------------------------------------------------------------------------


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


# --- OpenCLIP ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OpenClip(ImageNetwork):
    """An open_clip model, image and text.

    `model` is a folder in open_clip's local-dir format (config, weights and preprocessing together), or an
    architecture of open_clip, and then `weights` is a registered id or a file. OpenAI's weights need the
    `-quickgelu` architectures: with the plain ones open_clip silently uses another activation.
    """

    model: str
    weights: str | None = None
    packages: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "open_clip_torch")
    points: ClassVar[str] = "unit length x sqrt(D)"

    def as_points(self, features: np.ndarray) -> np.ndarray:
        """Only directions are trained; left as they are, the longest few features decide KID's cubic kernel."""
        return unit(features) * features.shape[1] ** 0.5

    def files(self) -> tuple[Path, ...]:
        if self.weights is not None:
            self._fits_architecture()
            return (weights_path(self.weights),)
        folder = weights_path(self.model)
        found = sorted(folder.glob("*.safetensors"))
        if len(found) != 1 or not (folder / "open_clip_config.json").is_file():
            raise BenchError(
                f"The CLIP {self.name} needs {folder} to hold open_clip_config.json and one .safetensors file, "
                f"but {len(found)} weight files were found there."
            )
        return (whole(found[0], "copy it again."),)

    def _fits_architecture(self) -> None:
        """The architecture that the registry names; OpenAI's weights also load, wrongly, without -quickgelu."""
        needed = registry().get(str(self.weights), {}).get("architecture")
        if needed not in (None, self.model):
            raise BenchError(
                f"The weights {self.weights} are of {needed}, but {self.model} was asked for as {self.name}."
            )

    @property
    def recipe(self) -> str:
        architecture = self.model if self.weights is not None else sha256(weights_path(self.model) / CONFIG)[:16]
        return f"open_clip {architecture} projection, its evaluation transform on PIL"

    def forward(self, images: Tensor) -> Tensor:
        import torch
        from PIL import Image

        model, transform, _ = _load_clip(self)
        rows = images.permute(0, 2, 3, 1).cpu().numpy()
        batch = torch.stack([transform(Image.fromarray(row)) for row in rows])
        return model.encode_image(batch.to(best_device(self.device)))

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings float32 (N, D); longer texts are cut at the context length with the end token kept."""
        model, _, tokenizer = _load_clip(self)
        parts = []
        with exact():
            for start in range(0, len(texts), BATCH):
                tokens = tokenizer(list(texts[start : start + BATCH])).to(best_device(self.device))
                parts.append(model.encode_text(tokens).float().cpu().numpy())
        return np.concatenate(parts)

    def truncated(self, texts: Sequence[str]) -> int:
        """How many texts are longer than the tower reads: one more place would change the tokens before it."""
        tokenizer = _load_clip(self)[2]
        length = tokenizer.context_length
        short, long = tokenizer(list(texts), length), tokenizer(list(texts), length + 1)
        return int((short != long[:, :length]).any(dim=1).sum())


CONFIG = "open_clip_config.json"


@functools.cache
def _load_clip(network: OpenClip) -> tuple[Any, Any, Any]:
    import open_clip
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from safetensors import SafetensorError

    (weights,) = network.files()
    name = network.model if network.weights is not None else f"local-dir:{weights_path(network.model)}"
    pretrained = str(weights) if network.weights is not None else None
    try:
        with torch.random.fork_rng(devices=[]):  # building a module draws initial values
            model = open_clip.create_model(name, pretrained=pretrained, require_pretrained=True)
    except (RuntimeError, SafetensorError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise misfit(network, error) from error
    model.eval().requires_grad_(False).to(best_device(network.device))
    assert not model.training, "open_clip returns models in training mode"
    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    return model, transform, open_clip.get_tokenizer(name)
