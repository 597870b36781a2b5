"""The training of one cell: its job, its steps, and the adapters that it saves."""

from __future__ import annotations

from dataclasses import replace

from bench.contracts import Recipe
from bench.data.decoding import resized
from bench.steps.baseline import prior
from bench.steps.work import Work
from bench.training.checks import high_ends
from bench.training.optimizers import OWN_RATE
from bench.training.trainer import Job, Step


def training_job(work: Work) -> Job:
    """The cell as the trainer sees it; its checkpoint, if there is one, is where it goes on."""
    from bench.training.latents import Latents

    options, recipe, backbone = work.trainer, _recipe(work), work.training_backbone
    own = [replace(example, image=resized(example.image, backbone.resolution)) for example in prior(work)]
    data = Latents(
        work.training_dataset, backbone, recipe, own, options.resample, options.noise_offset, options.min_snr
    )
    if backbone.resolution != work.backbone.resolution:
        work.note(f"trained at {backbone.resolution} pixels, drawn at {work.backbone.resolution}")
    file, mine = work.folder / "checkpoint.safetensors", lambda: not work.is_lost(look=True)
    return Job(work.slot or 0, work.method, data, recipe, work.cell.seed, file, mine, options)


def _recipe(work: Work) -> Recipe:
    """The method's own, with the learning rate of this backbone and optimizer."""
    scale, published = work.trainer.lr_scale, work.method.recipe
    assert published is not None
    if work.trainer.optimizer in OWN_RATE:
        work.note(f"{work.trainer.optimizer} finds the learning rate; the method's {published.lr:g} is not used")
        return replace(published, lr=1.0)
    if scale != 1:
        work.note(f"the method's learning rate {published.lr:g} times {scale:g} for this backbone")
    return replace(published, lr=published.lr * scale)


def log_step(work: Work, step: Step) -> None:
    """A finished training step, or the error that was its last."""
    work.error = step.error
    if step.error is None and not work.is_lost():
        work.training_log.write(step)
        parts = {f"loss/{i}": loss for i, loss in enumerate(step.losses, start=1)} if len(step.losses) > 1 else {}
        work.tracker.log(step.k, {"loss": sum(step.losses), "lr": step.lr, **parts})
        work.spend("steps", 1)


def save_adapters(work: Work) -> None:
    """Write what was trained, and not what was read from a file; note losses that end high."""
    if work.method.recipe is not None:
        for sentence in high_ends(work.training_log.path):
            work.note(sentence)
    if work.store is not None:
        work.store.check_mine(work.cell.run_id)
    for name in work.trained(work.bank):
        work.bank.save(name, work.slot or 0, work.folder / "adapters")
