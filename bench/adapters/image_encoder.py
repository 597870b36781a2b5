"""Images to features by a frozen CLIP: a folder in transformers' format, or in open_clip's local-dir format.

Shapes: N images of P pixels per side, E feature width, S patches with the class token.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.choices import check_device
from bench.contracts import BenchError
from bench.data.weights import weights_at

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

OPEN_CLIP = "open_clip_config.json"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of OpenAI's CLIP
IMAGES_AT_ONCE = 16
KEPT_BYTES = 256 * 2**20  # of features that are remembered


@dataclass
class ImageEncoder:
    """A CLIP image tower. Construction is cheap; weights are loaded at first use, from this machine alone.

    `path`, `text_encoder` and `tokenizer` are as in `data.weights.weights_at`. `features`: "pooled" (E is the width of
    the projected embedding) or "patches" (the penultimate layer, as IP-Adapter Plus reads it; E is the width of the
    tower).
    The text tower of the same CLIP is in open_clip's folder; in transformers' format `text_encoder` and `tokenizer`
    name it.
    """

    path: str
    features: Literal["pooled", "patches"] = "pooled"
    text_encoder: str | None = None
    tokenizer: str | None = None
    device: str | None = None
    _known: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def missing(self) -> str | None:
        """A sentence that names the weights that are not on this machine, or None."""
        try:
            for name in (self.path, self.text_encoder, self.tokenizer):
                _ = name and weights_at(name)
        except BenchError as error:
            return str(error)
        return None

    @cached_property
    def width(self) -> int:
        """E, read from the configuration."""
        return self._tower.width(self.features)

    @cached_property
    def blank(self) -> Tensor:
        """What stands for no image in IP-Adapter: a zero vector (E,), or the patches (S, E) of an image of zeros."""
        import torch

        if self.features == "pooled":
            return torch.zeros(self.width)
        size = self._tower.size
        return self._run(torch.zeros(1, 3, size, size))[0].cpu()

    def __call__(self, images: Sequence[np.ndarray]) -> Tensor:
        """uint8 images (3, P, P) -> float32 (N, E) or (N, S, E), on the CPU; remembered by content."""
        import torch

        keys = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._known}
        found: dict[str, Tensor] = {}
        with torch.no_grad():
            for start in range(0, len(new), IMAGES_AT_ONCE):
                part = list(new)[start : start + IMAGES_AT_ONCE]
                rows = self._run(torch.stack([self._prepared(new[key]) for key in part])).float().cpu()
                found |= dict(zip(part, rows, strict=True))
        out = torch.stack([found[key] if key in found else self._known[key] for key in keys])
        if (len(self._known) + len(found)) * out[0].nbytes <= KEPT_BYTES:
            self._known |= found
        return out

    def of_pixels(self, pixels: Tensor) -> Tensor:
        """float (N, 3, P, P) in [0, 1] -> features as above, with gradients, on the encoder's device."""
        from torch.nn.functional import interpolate

        size = (self._tower.size,) * 2
        if tuple(pixels.shape[-2:]) != size:
            pixels = interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
        return self._run(self._normalised(pixels.clamp(0, 1)))

    def words(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (N, E) of texts in the space of the pooled features, float32, on the CPU."""
        import torch

        with torch.no_grad():
            return self._tower.words(texts).float().cpu()

    # --- how

    @cached_property
    def _tower(self) -> Tower:
        if self.features not in ("pooled", "patches"):
            raise BenchError(f"The image features {self.features!r} were requested; give pooled or patches.")
        folder = weights_at(self.path)
        kind = OpenClipTower if (folder / OPEN_CLIP).is_file() else TransformersTower
        return kind(folder, self.text_encoder, self.tokenizer)

    def _run(self, x: Tensor) -> Tensor:
        """Normalised images (N, 3, size, size) -> features, on the encoder's device in float32."""
        import torch

        if self.device is not None:
            check_device("encoder.device", self.device)
        named = None if self.device == "auto" else self.device
        device = torch.device(named or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._tower.model.to(device)
        x = x.to(device, torch.float32)
        return self._tower.pooled(x) if self.features == "pooled" else self._tower.patches(x)

    def _prepared(self, image: np.ndarray) -> Tensor:
        """uint8 (3, P, P) -> (3, size, size): bicubic as CLIP's own processor, the whole image."""
        import numpy as np
        import torch
        from PIL import Image

        size = (self._tower.size,) * 2
        picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
        resized = np.asarray(picture.resize(size, Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        return self._normalised(torch.from_numpy(resized / np.float32(255))[None])[0]

    def _normalised(self, x: Tensor) -> Tensor:
        mean, std = (x.new_tensor(values)[:, None, None] for values in (self._tower.mean, self._tower.std))
        return (x - mean) / std


class Tower(ABC):
    """One format of a CLIP. `model` is frozen; `size`, `mean` and `std` say how it wants its images."""

    size: int
    mean: Sequence[float] = MEAN
    std: Sequence[float] = STD
    model: Any

    @abstractmethod
    def __init__(self, folder: Path, text_encoder: str | None, tokenizer: str | None): ...

    @abstractmethod
    def width(self, features: str) -> int: ...

    @abstractmethod
    def pooled(self, x: Tensor) -> Tensor:
        """(N, 3, size, size) -> projected embedding (N, E), of any length."""

    @abstractmethod
    def patches(self, x: Tensor) -> Tensor:
        """(N, 3, size, size) -> the penultimate layer (N, S, E)."""

    @abstractmethod
    def words(self, texts: Sequence[str]) -> Tensor: ...


class TransformersTower(Tower):
    """A folder of transformers' CLIPVisionModelWithProjection, such as IP-Adapter's image_encoder."""

    def __init__(self, folder: Path, text_encoder: str | None, tokenizer: str | None):
        self.folder, self.text_encoder, self.tokenizer = folder, text_encoder, tokenizer
        config = _json(folder / "config.json")
        self.config = config.get("vision_config", {}) | config  # a whole CLIP's folder nests it
        self.size = self.config.get("image_size", 224)
        told = folder / "preprocessor_config.json"
        if told.is_file():
            self.mean, self.std = (_json(told)[key] for key in ("image_mean", "image_std"))

    def width(self, features: str) -> int:
        return self.config["projection_dim" if features == "pooled" else "hidden_size"]

    @cached_property
    def model(self) -> Any:
        import torch
        from transformers import CLIPVisionModelWithProjection

        from bench.backbones.load import load_model

        return load_model(CLIPVisionModelWithProjection, self.folder, torch.float32)

    def pooled(self, x: Tensor) -> Tensor:
        return self.model(x).image_embeds

    def patches(self, x: Tensor) -> Tensor:
        return self.model(x, output_hidden_states=True).hidden_states[-2]

    def words(self, texts: Sequence[str]) -> Tensor:
        import torch

        return torch.cat([out.text_embeds for out in self._text.outputs(texts)])

    @cached_property
    def _text(self) -> Any:
        import torch
        from transformers import CLIPTextModelWithProjection

        from bench.backbones.text_encoder import TextEncoder

        if not self.text_encoder or not self.tokenizer:
            raise BenchError(
                f"Words were requested in the space of {self.folder}, which has no text tower; give the folders "
                "method.encoder.text_encoder and method.encoder.tokenizer of the same CLIP."
            )
        folders = weights_at(self.tokenizer), weights_at(self.text_encoder)
        return TextEncoder(*folders, CLIPTextModelWithProjection, torch.float32, None)


class OpenClipTower(Tower):
    """A folder in open_clip's local-dir format: configuration, one weights file, tokenizer."""

    def __init__(self, folder: Path, text_encoder: str | None, tokenizer: str | None):
        self.folder = folder
        config = _json(folder / OPEN_CLIP)
        self.config, told = config["model_cfg"], config.get("preprocess_cfg", {})
        size = self.config["vision_cfg"].get("image_size", 224)
        self.size = size[0] if isinstance(size, list) else size
        self.mean, self.std = told.get("mean", MEAN), told.get("std", STD)

    def width(self, features: str) -> int:
        if features != "pooled":
            raise self._no_patches()
        return self.config["embed_dim"]

    @cached_property
    def model(self) -> Any:
        import open_clip
        import torch

        with torch.random.fork_rng(devices=[]):  # building a module draws initial values
            model = open_clip.create_model(f"local-dir:{self.folder}", require_pretrained=True)
        return model.eval().requires_grad_(False)

    def pooled(self, x: Tensor) -> Tensor:
        return self.model.encode_image(x)

    def patches(self, x: Tensor) -> Tensor:
        raise self._no_patches()

    def words(self, texts: Sequence[str]) -> Tensor:
        import open_clip

        tokens = open_clip.get_tokenizer(f"local-dir:{self.folder}")(list(texts))
        return self.model.encode_text(tokens.to(next(self.model.parameters()).device))

    def _no_patches(self) -> BenchError:
        return BenchError(
            f"Patches were requested of the open_clip folder {self.folder}, which gives pooled features only; "
            "give the same CLIP in transformers' format (method.encoder.path)."
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BenchError(
            f"An image encoder was looked for in {path.parent}, but {path.name} cannot be read there; give a folder in "
            "transformers' or open_clip's format (method.encoder.path)."
        ) from error
