"""Memory of a training step from shapes alone: the step runs on tensors that have a shape and no numbers.

The peak is that of all live tensors of the step: weights, adapters with their gradients, activations kept for the
backward pass, and intermediate results. The optimizer's two moments, the autoencoder and the text encoders are added.
What the CUDA context, the allocator and cuBLAS take (about 1 GB) is not in it.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import mse_loss
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.backbones.architectures import Architecture, published
from bench.contracts import AdapterSpec, Ask, BenchError, Text

if TYPE_CHECKING:
    from torch import Tensor

MOMENTS = 2  # of AdamW, in the precision of the adapters
QUANTISED = {"nf4": 0.5625, "int8": 1.0, "fp8": 1.0}  # bytes a weight; nf4 has a float32 scale for 64 weights


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a training step."""

    network: int  # weights of the denoiser
    others: int  # autoencoder, and the text encoders unless they leave the device
    adapters: int  # with gradients and the optimizer's moments
    step: int  # activations and intermediate results

    @property
    def total(self) -> int:
        return self.network + self.others + self.adapters + self.step

    def words(self) -> str:
        """ "12.3 GB: network 7.8, ..." """
        parts = {"network": self.network, "autoencoder and text encoders": self.others}
        parts |= {"adapters": self.adapters, "step": self.step}
        each = ", ".join(f"{name} {size / 1e9:.3g}" for name, size in parts.items())
        return f"{self.total / 1e9:.3g} GB ({each})"


class Peak(TorchDispatchMode):
    """Bytes of the tensors that are alive, and the most that were alive at once. Storages count once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor)
        return out

    def count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.live += storage.nbytes()
            self.most = max(self.most, self.live)
            weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def forecast(settings: Mapping[str, Any], specs: Mapping[str, AdapterSpec], rows: int, cells: int = 1) -> Memory:
    """Of a training step of `cells` cells with `rows` rows each, on a backbone as conf/backbone sets it.

    Raises BenchError for a model whose shapes are not known here.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = published(settings)
    if model is None:
        raise BenchError(f"The shapes of {settings['path']} are not known, so its memory is not forecast.")
    backbone = _without_network(settings)
    with FakeTensorMode(allow_non_fake_inputs=True):
        backbone.network = _network(backbone, settings, model)
        adapters, step = training_step(backbone, specs, _latent_shape(settings, model), _text(settings, model),
                                       rows, cells)  # fmt: skip
    return Memory(_network_bytes(backbone.network, settings), _other_bytes(settings, model), adapters, step)


def training_step(
    backbone: Any, specs: Mapping[str, AdapterSpec], shape: tuple[int, int, int], text: Any, rows: int, cells: int
) -> tuple[int, int]:
    """Bytes of the adapters with gradients and moments, and what a step adds at its peak. `text(n)` makes a Text."""
    from bench.adapters.bank import Bank

    bank = Bank(backbone, specs, [torch.Generator() for _ in range(cells)])
    kept = [*bank.theta.values(), *bank.grad.values()]
    names = {name: 1.0 for name in specs}
    peak = Peak()
    for tensor in [*backbone.network.parameters(), *backbone.network.buffers(), *kept]:
        peak.count(tensor)
    before = peak.live
    with peak:
        asks = [(cell, _ask(backbone, shape, text, rows, names)) for cell in range(cells)]
        answers = bank.answer(asks)
        bank.backward(torch.stack([mse_loss(out, torch.zeros_like(out)) for out in answers]).sum())
    bank.close()
    moments = MOMENTS * sum(theta.numel() * theta.element_size() for theta in bank.theta.values())
    return sum(tensor.numel() * tensor.element_size() for tensor in kept) + moments, peak.most - before


def _ask(backbone: Any, shape: tuple[int, int, int], text: Any, rows: int, names: Mapping[str, float]) -> Ask:
    z = torch.zeros(rows, *shape, device=backbone.device)
    return Ask(z, torch.full((rows,), 500, device=backbone.device), text(rows), names)


# --- the parts


def _without_network(settings: Mapping[str, Any]) -> Any:
    """The backbone's class with its settings and nothing loaded."""
    module, _, name = str(settings["_target_"]).rpartition(".")
    kind = getattr(import_module(module), name)
    made = kind.__new__(kind)
    made.name, made.resolution = settings["name"], settings["resolution"]
    made.device, made.dtype = torch.device("cpu"), getattr(torch, settings["dtype"])
    made.schedule = SimpleNamespace(train_timesteps=1000)
    return made


def _network(backbone: Any, settings: Mapping[str, Any], model: Architecture) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(backbone.dtype)
    try:
        network = backbone._network_class()(**model.network).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    if settings.get("gradient_checkpointing"):
        network.enable_gradient_checkpointing()
    return network


def _latent_shape(settings: Mapping[str, Any], model: Architecture) -> tuple[int, int, int]:
    channels, pixels = model.latents
    side = int(settings["resolution"]) // pixels
    return channels, side, side


def _text(settings: Mapping[str, Any], model: Architecture) -> Any:
    """n -> a Text of n prompts in the shapes that the network reads."""
    network, dtype = model.network, getattr(torch, str(settings["dtype"]))
    tokens = model.tokens or int(settings["text_length"])
    width = network.get("cross_attention_dim") or network.get("joint_attention_dim", 4096)
    extras = {"pooled": 768, "guidance": 0}
    if "StableDiffusion3" in str(settings["_target_"]):
        tokens, extras = tokens + 77, {"pooled": 2048}
    if "addition_embed_type" in network:
        extras = {"text_embeds": 1280, "time_ids": 6}

    def made(n: int) -> Text:
        sizes = {name: (n, size) if size else (n,) for name, size in extras.items()}
        return Text(torch.zeros(n, tokens, width, dtype=dtype), {k: torch.zeros(s) for k, s in sizes.items()})

    return made


def _network_bytes(network: Any, settings: Mapping[str, Any]) -> int:
    """With `quantize` the weights of linear layers take fewer bytes."""
    plain = {id(p): p.numel() * p.element_size() for p in network.parameters()}
    if settings.get("quantize"):
        share = QUANTISED[settings["quantize"]]
        linear = [module.weight for module in network.modules() if isinstance(module, torch.nn.Linear)]
        plain |= {id(weight): int(weight.numel() * share) for weight in linear}
    return sum(plain.values())


def _other_bytes(settings: Mapping[str, Any], model: Architecture) -> int:
    size = torch.empty((), dtype=getattr(torch, str(settings["dtype"]))).element_size()
    encoders = 0 if settings.get("offload_text_encoders") else model.text_encoders * size
    return int((model.autoencoder * 4 + encoders) * 1e6)
