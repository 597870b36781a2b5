"""Images drawn during training, every `trainer.preview_every` steps: files of the cell's folder, also for the tracker.

They are for the eye: no metric reads them, and what is trained does not depend on them.
"""

from __future__ import annotations

from bench.steps.drawing import drawn
from bench.steps.work import Work
from bench.training.trainer import Step

PROMPTS = 4  # in a preview, the first ones


def preview(work: Work, step: Step) -> None:
    """Write previews/step=000100.png of the first prompts at the default strength, where a preview is due."""
    every = work.trainer.preview_every
    if every is None or step.error is not None or step.k % every:
        return
    from bench.sampling.grid import grid
    from bench.sampling.sampler import Request

    shots = list({shot.index: shot for shot in reversed(work.shots)}.values())[::-1][:PROMPTS]  # one of each prompt
    request = Request(work.slot or 0, work.method, work.dataset, shots, float(work.method.strength))
    with work.clock("preview_s"):
        (images,) = drawn(work.bank, [request], work.sampler, f"preview {work.cell.run_id}", lambda: None)
    path = work.folder / "previews" / f"step={step.k:06d}.png"
    path.parent.mkdir(exist_ok=True)
    grid([(f"step {step.k}", images)], [shot.prompt for shot in shots], path)
    work.tracker.images("training", path)
