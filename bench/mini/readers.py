"""Readers: a small classifier of thing, artist and background, a judge that shares nothing with the base.

Shapes: N pictures, uint8 (N, 3, 64, 64).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WIDTHS = (3, 48, 96, 160, 224)


def _stage(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU(), nn.Conv2d(b, b, 3, 1, 1), nn.BatchNorm2d(b), nn.ReLU()
    )


class Readers(nn.Module):
    """Four strided stages and one head per question; `classes` names the answers of each."""

    def __init__(self, classes: dict[str, list[str]]):
        super().__init__()
        self.classes = classes
        self.body = nn.Sequential(*(_stage(a, b) for a, b in zip(WIDTHS, WIDTHS[1:], strict=False)))
        self.heads = nn.ModuleDict({k: nn.Linear(WIDTHS[-1] * 16, len(names)) for k, names in classes.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits by question, each (N, answers); images uint8 or float in 0..255."""
        x = self.body(images.float() / 127.5 - 1).flatten(1)
        return {k: head(x) for k, head in self.heads.items()}

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
