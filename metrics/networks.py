"""Feature networks: OpenCLIP, the FID Inception, LPIPS, and the perceptual trunk of `mini`.

Construction is cheap: weights are loaded at first use and shared by every metric that names the same network.
Shapes: B images, D features, C channels, P pixels per side.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import pickle
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bench.contracts import BenchError
from bench.data.files import sha256, whole
from bench.data.weights import weights as registry
from bench.data.weights import weights_file
from bench.paths import ROOT

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
        place = ROOT / weights
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


# --- Inception ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Inception(ImageNetwork):
    """The Inception of FID, pool3, with clean preprocessing: squashed to 299 by `resize_clean`, then (x - 128) / 128.

    The weights are torch-fidelity's conversion of the 2015 TensorFlow network; torchvision's Inception is another one.
    """

    weights: str = "inception_fid"
    name: str = "inception-2015-clean"
    packages: ClassVar[tuple[str, ...]] = ("torch", "torch-fidelity")

    def files(self) -> tuple[Path, ...]:
        return (weights_path(self.weights),)

    @property
    def recipe(self) -> str:
        return "inception-2015-12-05 pool3, float bicubic antialias clamp 299"

    def forward(self, images: Tensor) -> Tensor:
        return self.pool3((resize_clean(images, 299) - 128) / 128)

    def pool3(self, x: Tensor) -> Tensor:
        """What the layers read, (B, 3, 299, 299) in about [-1, 1] -> (B, 2048)."""
        return _load_inception(self)(x).flatten(1)


def inception_layers() -> nn.Sequential:
    """The layers up to pool3 under the names of torch-fidelity's weights, (B, 3, 299, 299) -> (B, 2048, 1, 1)."""
    from torch import nn
    from torch_fidelity import feature_extractor_inceptionv3 as fid

    conv = fid.BasicConv2d
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        Conv2d_1a_3x3=conv(3, 32, kernel_size=3, stride=2),
        Conv2d_2a_3x3=conv(32, 32, kernel_size=3),
        Conv2d_2b_3x3=conv(32, 64, kernel_size=3, padding=1),
        MaxPool_1=nn.MaxPool2d(3, 2),
        Conv2d_3b_1x1=conv(64, 80, kernel_size=1),
        Conv2d_4a_3x3=conv(80, 192, kernel_size=3),
        MaxPool_2=nn.MaxPool2d(3, 2),
        Mixed_5b=fid.InceptionA(192, pool_features=32),
        Mixed_5c=fid.InceptionA(256, pool_features=64),
        Mixed_5d=fid.InceptionA(288, pool_features=64),
        Mixed_6a=fid.InceptionB(288),
        Mixed_6b=fid.InceptionC(768, channels_7x7=128),
        Mixed_6c=fid.InceptionC(768, channels_7x7=160),
        Mixed_6d=fid.InceptionC(768, channels_7x7=160),
        Mixed_6e=fid.InceptionC(768, channels_7x7=192),
        Mixed_7a=fid.InceptionD(768),
        Mixed_7b=fid.InceptionE_1(1280),
        Mixed_7c=fid.InceptionE_2(2048),
        AvgPool=nn.AdaptiveAvgPool2d(1),
    )
    return nn.Sequential(layers)


@functools.cache
def _load_inception(network: Inception) -> nn.Sequential:
    import torch

    state = read_state(network, network.files()[0])
    with torch.device("meta"):
        layers = inception_layers()
    kept = {key: value for key, value in state.items() if not key.startswith("fc.")}
    load_strictly(layers, kept, network)
    return layers.eval().requires_grad_(False).to(best_device(network.device))


# --- LPIPS -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LpipsNet(PerceptualNetwork):
    """LPIPS v0.1 on AlexNet (Zhang et al. 2018): heads from the lpips wheel, trunk from torchvision's file.

    Values grow with the resolution, so every image is brought to `size` by `resize_clean` first.
    """

    weights: str = "lpips_alex_trunk"
    name: str = "lpips-alex-256"
    size: int = 256
    packages: ClassVar[tuple[str, ...]] = ("torch", "torchvision", "lpips")

    def files(self) -> tuple[Path, ...]:
        return (weights_path(self.weights), _lpips_heads())

    @property
    def recipe(self) -> str:
        return f"LPIPS v0.1 alex, float bicubic antialias clamp {self.size}, [-1, 1]"

    def maps(self, images: Tensor) -> list[Tensor]:
        trunk, _ = _load_lpips(self)
        x = resize_clean(images, self.size) / 127.5 - 1
        if not (x.min() >= -1 and x.max() <= 1):
            raise ValueError(f"LPIPS reads [-1, 1], got [{x.min():.3f}, {x.max():.3f}]")
        x = (x - x.new_tensor(SHIFT)[:, None, None]) / x.new_tensor(SCALE)[:, None, None]
        found = []
        for number, layer in enumerate(trunk):
            x = layer(x)
            if number in TAPS:
                found.append(unit_length(x))
        return found

    def heads(self) -> list[Tensor]:
        return _load_lpips(self)[1]


TAPS = (1, 4, 7, 9, 11)  # the five ReLUs of AlexNet's convolutions
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # lpips.ScalingLayer


def unit_length(maps: Tensor) -> Tensor:
    """Channels of (B, C, h, w) scaled to length one, as lpips.normalize_tensor does it."""
    return maps / (maps.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def _lpips_heads() -> Path:
    """The linear heads inside the lpips wheel, found without importing it."""
    from importlib.util import find_spec

    spec = find_spec("lpips")
    if spec is None or spec.origin is None:
        raise BenchError("LPIPS was asked for, but the package lpips is not installed; type: uv pip install lpips.")
    return Path(spec.origin).parent / "weights" / "v0.1" / "alex.pth"


@functools.cache
def _load_lpips(network: LpipsNet) -> tuple[nn.Sequential, list[Tensor]]:
    import torch
    from torchvision.models import alexnet

    trunk_file, heads_file = network.files()
    with torch.device("meta"):
        trunk = alexnet(weights=None).features[: TAPS[-1] + 1]
    state = read_state(network, trunk_file)
    features = {key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")}
    load_strictly(trunk, features, network)
    lin = read_state(network, heads_file)
    device = best_device(network.device)
    heads = [lin[f"lin{layer}.model.1.weight"].flatten().to(device) for layer in range(len(TAPS))]
    return trunk.eval().requires_grad_(False).to(device), heads


# --- the perceptual trunk of mini --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MiniPerceptual(PerceptualNetwork):
    """The LPIPS-like trunk that ships with `mini`: unrelated scenes lie about 1 apart; no LPIPS number."""

    weights: str = "bench/mini/weights/perceptual"  # a folder: config.json and model.safetensors
    name: str = "mini-perceptual"
    size: int = 64

    def files(self) -> tuple[Path, ...]:
        return (whole(weights_path(self.weights) / "model.safetensors", "make it again (see its recipe)."),)

    @property
    def recipe(self) -> str:
        return f"mini perceptual trunk 1, float bicubic antialias clamp {self.size}, [-1, 1]"

    def maps(self, images: Tensor) -> list[Tensor]:
        return _load_mini(self).features(resize_clean(images, self.size) / 127.5 - 1)

    def heads(self) -> list[Tensor]:
        return [weight.clamp(min=0) for weight in _load_mini(self).weights]


@functools.cache
def _load_mini(network: MiniPerceptual) -> Any:
    import torch
    from safetensors import SafetensorError

    from bench.mini.perceptual import PerceptualTrunk

    try:
        with torch.random.fork_rng(devices=[]):
            trunk = PerceptualTrunk.load(weights_path(network.weights))
    except (RuntimeError, SafetensorError, OSError, ValueError, KeyError) as error:
        raise misfit(network, error) from error
    return trunk.to(best_device(network.device))
