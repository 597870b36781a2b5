"""LoRA files in every format that we read, for the networks of `narrow_networks`."""

import copy
import json

import torch
from safetensors.torch import save_file

from bench.contracts import Text
from bench.seeding import generator


def rows():
    """Latents (2, 4, 8, 8), timesteps, text."""
    draw = generator("rows")
    extras = {"text_embeds": torch.randn(2, 16, generator=draw), "time_ids": torch.full((2, 6), 64.0)}
    text = Text(torch.randn(2, 6, 24, generator=draw), extras)
    return torch.randn(2, 4, 8, 8, generator=draw), torch.tensor([500, 20]), text


ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")
FEED_FORWARD = (*ATTENTION, ".ff.net.0.proj", ".ff.net.2")
EVERYWHERE = (*FEED_FORWARD, ".proj_in", ".proj_out", ".conv1", ".conv2", ".time_emb_proj", ".conv_shortcut", ".conv")


def halves(network, ends=FEED_FORWARD, rank=lambda site: 4):
    """Site -> (down, up), random, of the ranks that are requested."""
    found = {}
    for site, module in network.named_modules():
        if site.endswith(ends):
            draw, r = generator(site), rank(site)
            down, up = (module.weight.shape[1:], (1, 1)) if module.weight.dim() == 4 else (module.weight.shape[1:], ())
            found[site] = (
                torch.randn(r, *down, generator=draw) * 0.3,
                torch.randn(len(module.weight), r, *up, generator=draw) * 0.3,
            )
    return found


def merged(network, pairs, scale):
    """A copy of the network with scale(site) * up @ down added to its weights: the plain meaning of a LoRA."""
    other = copy.deepcopy(network)
    with torch.no_grad():
        for site, (down, up) in pairs.items():
            weight = other.get_submodule(site).weight
            weight += scale(site) * (up.flatten(1) @ down.flatten(1)).view_as(weight)
    return other


# --- names of each format --------------------------------------------------------------------------------------------


def diffusers_names(pairs):
    return {
        f"unet.{site}.lora_{half}.weight": x for site, both in pairs.items() for half, x in zip("AB", both, strict=True)
    }


def lora_names(pairs):
    """diffusers before PEFT."""
    ends = ("lora.down", "lora.up")
    return {f"unet.{site}.{end}.weight": x for site, both in pairs.items() for end, x in zip(ends, both, strict=True)}


def processor_names(pairs, prefix=""):
    """Attention processors of the first scripts."""
    state = {}
    for site, both in pairs.items():
        place, _, name = site.replace(".to_out.0", ".to_out").rpartition(".")
        for end, x in zip(("down", "up"), both, strict=True):
            state[f"{prefix}{place}.processor.{name}_lora.{end}.weight"] = x
    return state


def kohya_names(pairs, alphas=lambda site: None, rename=lambda site: site):
    state = {}
    for site, both in pairs.items():
        name = "lora_unet_" + rename(site).replace(".", "_")
        state |= {f"{name}.lora_{end}.weight": x for end, x in zip(("down", "up"), both, strict=True)}
        if alphas(site) is not None:
            state[f"{name}.alpha"] = torch.tensor(float(alphas(site)))
    return state


INSIDE = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}


def original(site):
    """The name of an SDXL layer in the original blocks, which kohya's trainer uses (two layers per block)."""
    words = site.split(".")
    if words[0] == "mid_block":
        place = 1 if words[1] == "attentions" else 2 * int(words[2])
        return ".".join(["middle_block", str(place), *(INSIDE.get(word, word) for word in words[3:])])
    block, kind, layer, rest = int(words[1]), words[2], int(words[3]), [INSIDE.get(word, word) for word in words[4:]]
    if kind == "downsamplers":
        return f"input_blocks.{3 * block + 3}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{3 * block + 2}.2.conv"
    inner = str(("resnets", "attentions").index(kind))
    if words[0] == "down_blocks":
        return ".".join(["input_blocks", str(3 * block + layer + 1), inner, *rest])
    return ".".join(["output_blocks", str(3 * block + layer), inner, *rest])


def metadata(**settings):
    """A safetensors header as diffusers' save_lora_weights writes it."""
    whole = {"target_modules": [end.removeprefix(".") for end in FEED_FORWARD], **settings}
    return {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in whole.items()})}


def peft_folder(folder, network, pairs, **settings):
    """What PEFT's own save_pretrained writes for these halves."""
    from peft import LoraConfig, get_peft_model

    targets = sorted(pairs)
    model = get_peft_model(copy.deepcopy(network), LoraConfig(r=4, target_modules=targets, **settings))
    parts = dict(model.named_parameters())
    for site, both in pairs.items():
        for half, x in zip("AB", both, strict=True):
            parts[f"base_model.model.{site}.lora_{half}.default.weight"].data = x
    model.save_pretrained(folder)
    return folder


def saved(path, state, header=None):
    if path.suffix == ".safetensors":
        save_file({key: value.clone().contiguous() for key, value in state.items()}, path, header)
    else:
        torch.save(state, path)
    return path
