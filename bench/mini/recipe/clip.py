"""Stage `clip`: two towers in open_clip's format (small ResNet, causal text transformer), trained contrastively."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from bench.mini.recipe.tokenizer import LENGTH
from bench.mini.recipe.training import Fit, Run, fast_precision, rows_at
from bench.mini.recipe.vae import to_float

EMBED, TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS = 256, 192, 3, 4
VISION = {"image_size": 64, "layers": [1, 2, 2, 1], "width": 16}
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def text_config(vocabulary: int) -> dict:
    return {
        "context_length": LENGTH,
        "vocab_size": vocabulary,
        "hf_tokenizer_name": "mini",  # open_clip then reads the tokenizer files beside the config
        "width": TEXT_WIDTH,
        "heads": TEXT_HEADS,
        "layers": TEXT_LAYERS,
    }


def build(vocabulary: int) -> CLIP:
    return CLIP(EMBED, CLIPVisionCfg(**VISION), CLIPTextCfg(**text_config(vocabulary)))


def contrastive(image: Tensor, text: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """Symmetric cross entropy (B, E), (B, E) -> (); pairs whose captions are equal, `same` (B, B), share the target."""
    logits = scale * image @ text.T
    target = same / same.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target.T / target.T.sum(1, keepdim=True)))


def embed_text(model: CLIP, ids: Tensor) -> Tensor:
    """`model.encode_text`, normalised, (B, E), without computing the padding after the longest caption; ids (B, 32)."""
    end = ids.max()
    ids = ids[:, : int((ids == end).int().argmax(1).max()) + 1]
    length = ids.shape[1]
    x = model.token_embedding(ids) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return F.normalize(x[torch.arange(len(ids)), ids.argmax(1)] @ model.text_projection, dim=-1)


def _shifted(x: Tensor, rng: np.random.Generator, most: int = 3) -> Tensor:
    """The batch moved by a few pixels, borders repeated."""
    dx, dy = rng.integers(0, 2 * most + 1, 2)
    padded = F.pad(x, (most,) * 4, mode="replicate")
    return padded[..., dy : dy + x.shape[-2], dx : dx + x.shape[-1]]


def train(images: np.ndarray, tokens: Tensor, vocabulary: int, run: Run, batch: int = 128) -> CLIP:
    """images (N, 64, 64, 3) uint8; tokens (N, captions, 32)."""
    torch.manual_seed(run.seed + 1)  # shares nothing with the base's text tower, not even its first weights
    model = build(vocabulary).to(run.device, memory_format=torch.channels_last)
    fit = Fit("clip", run.folder, {"clip": model}, run.steps, lr=1.5e-3, weight_decay=0.05, until=run.until)

    def loss_at(step: int) -> Tensor:
        rng = np.random.default_rng((run.seed, step, 1))
        rows = np.sort(rows_at(run.seed, step, len(images), batch))
        ids = tokens[torch.from_numpy(rows), torch.from_numpy(rng.integers(0, tokens.shape[1], batch))]
        x = _shifted(to_float(images[rows], run.device), rng)
        with fast_precision(run.device):
            image, text = model.encode_image(x, normalize=True), embed_text(model, ids.to(run.device))
        same = (ids[:, None] == ids[None]).all(-1).float().to(run.device)
        return contrastive(image.float(), text.float(), model.logit_scale.exp().clamp(max=100), same)

    fit.run(loss_at)
    return fit.finished()["clip"]


def save(model: CLIP, vocabulary: int, tokenizer: Path, folder: Path) -> None:
    """A folder that `open_clip.create_model_and_transforms('local-dir:...')` and `get_tokenizer` open."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    sizes = {"size": 64, "mode": "RGB", "interpolation": "bicubic", "resize_mode": "squash"}
    config = {
        "model_cfg": {"embed_dim": EMBED, "vision_cfg": VISION, "text_cfg": text_config(vocabulary)},
        "preprocess_cfg": {"mean": MEAN, "std": STD, **sizes},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1))
    for file in tokenizer.iterdir():
        shutil.copy(file, folder / file.name)
