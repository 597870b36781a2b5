"""Stage `readers`: train the classifier of thing, artist and background on real drawings of all artists."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.mini import drawings, pictures
from bench.mini.readers import Readers
from bench.mini.recipe.training import Fit, Run, fast_precision, rows_at
from bench.mini.recipe.world import ARTISTS, THINGS, World, sample_readers

QUESTIONS = {"thing": "thing", "style": "artist", "background": "background"}  # label of the world -> question

UNASKED = -100  # cross_entropy's ignore_index


def classes() -> dict[str, list[str]]:
    """The answers: the things of the world, all artists, all backgrounds."""
    world = [name for name, thing in drawings.things().items() if thing.world]
    return {"thing": world, "artist": list(ARTISTS), "background": list(pictures.BACKGROUNDS)}


def targets(labels: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Class indices (N,) by question; `thing` counts the world's things alone, all others are `UNASKED`."""
    place = {name: k for k, name in enumerate(classes()["thing"])}
    thing = torch.tensor([place.get(THINGS[k], UNASKED) for k in labels["thing"].tolist()])
    others = {QUESTIONS[k]: torch.from_numpy(labels[k].astype(np.int64)) for k in ("style", "background")}
    return {"thing": thing, **others}


@torch.no_grad()
def accuracy(model: Readers, count: int = 3000, seed: int = 7) -> dict[str, float]:
    """Share of right answers by question on drawings that training never showed (thing and artist together).

    The readers saw these things by other artists, and these artists' other things.
    """
    rng = np.random.default_rng(seed)
    drawn = [sample_readers(rng, tested=True) for _ in range(count)]
    images = torch.from_numpy(np.stack([pictures.render(picture) for picture in drawn])).permute(0, 3, 1, 2)
    said = model.eval().read(images)
    expected = {
        "thing": [picture.thing for picture in drawn],
        "artist": [picture.artist for picture in drawn],
        "background": [picture.background.label for picture in drawn],
    }
    return {k: float(np.mean([a == b for a, b in zip(said[k], expected[k], strict=True)])) for k in said}


def softened(x: Tensor, rng: torch.Generator) -> Tensor:
    """Shift, blur a little, add a little noise: what a denoiser and a decoder may do to a picture (N, 3, 64, 64)."""
    dx, dy = (int(d) for d in torch.randint(-2, 3, (2,), generator=rng))
    x = torch.roll(x.float(), (dy, dx), (2, 3))
    share = float(torch.rand((), generator=rng))
    x = x * (1 - share) + share * F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return x + 10 * torch.rand((), generator=rng) * torch.randn(x.shape, generator=rng)


def recoloured(x: Tensor, rng: torch.Generator) -> Tensor:
    """Mixtures of the colours, a third grey, half of the pictures mirrored; the thing stays the same (N, 3, H, W)."""
    count = len(x)
    mix = torch.eye(3) + 0.25 * torch.randn(count, 3, 3, generator=rng)
    grey = (torch.rand(count, 1, 1, generator=rng) < 1 / 3).float()
    mix = mix * (1 - grey) + grey / 3
    x = torch.einsum("nij,njhw->nihw", mix, x - 127.5) + 127.5 + 20 * torch.randn(count, 3, 1, 1, generator=rng)
    mirrored = torch.rand(count, 1, 1, 1, generator=rng) < 0.5
    return torch.where(mirrored, x.flip(3), x).clamp(0, 255)


def train(world: World, run: Run, batch: int = 64) -> Readers:
    """world: pictures of `readers` (N, 64, 64, 3). Half of each batch is recoloured, and asks for the thing alone."""
    torch.manual_seed(run.seed + 2)
    model, told = Readers(classes()).to(run.device, memory_format=torch.channels_last), targets(world.labels)
    fit = Fit("readers", run.folder, {"readers": model}, run.steps, lr=2e-3, weight_decay=0.05, until=run.until)

    def loss_at(step: int) -> Tensor:
        rows = np.sort(rows_at(run.seed, step, len(world.images), batch))
        x = torch.from_numpy(np.array(world.images[rows])).permute(0, 3, 1, 2)
        rng = torch.Generator().manual_seed(run.seed + step)
        order = torch.randperm(batch, generator=rng).numpy()  # rows are sorted for the disk
        x, half = softened(x[order], rng), batch // 2
        x = torch.cat([x[:half], recoloured(x[half:], rng)]).to(run.device)
        with fast_precision(run.device):
            said = model(x)
        losses = []
        for k, logits in said.items():
            asked = batch if k == "thing" else half
            expected = told[k][rows[order]][:asked].to(run.device)
            losses.append(F.cross_entropy(logits[:asked].float(), expected, label_smoothing=0.05))
        return torch.stack(losses).sum()

    fit.run(loss_at)
    return fit.finished()["readers"]
