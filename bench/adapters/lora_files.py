"""LoRA files of diffusers, PEFT, kohya and older diffusers scripts, read by diffusers' own conversion.

Every tensor of a file is used exactly once, at the layer that it names, in its shape and with its scale, or the file
is refused with the list of what is not supported. r rank: `lora_A` (r, in), `lora_B` (out, r); for convolutions (r, in,
kh, kw) and (out, r, 1, 1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bench.adapters.lora_scale import METADATA, Scales, settings_of
from bench.adapters.low_rank import MAGNITUDE
from bench.adapters.weight_files import check_numbers, open_weights, parsed, refused
from bench.contracts import BenchError

PEFT_SETTINGS, PEFT_FILES = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
LENGTHS = re.compile(rf"\.{MAGNITUDE}(\.weight)?$")
TEXT = "text_encoder"  # diffusers' names of text encoders begin so
PEFT_PREFIX = "base_model.model."
KOHYA = re.compile(r"lora_(unet|te|te1|te2)_")
BARE = re.compile(r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding)\.")
OURS = re.compile(r"(?:(?:unet|transformer)\.|(?=text_encoder))(.+)\.lora_([AB])\.weight")  # site and half
OF_TEXT = re.compile(r"^lora_te\d?_|^(base_model\.model\.)?text_encoder(_\d)?\.")
ORIGINAL = re.compile(r"(lora_(unet|transformer)_|diffusion_model\.)|.*\b(double_blocks|single_blocks|joint_blocks)\.")
ADVICE = "give a plain LoRA of this backbone's UNet and CLIP text encoders"
CONVERT = (
    "convert it with the pipeline class of its model, e.g. in Python: safetensors.torch.save_file({name: value.clone() "
    "for name, value in diffusers.FluxPipeline.lora_state_dict('<file>').items()}, '<new file>')"
)
UNSUPPORTED = (  # what a name says about a tensor
    (re.compile(r"dora_scale"), "lengths of DoRA in kohya's form"),
    (re.compile(r"\.hada_"), "factors of LoHa"),
    (re.compile(r"\.lokr_"), "factors of LoKr"),
    (re.compile(r"lora_mid"), "factors of a Tucker decomposition"),
    (re.compile(r"\.bias$|\.diff(_b)?$"), "differences of whole weights or biases"),
    (re.compile(r"custom_diffusion|_ip\.|_ip_adapter"), "weights of other attention processors"),
)


def read_lora(
    path: Path, network: Any = None, part: str = "unet", encoders: Mapping[str, nn.Module] | None = None
) -> dict[str, Tensor]:
    """A LoRA file, or a PEFT folder, under the names that `Bank.state` writes, its scale folded into `lora_B`.

    `network` is the UNet or transformer that the adapter is for, `part` diffusers' name of it; `encoders` are layers of
    its text encoders, as `text_layers.text_layers` names them. Without `network` places and shapes are not checked, and
    kohya's names of SDXL's original blocks are refused. Raises BenchError.
    """
    tensors, header = _opened(path)
    alphas = {name: value for name, value in tensors.items() if name.endswith(".alpha")}
    of_dora = {name: value for name, value in tensors.items() if LENGTHS.search(name)}
    others = (name for name in tensors if name not in alphas and name not in of_dora)
    weights = {name: tensors[name].detach() for name in others}  # an object for each name
    names = _names(path, weights, network, part, encoders)
    layers = _layers(path, names, weights, None if network is None else {**_modules(network), **(encoders or {})})
    dora = _lengths(path, of_dora, layers, weights, part)
    scales = _scales(path, header, _alphas(path, alphas, layers), part, bool(dora))
    state = {}
    for site, (down, up) in layers.items():
        of, full = part_of(site, part), full_name(site, part)
        scale = scales(of).of(site, weights[down].shape[0])
        state[f"{full}.lora_A.weight"] = _wide(weights[down])
        state[f"{full}.lora_B.weight"] = _wide(weights[up]) * scale
        if site in dora:
            state[f"{full}.{MAGNITUDE}"] = _wide(dora[site])
    return state


def part_of(site: str, part: str) -> str:
    """diffusers' name of the network that a site lies in; sites of text encoders begin with it."""
    return site.partition(".")[0] if site.startswith(TEXT) else part


def full_name(site: str, part: str) -> str:
    """A site with its network, as files have it."""
    return site if site.startswith(TEXT) else f"{part}.{site}"


def _modules(network: Any) -> dict[str, Any]:
    return dict(network.named_modules())


def _scales(
    path: Path, header: Mapping[str, Any], alphas: Mapping[str, float], part: str, dora: bool
) -> Callable[[str], Scales]:
    """The scales of a network, by its name."""

    @cache
    def of(name: str) -> Scales:
        settings = header.get(PEFT_SETTINGS) or settings_of(path, header, name)
        if settings.get("use_dora") and not dora:
            raise BenchError(f"{path} says use_dora=true and holds no {MAGNITUDE}; save the adapter again.")
        own = {site: alpha for site, alpha in alphas.items() if part_of(site, part) == name}
        return Scales(path, settings, own, {} if METADATA in header or PEFT_SETTINGS in header else header)

    return of


def has_lengths(state: Mapping[str, Tensor]) -> bool:
    """Whether what `read_lora` gives is a DoRA."""
    return any(key.endswith(MAGNITUDE) for key in state)


def ranks(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Site -> rank of what `read_lora` gives."""
    return {match[1]: len(value) for key, value in state.items() if (match := OURS.fullmatch(key)) and match[2] == "A"}


def _wide(value: Tensor) -> Tensor:
    return value if value.dtype.itemsize > 4 else value.float()


# --- opening


def _opened(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by the file's own names and the header; under PEFT_SETTINGS the settings of PEFT's folder."""
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
    return tensors, dict(header)


def _of_peft(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
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
    return tensors, {PEFT_SETTINGS: settings}


# --- names


def _names(
    path: Path, weights: Mapping[str, Tensor], network: Any, part: str, encoders: Mapping[str, Any] | None
) -> dict[str, str]:
    """Name in the file -> full name of the site and `lora_A.weight`, for all of them, through diffusers' conversion."""
    wrong = {name: reason for name in weights if (reason := _unsupported(name))}
    if network is not None and not encoders:
        wrong |= {name: "weights of a text encoder" for name in weights if OF_TEXT.search(name)}
    if wrong:
        raise refused(path, wrong, ADVICE)
    if part == "transformer" and any(ORIGINAL.match(name) for name in weights):
        reason = "weights under names of kohya's tools or of the original model, whose layers are other ones"
        raise refused(path, {name: reason for name in weights if ORIGINAL.match(name)}, CONVERT)
    kohya = all(KOHYA.match(name) for name in weights)
    state = _of_kohya(path, weights, network) if kohya else {_prefixed(name): value for name, value in weights.items()}
    converted = {id(value): key for key, value in _converted(state).items()}
    names = {name: converted.get(id(value), "") for name, value in weights.items()}
    known = {ours for ours in names.values() if OURS.fullmatch(ours) and ours.startswith((f"{part}.", TEXT))}
    wrong = {name: "names that are unknown or doubled" for name, ours in names.items() if ours not in known}
    if wrong:
        raise refused(path, wrong, ADVICE)
    return names


def _converted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """PEFT's names of the halves, from any that diffusers knows; text encoders have `text_model` in theirs."""
    from diffusers.utils.state_dict_utils import convert_state_dict_to_peft, convert_unet_state_dict_to_peft

    of_text = {name: value for name, value in state.items() if name.startswith(TEXT)}
    own = convert_unet_state_dict_to_peft({name: value for name, value in state.items() if name not in of_text})
    if not all(".lora_A." in name or ".lora_B." in name for name in of_text):
        of_text = convert_state_dict_to_peft(of_text)
    return own | {re.sub(rf"^({TEXT}(?:_\d)?)\.(?!text_model\.)", r"\1.text_model.", n): v for n, v in of_text.items()}


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
    path: Path, names: Mapping[str, str], weights: Mapping[str, Tensor], modules: Mapping[str, Any] | None
) -> dict[str, tuple[str, str]]:
    """Site -> the file's names of its `down` and `up`, in the network's order; all of them fit the network."""
    halves: dict[str, dict[str, str]] = {}
    for name, ours in names.items():
        match = OURS.fullmatch(ours)
        assert match is not None
        halves.setdefault(match[1], {})[match[2]] = name
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


def _lengths(
    path: Path,
    found: Mapping[str, Tensor],
    layers: Mapping[str, tuple[str, str]],
    weights: Mapping[str, Tensor],
    part: str,
) -> dict[str, Tensor]:
    """Site -> lengths of DoRA (out,), or (1, out, 1, 1) of a convolution; none, or those of all layers of the file."""
    sites = {name: LENGTHS.sub("", _prefixed(name)).removeprefix(f"{part}.") for name in found}
    wide = {site: weights[up] for site, (_, up) in layers.items()}
    shapes = {site: (1, len(up), 1, 1) if up.dim() == 4 else (len(up),) for site, up in wide.items()}
    wrong = {name: "lengths of DoRA without a layer" for name, site in sites.items() if site not in layers}
    wrong |= {name: "lengths of DoRA of a text encoder" for name, site in sites.items() if site.startswith(TEXT)}
    wrong |= {
        name: "lengths of DoRA in another shape than their layers"
        for name, site in sites.items()
        if site in shapes and tuple(found[name].shape) != shapes[site]
    }
    if found:
        wrong |= {
            up: "layers without DoRA beside others with it"
            for site, (_, up) in layers.items()
            if site not in sites.values() and not site.startswith(TEXT)
        }
    if wrong:
        raise refused(path, wrong, ADVICE)
    return {site: found[name] for name, site in sites.items()}


def _alphas(path: Path, alphas: Mapping[str, Tensor], layers: Mapping[str, tuple[str, str]]) -> dict[str, float]:
    """Site -> alpha; every `.alpha` is one number and belongs to a layer of the file."""
    sites = {re.split(r"[._]lora[._]", down)[0]: site for site, (down, _) in layers.items()}
    lost = [name for name in alphas if name[:-6] not in sites]
    kinds = {name: "weights of a text encoder" if OF_TEXT.search(name) else "alphas without a layer" for name in lost}
    wrong = {name: _unsupported(name) or kind for name, kind in kinds.items()}
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
