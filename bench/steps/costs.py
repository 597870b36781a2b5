"""What a cell cost: seconds of each phase, rates, memory, and the size of what was trained."""

from __future__ import annotations

import resource
import sys

from bench.steps.work import Work


def costs(work: Work) -> dict[str, float]:
    """Seconds of each phase, rates, memory, and the size of what was trained.

    Seconds that cells of a pack share are split evenly among those that took part: `train_s` and `sample_s` add up
    to the time that passed, and `pack` says how many took part on average; `compile` and `channels_last` are the
    share of ticks that ran so. Whoever needs the backbone, a baseline or class images first pays for them.
    """
    found = {"peak_gb": peak_gb(), **work.cost}
    if "ticks" in found:
        ticks = found.pop("ticks")
        found["pack"] = found.pop("sharing") / ticks
        found |= {name: found[name] / ticks for name in ("compile", "channels_last") if name in found}
    if "sample_s" in found and "images" in found:
        found["images_per_s"] = found.pop("images") / found["sample_s"]
    if "train_s" in found and "steps" in found:
        found["steps_per_s"] = found["steps"] / found["train_s"]
    if "bank" in vars(work):
        trained = [name for name, spec in work.bank.specs.items() if spec.file is None]
        found["trainable_parameters"] = sum(work.bank.theta[name].shape[1] for name in trained)
        found["adapter_bytes"] = _style_bytes(work)
    return found


def _style_bytes(work: Work) -> int:
    """Size of what others load of this cell; 0 when there is none."""
    if "style" not in work.bank.specs:
        return 0
    files = [work.folder / "adapters" / path for path in work.bank.files("style")]
    return sum(file.stat().st_size for file in files if file.is_file())


def peak_gb() -> float:
    """Most memory used so far, in GB: of the GPU where one is used, else of this process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
