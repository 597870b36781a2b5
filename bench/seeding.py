"""Random generators that depend on a key alone, and the seeds of evaluation."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

EVALUATION_SEED_OFFSET = 1_000_000  # evaluation noise never meets training noise


def generator(*key: int | str) -> torch.Generator:
    """A random generator that depends on the key alone."""
    import torch

    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
