"""Networks with the real architectures and random weights, saved as the files that the extractors read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metrics.networks import Inception, LpipsNet, Network, OpenClip, inception_layers

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}

NARROW = 64


@dataclass(frozen=True, kw_only=True)
class Narrow(Inception):
    """The first features alone, so that a small run is not spent in the libraries' square roots of 2048 x 2048."""

    def pool3(self, x: Any) -> Any:
        return super().pool3(x)[:, :NARROW]


@dataclass(frozen=True)
class Networks:
    """One of each kind; a metric gets the one that stands in for its own."""

    clip: OpenClip
    inception: Inception
    lpips: LpipsNet

    def of(self, spec: Mapping[str, Any]) -> Network | None:
        """The stand-in for the network that a metric's yaml names, None where there is none.

        It takes the name from the yaml, so that metrics over unlike networks share no features here, either.
        """
        requested = spec.get("network", {})
        kinds = {"OpenClip": self.clip, "Inception": self.inception, "LpipsNet": self.lpips}
        found = kinds.get(requested.get("_target_", "").rpartition(".")[2])
        return found and replace(found, name=requested.get("name", found.name))


def stand_ins(folder: Path, small: bool) -> Networks:
    """Weights below `folder`; `small` takes a tiny CLIP, 64 features of Inception and LPIPS at 64 pixels."""
    import torch

    folder.mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip = _clip(folder / "clip", small)
        inception = _inception(folder / "inception.pth")
        trunk = _alexnet(folder / "alexnet.pth")
    return Networks(
        OpenClip(name="clip", model=str(clip), device="cpu"),
        (Narrow if small else Inception)(weights=str(inception), device="cpu"),
        LpipsNet(name="lpips", weights=str(trunk), size=64 if small else 256, device="cpu"),
    )


def _clip(folder: Path, small: bool) -> Path:
    """ViT-B/32 with QuickGELU, in open_clip's local-dir format."""
    import open_clip
    from safetensors.torch import save_file

    config = TINY_CLIP if small else open_clip.get_model_config("ViT-B-32-quickgelu")
    size = config["vision_cfg"]["image_size"]
    preprocess = {
        "mean": [0.48, 0.46, 0.41],
        "std": [0.27, 0.26, 0.28],
        "size": [size, size],
        "resize_mode": "shortest",
    }
    folder.mkdir()
    state = open_clip.CLIP(**config).state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "open_clip_model.safetensors")
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess | {"interpolation": "bicubic"}})
    (folder / "open_clip_config.json").write_text(text)
    return folder


def _inception(path: Path) -> Path:
    """Batch norm is calibrated: else activations vanish and every image looks the same."""
    import torch

    layers = inception_layers()
    for layer in layers.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        layers.train()(torch.rand(4, 3, 299, 299) * 2 - 1)
    torch.save(layers.state_dict(), path)
    return path


def _alexnet(path: Path) -> Path:
    import torch
    from torchvision.models import alexnet

    state = alexnet(weights=None).state_dict()
    torch.save({name: value for name, value in state.items() if name.startswith("features.")}, path)
    return path
