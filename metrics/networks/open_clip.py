"""OpenCLIP: image and text towers."""

from __future__ import annotations

import functools
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bench.contracts import BenchError
from bench.data.files import sha256, whole
from bench.data.weights import weights as registry
from bench.data.weights import weights_at
from metrics.networks.network import BATCH, CONFIG, ImageNetwork, best_device, exact, misfit, unit, weights_path

if TYPE_CHECKING:
    from torch import Tensor

HUB = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # owner/name


@dataclass(frozen=True, kw_only=True)
class OpenClip(ImageNetwork):
    """An open_clip model, image and text.

    `model` is a folder in open_clip's local-dir format (config, weights and preprocessing together), `owner/name` of
    the hub as staged on this machine (SigLIP, whose preprocessing and tokenizer lie there), or an architecture of
    open_clip, and then `weights` is a registered id or a file. OpenAI's weights need the
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
        folder = self.folder
        found = sorted(folder.glob("*.safetensors"))
        if len(found) != 1 or not (folder / "open_clip_config.json").is_file():
            raise BenchError(
                f"The CLIP {self.name} needs {folder} to hold open_clip_config.json and one .safetensors file, "
                f"but {len(found)} weight files were found there."
            )
        return (whole(found[0], "copy it again."),)

    @property
    def folder(self) -> Path:
        return weights_at(self.model) if HUB.fullmatch(self.model) else weights_path(self.model)

    def _fits_architecture(self) -> None:
        """The architecture that the registry names; OpenAI's weights also load, wrongly, without -quickgelu."""
        needed = registry().get(str(self.weights), {}).get("architecture")
        if needed not in (None, self.model):
            raise BenchError(
                f"The weights {self.weights} are of {needed}, but {self.model} was requested as {self.name}."
            )

    @property
    def recipe(self) -> str:
        architecture = self.model if self.weights is not None else sha256(self.folder / CONFIG)[:16]
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


@functools.cache
def _load_clip(network: OpenClip) -> tuple[Any, Any, Any]:
    import open_clip
    import torch
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from safetensors import SafetensorError

    (weights,) = network.files()
    name = network.model if network.weights is not None else f"local-dir:{network.folder}"
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
