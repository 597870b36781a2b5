"""Readers: a small classifier of thing, artist and background, a judge that shares nothing with the base.

Shapes: N pictures, uint8 (N, 3, 64, 64).
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WIDTHS = (3, 48, 96, 160, 224)
BINS, COLOURS = 16, 256  # of the histogram along each colour axis; numbers that are made of it


def _stage(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU(), nn.Conv2d(b, b, 3, 1, 1), nn.BatchNorm2d(b), nn.ReLU()
    )


def histogram(images: Tensor) -> Tensor:
    """Square roots of the shares of pixels in each of 16 x 16 x 16 colours, (N, 3, H, W) in 0..255 -> (N, 4096).

    A pixel counts for its eight nearest bins in proportion (trilinear), so that a little noise changes little.
    """
    at = images.clamp(0, 255).flatten(2) / 255 * (BINS - 1)
    low = at.floor().clamp(max=BINS - 2)
    near = torch.stack([1 - (at - low), at - low])  # (2, N, 3, pixels)
    out = torch.zeros(len(images), BINS**3, device=images.device)
    for corner in product((0, 1), repeat=3):
        red, green, blue = (low[:, k].long() + step for k, step in enumerate(corner))
        weight = near[corner[0], :, 0] * near[corner[1], :, 1] * near[corner[2], :, 2]
        out.scatter_add_(1, (red * BINS + green) * BINS + blue, weight)
    return (out / at.shape[2]).sqrt()


class Readers(nn.Module):
    """Four strided stages and a histogram of colours; one head per question. `classes` names the answers of each.

    The head of `thing` reads the last map with its places; the others read means of all maps, and the histogram: with
    the last map alone, drawings that training never showed were read as by the right artist in 43 %, because a network
    learns each drawing by heart before it learns a palette.
    """

    def __init__(self, classes: dict[str, list[str]]):
        super().__init__()
        self.classes = classes
        self.body = nn.ModuleList(_stage(a, b) for a, b in zip(WIDTHS, WIDTHS[1:], strict=False))
        self.colours = nn.Sequential(nn.Dropout(0.3), nn.Linear(BINS**3, COLOURS), nn.BatchNorm1d(COLOURS), nn.ReLU())
        self.dropout = nn.Dropout(0.4)
        sizes = {k: WIDTHS[-1] * 16 if k == "thing" else sum(WIDTHS[1:]) + COLOURS for k in classes}
        self.heads = nn.ModuleDict({k: nn.Linear(sizes[k], len(names)) for k, names in classes.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits by question, each (N, answers); images uint8 or float in 0..255."""
        x, means = images.float() / 127.5 - 1, [self.colours(20 * histogram(images.float()))]
        for stage in self.body:
            x = stage(x)
            means.append(x.mean((2, 3)))
        where, what = self.dropout(x.flatten(1)), self.dropout(torch.cat(means, 1))
        return {k: head(where if k == "thing" else what) for k, head in self.heads.items()}

    @torch.no_grad()
    def read(self, images: Tensor, batch: int = 256) -> dict[str, list[str]]:
        """The likeliest answer to each question for every picture."""
        parts = [self(part) for part in images.split(batch)]
        return {
            k: [names[i] for part in parts for i in part[k].argmax(1).tolist()] for k, names in self.classes.items()
        }

    def save(self, folder: Path, accuracy: dict[str, float] | None = None) -> None:
        """Weights in half precision, and the answers; `accuracy` is the measured share of right ones by question."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.half() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        save_file({k: v.contiguous() for k, v in state.items()}, folder / "readers.safetensors")
        (folder / "config.json").write_text(
            json.dumps({"classes": self.classes, "accuracy": accuracy or {}}, indent=1) + "\n"
        )

    @classmethod
    def load(cls, folder: Path) -> Readers:
        model = cls(json.loads((folder / "config.json").read_text())["classes"])
        state = load_file(folder / "readers.safetensors")
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
        return model.eval()
