"""A small perceptual distance in the manner of LPIPS (Zhang et al. 2018, eq. 1), calibrated on the world of `mini`.

d(a, b) = sum_l mean_hw sum_c w_lc (f_lc(a) - f_lc(b))^2, features f unit-normalised over channels, w >= 0.
Shapes: B pictures, H W >= 32 any size, C_l channels of layer l.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (24, 48, 64, 96)


def _stage(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.ReLU(), nn.Conv2d(b, b, 3, 1, 1), nn.ReLU())


class PerceptualTrunk(nn.Module):
    """Four strided convolution stages and one non-negative weight per channel."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS):
        super().__init__()
        self.widths = tuple(widths)
        self.stages = nn.ModuleList(_stage(a, b) for a, b in zip((3, *widths[:-1]), widths, strict=True))
        self.weights = nn.ParameterList(nn.Parameter(torch.ones(w) / w) for w in widths)

    def activations(self, x: Tensor) -> list[Tensor]:
        """Raw stage outputs (B, C_l, H_l, W_l) for x (B, 3, H, W) in [-1, 1]."""
        out = []
        for stage in self.stages:
            x = stage(x)
            out.append(x)
        return out

    def features(self, x: Tensor) -> list[Tensor]:
        """Stage outputs with unit length over channels."""
        return [F.normalize(f, dim=1, eps=1e-4) for f in self.activations(x)]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances (B,) between a and b (B, 3, H, W); two unrelated photo-like scenes lie about 1 apart."""
        pairs = zip(self.features(a), self.features(b), self.weights, strict=True)
        return sum((((f - g) ** 2).mean((2, 3)) * w.clamp(min=0)).sum(1) for f, g, w in pairs)

    def embed(self, x: Tensor) -> Tensor:
        """phi(x) (B, E), with |phi(a) - phi(b)|^2 = d(a, b); E depends on the picture size."""
        scaled = (
            f * (w.clamp(min=0) / (f.shape[2] * f.shape[3])).sqrt()[:, None, None]
            for f, w in zip(self.features(x), self.weights, strict=True)
        )
        return torch.cat([f.flatten(1) for f in scaled], 1)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.half().contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"widths": self.widths}))

    @classmethod
    def load(cls, folder: str | Path) -> PerceptualTrunk:
        folder = Path(folder)
        trunk = cls(tuple(json.loads((folder / "config.json").read_text())["widths"]))
        trunk.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
        return trunk.eval().requires_grad_(False)
