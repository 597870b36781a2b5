"""LoRA files of diffusers, PEFT, kohya and older diffusers scripts, read by diffusers' own conversion.

Every tensor of a file is used exactly once, at the layer that it names, in its shape and with its scale, or the file
is refused with the list of what is not supported. r rank: `lora_A` (r, in), `lora_B` (out, r); for convolutions (r, in,
kh, kw) and (out, r, 1, 1).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bench.adapters.lora_scale import METADATA, Scales, settings_of
from bench.adapters.weight_files import check_numbers, open_weights, parsed, refused
from bench.contracts import BenchError

PEFT_SETTINGS, PEFT_FILES = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
PEFT_PREFIX = "base_model.model."
KOHYA = re.compile(r"lora_(unet|te|te1|te2)_")
BARE = re.compile(r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding)\.")
OURS = re.compile(r"(?:unet|transformer)\.(.+)\.lora_([AB])\.weight")
ORIGINAL = re.compile(r"(lora_(unet|transformer)_|diffusion_model\.)|.*\b(double_blocks|single_blocks|joint_blocks)\.")
ADVICE = "give a plain LoRA of this backbone's network alone"
CONVERT = (
    "convert it with the pipeline class of its model, e.g. in Python: safetensors.torch.save_file({name: value.clone() "
    "for name, value in diffusers.FluxPipeline.lora_state_dict('<file>').items()}, '<new file>')"
)
UNSUPPORTED = (  # what a name says about a tensor
    (re.compile(r"^lora_te\d?_|^(base_model\.model\.)?text_encoder(_\d)?\."), "weights of a text encoder"),
    (re.compile(r"dora_scale|lora_magnitude_vector"), "magnitudes of DoRA"),
    (re.compile(r"\.hada_"), "factors of LoHa"),
    (re.compile(r"\.lokr_"), "factors of LoKr"),
    (re.compile(r"lora_mid"), "factors of a Tucker decomposition"),
    (re.compile(r"\.bias$|\.diff(_b)?$"), "differences of whole weights or biases"),
    (re.compile(r"custom_diffusion|_ip\.|_ip_adapter"), "weights of other attention processors"),
)


def read_lora(path: Path, network: Any = None, part: str = "unet") -> dict[str, Tensor]:
    """A LoRA file, or a PEFT folder, under the names that `Bank.state` writes, its scale folded into `lora_B`.

    `network` is the UNet or transformer that the adapter is for, `part` diffusers' name of it. Without `network`
    places and shapes are not checked, and kohya's names of SDXL's original blocks are refused. Raises BenchError.
    """
    tensors, settings, header = _opened(path, part)
    alphas = {name: value for name, value in tensors.items() if name.endswith(".alpha")}
    weights = {name: value.detach() for name, value in tensors.items() if name not in alphas}  # an object for each name
    names = _names(path, weights, network, part)
    layers = _layers(path, names, weights, network)
    scales = Scales(path, settings, _alphas(path, alphas, layers), header)
    state = {}
    for site, (down, up) in layers.items():
        scale = scales.of(site, weights[down].shape[0])
        state[f"{part}.{site}.lora_A.weight"] = _wide(weights[down])
        state[f"{part}.{site}.lora_B.weight"] = _wide(weights[up]) * scale
    return state


def ranks(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Site -> rank of what `read_lora` gives."""
    return {match[1]: len(value) for key, value in state.items() if (match := OURS.fullmatch(key)) and match[2] == "A"}


def _wide(value: Tensor) -> Tensor:
    return value if value.dtype.itemsize > 4 else value.float()


# --- opening


def _opened(path: Path, part: str) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    """Tensors by the file's own names, PEFT's settings or none, and the header."""
    folder = path if path.is_dir() else path.parent
    is_peft = path.is_dir() or path.name in PEFT_FILES
    if is_peft and (folder / PEFT_SETTINGS).is_file():
        return _of_peft(folder)
    if not path.is_file():
        raise BenchError(
            f"Loading an adapter: {path} is not a file; give the .safetensors file of a LoRA or a PEFT folder."
        )
    tensors, header = open_weights(path, "weights of a LoRA")
    check_numbers(path, tensors)
    if any(name.startswith(PEFT_PREFIX) for name in tensors):
        raise BenchError(
            f"{path} is of PEFT, whose scale stands in {PEFT_SETTINGS}, and that is not beside it; give PEFT's whole "
            "folder with the file under its own name."
        )
    return tensors, settings_of(path, header, part), header if METADATA not in header else {}


def _of_peft(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    from peft.utils.save_and_load import load_peft_weights
    from safetensors import SafetensorError

    from bench.adapters.weight_files import UNREADABLE

    if not any((folder / name).is_file() for name in PEFT_FILES):  # PEFT would ask the hub
        raise BenchError(f"The PEFT folder {folder} lacks {PEFT_FILES[0]}; stage it again.")
    try:
        tensors = dict(load_peft_weights(str(folder), device="cpu"))
        settings = parsed((folder / PEFT_SETTINGS).read_text(), folder)
    except (*UNREADABLE, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BenchError(f"The PEFT folder {folder} cannot be read ({reason}); stage it again.") from error
    check_numbers(folder, tensors)
    return tensors, settings, {}


# --- names


def _names(path: Path, weights: Mapping[str, Tensor], network: Any, part: str) -> dict[str, str]:
    """Name in the file -> `<part>.<site>.lora_A.weight`, for all of them, through diffusers' conversion."""
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    wrong = {name: reason for name in weights if (reason := _unsupported(name))}
    if wrong:
        raise refused(path, wrong, ADVICE)
    if part == "transformer" and any(ORIGINAL.match(name) for name in weights):
        reason = "weights under names of kohya's tools or of the original model, whose layers are other ones"
        raise refused(path, {name: reason for name in weights if ORIGINAL.match(name)}, CONVERT)
    kohya = all(KOHYA.match(name) for name in weights)
    state = _of_kohya(path, weights, network) if kohya else {_prefixed(name): value for name, value in weights.items()}
    converted = {id(value): key for key, value in convert_unet_state_dict_to_peft(state).items()}
    names = {name: converted.get(id(value), "") for name, value in weights.items()}
    known = {ours for ours in names.values() if OURS.fullmatch(ours) and ours.startswith(f"{part}.")}
    wrong = {name: "names that are unknown or doubled" for name, ours in names.items() if ours not in known}
    if wrong:
        raise refused(path, wrong, ADVICE)
    return names


def _unsupported(name: str) -> str:
    return next((reason for pattern, reason in UNSUPPORTED if pattern.search(name)), "")


def _prefixed(name: str) -> str:
    """Older scripts and PEFT save the UNet's own names."""
    own = name.removeprefix(PEFT_PREFIX)
    return f"unet.{own}" if BARE.match(own) else own


def _of_kohya(path: Path, weights: Mapping[str, Tensor], network: Any) -> dict[str, Tensor]:
    from diffusers import StableDiffusionPipeline

    try:
        return StableDiffusionPipeline.lora_state_dict(dict(weights), unet_config=getattr(network, "config", None))[0]
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BenchError(
            f"{path} is not used, since diffusers cannot rename its keys of kohya's kind "
            f"({type(error).__name__}: {reason}); {ADVICE}."
        ) from error


# --- layers


def _layers(
    path: Path, names: Mapping[str, str], weights: Mapping[str, Tensor], network: Any
) -> dict[str, tuple[str, str]]:
    """Site -> the file's names of its `down` and `up`, in the network's order; all of them fit the network."""
    halves: dict[str, dict[str, str]] = {}
    for name, ours in names.items():
        match = OURS.fullmatch(ours)
        assert match is not None
        halves.setdefault(match[1], {})[match[2]] = name
    modules = None if network is None else dict(network.named_modules())
    wrong: dict[str, str] = {}
    for site, pair in halves.items():
        shapes = {half: tuple(weights[name].shape) for half, name in pair.items()}
        if fault := _misfit(shapes, modules, site):
            wrong |= {name: fault for name in pair.values()}
    if wrong:
        raise refused(path, wrong, ADVICE)
    order = [site for site in modules if site in halves] if modules is not None else list(halves)
    return {site: (halves[site]["A"], halves[site]["B"]) for site in order}


def _misfit(shapes: Mapping[str, tuple[int, ...]], modules: Mapping[str, Any] | None, site: str) -> str:
    """What is wrong with the two halves of a site, or nothing."""
    if set(shapes) != {"A", "B"}:
        return "halves without their other half"
    if modules is not None and not isinstance(modules.get(site), (nn.Linear, nn.Conv2d)):
        return "weights for layers that this network does not have"
    down, up = shapes["A"], shapes["B"]
    rank = down[0] if down else 0
    if modules is None:
        fits = len(down) == len(up) and len(down) in (2, 4) and rank == up[1] and up[2:] in ((), (1, 1))
    else:
        fits = (down, up) == _expected(modules[site], rank)
    return "" if fits and rank else f"weights in shapes {down} and {up}, which are no rank's at their layers"


def _expected(module: Any, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of `lora_A` and `lora_B`."""
    if isinstance(module, nn.Conv2d):
        if module.groups != 1:
            return (), ()
        return (rank, module.in_channels, *module.kernel_size), (module.out_channels, rank, 1, 1)
    return (rank, module.in_features), (module.out_features, rank)


def _alphas(path: Path, alphas: Mapping[str, Tensor], layers: Mapping[str, tuple[str, str]]) -> dict[str, float]:
    """Site -> alpha; every `.alpha` is one number and belongs to a layer of the file."""
    sites = {re.split(r"[._]lora[._]", down)[0]: site for site, (down, _) in layers.items()}
    wrong = {name: _unsupported(name) or "alphas without a layer" for name in alphas if name[:-6] not in sites}
    wrong |= {name: "alphas that are not one number" for name, value in alphas.items() if value.numel() != 1}
    if alphas:
        wrong |= {
            f"{base}": "layers without an alpha beside others with one"
            for base in sites
            if f"{base}.alpha" not in alphas
        }
    if wrong:
        raise refused(path, wrong, ADVICE)
    return {sites[name[:-6]]: float(value) for name, value in alphas.items()}
