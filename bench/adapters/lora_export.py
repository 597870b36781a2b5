"""Low-rank adapters written for other tools, in the names of diffusers, PEFT or kohya; all with scale 1.

`state` is what `Bank.state` and `lora_files.read_lora` give: `unet.<site>.lora_A.weight` (r, in) and `lora_B` (out, r).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from bench.adapters.lora_files import PEFT_FILES, PEFT_PREFIX, has_lengths, ranks
from bench.contracts import BenchError
from bench.files import atomic_write


def diffusers(state: Mapping[str, Tensor], folder: Path) -> str:
    """The file that `pipe.load_lora_weights(folder)` looks for. Returns its name."""
    return _written(folder / "pytorch_lora_weights.safetensors", state)


def kohya(state: Mapping[str, Tensor], folder: Path) -> str:
    """kohya's names on diffusers' blocks, which ComfyUI and diffusers map; alpha is the rank. Returns the name."""
    from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya

    if has_lengths(state):
        raise BenchError(
            "The adapter is a DoRA, which tools read in several forms of kohya's; type --format diffusers."
        )
    named = {key: value.float() for key, value in convert_state_dict_to_kohya(dict(state)).items()}
    return _written(folder / "lora.safetensors", named)


def peft(state: Mapping[str, Tensor], folder: Path) -> str:
    """The folder that `PeftModel.from_pretrained(unet, folder)` reads. Returns the name of its file of weights."""
    from peft import LoraConfig

    if any(key.startswith("text_encoder") for key in state):
        raise BenchError(
            "The adapter also adapts text encoders, which a PEFT folder of one network cannot hold; "
            "type --format diffusers."
        )
    rank = ranks(state)
    most = max(rank.values())
    others = {site: r for site, r in rank.items() if r != most}
    config = LoraConfig(
        r=most,
        lora_alpha=most,
        target_modules=sorted(rank),
        rank_pattern=others,
        alpha_pattern=dict(others),
        use_dora=has_lengths(state),
    )
    config.save_pretrained(str(folder))
    return _written(folder / PEFT_FILES[0], {PEFT_PREFIX + key.removeprefix("unet."): x for key, x in state.items()})


FORMATS: dict[str, Callable[[Mapping[str, Tensor], Path], str]] = {"diffusers": diffusers, "kohya": kohya, "peft": peft}


def _written(path: Path, state: Mapping[str, Tensor]) -> str:
    from safetensors.torch import save

    atomic_write(path, save({key: value.contiguous() for key, value in state.items()}, {"format": "pt"}))
    return path.name
