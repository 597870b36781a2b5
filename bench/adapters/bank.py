"""Stacked low-rank adapters: each layer holds those of all cells of a pack; each row of a batch uses its own cell's.

K cells, B rows, r rank. `down` (K, r, in), `up` (K, out, r); for convolutions `down` (K, r, in, kh, kw).
The trainable numbers of one adapter lie in one flat tensor `theta` (K, n), so a cell's optimizer sees a single row.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.adapters import adapter_files
from bench.adapters.cross_attention import CrossAttention
from bench.adapters.dora import lengths
from bench.adapters.full_fine_tuning import FullWeights
from bench.adapters.lora_files import TEXT, full_name, has_lengths, ranks, read_lora
from bench.adapters.low_rank import INITS, Layer, add_delta, leaf, shapes, stacked
from bench.adapters.routing import Block, blocks
from bench.adapters.shared_attention import SharedAttention
from bench.adapters.text_layers import TextReader, at, text_layers, text_sites
from bench.adapters.token_embeddings import TokenEmbeddings
from bench.contracts import (
    AdapterSpec,
    Ask,
    Backbone,
    BenchError,
    CrossAttentionSpec,
    FullSpec,
    Impossible,
    SharedAttentionSpec,
    Spec,
    Text,
    TokenSpec,
)


class Bank:
    """The adapters of K cells on one backbone, and the forward pass that routes rows to them.

    `specs` is what every cell of the pack asks for; `generators` (one per cell) draw the initial values. With more
    `slots` than generators the others wait for a cell (`start`).
    """

    def __init__(self, backbone: Backbone, specs: Mapping[str, Spec], generators: Sequence[Any], slots: int = 0):
        self.backbone = backbone
        self.specs = dict(specs)
        self.cells = max(slots, len(generators))
        self.layers: dict[str, dict[str, Layer]] = {}  # adapter -> site -> layer
        self.full: dict[str, FullWeights] = {}  # fine-tuned weights of the whole network; then there is nothing else
        self.crossed: dict[str, CrossAttention] = {}  # adapters that read image tokens
        self.words: dict[str, TokenEmbeddings] = {}  # adapters that the text encoders read
        self.shared: dict[str, SharedAttention] = {}  # adapters by which rows read each other
        self.read_files: dict[str, dict[str, Tensor]] = {}  # adapters that start from a file -> what it holds
        self.theta: dict[str, Tensor] = {}  # adapter -> (K, n), numbers of the text encoders last
        self.text_starts: dict[str, int] = {}  # adapters of text encoders -> where their numbers begin
        self.grad: dict[str, Tensor] = {}
        self.active: dict[str, list[Block]] = {}  # the routing of the current forward pass
        self.trained: frozenset[str] = frozenset()  # adapters that some ask of it trains; the others are detached
        for name, spec in self.specs.items():
            if isinstance(spec, FullSpec):
                self._create_full(name, spec)
            elif isinstance(spec, CrossAttentionSpec):
                self.crossed[name] = self._with_weights(name, CrossAttention(backbone, spec))
            elif isinstance(spec, TokenSpec):
                self.words[name] = self._with_weights(name, TokenEmbeddings(backbone, spec))
            elif isinstance(spec, SharedAttentionSpec):
                self.shared[name] = self._with_weights(name, SharedAttention(backbone, spec))
            else:
                self._create(name, spec)
        if self.text_starts and self.words:
            raise Impossible(
                "A word's embedding was to be learned with text encoders; type trainer.text_encoder_lr=null."
            )
        self.reader = TextReader(backbone, list(self.text_starts), self._put_on)
        for cell, generator in enumerate(generators):
            self.start(cell, generator)
        self._hooks = [module.register_forward_hook(self._hook(site)) for site, module in self._sites().items()]
        self._hooks += [hook for part in self._reading() for hook in part.attach()]  # last: they read low-rank deltas

    def close(self) -> None:
        """Take the adapters off the backbone, which is then exactly what it was."""
        self.settle()
        for hook in self._hooks:
            hook.remove()

    # --- one forward pass for many cells

    def answer(self, asks: Sequence[tuple[int, Ask]], seeds: Sequence[int] = ()) -> list[Tensor]:
        """The backbone's predictions for each (cell, ask), all rows in one forward pass.

        Gradients are recorded when any of the asks trains an adapter, unless the caller has turned them off. `seeds`,
        one for each ask, are those of the dropout; without them nothing is dropped.
        """
        self._check_names(asks)
        trained = (name for _, ask in asks for name in ask.trains)
        self.trained = frozenset(trained) if torch.is_grad_enabled() else frozenset()
        with torch.set_grad_enabled(bool(self.trained)):
            out = self._forward(asks, seeds).to(asks[0][1].z.dtype)
        if not self.trained:
            self.settle()
        return list(out.split([len(ask.z) for _, ask in asks]))

    def _check_names(self, asks: Sequence[tuple[int, Ask]]) -> None:
        unknown = {name for _, ask in asks for name in ask.adapters} - self.specs.keys()
        if unknown:
            known = ", ".join(self.specs) or "none"
            raise BenchError(f"The adapter {min(unknown)!r} was requested; declared are {known} (Method.adapters).")

    def _forward(self, asks: Sequence[tuple[int, Ask]], seeds: Sequence[int]) -> Tensor:
        for name, weights in self.full.items():
            return weights.answer(name, [ask for _, ask in asks], bool(self.trained))
        z, t = torch.cat([ask.z for _, ask in asks]), torch.cat([ask.t for _, ask in asks])
        text = self.reader.texts(asks, seeds, bool(self.trained))
        self._put_on(asks, seeds)
        for name, word in self.words.items():
            text = word.read(text, self.active.get(name, []), name in self.trained)
        for name, shared in self.shared.items():
            shared.look(name, asks, self.active.get(name, []))
        self._show(text)
        return self.backbone.predict(z, t, text)

    def _put_on(self, asks: Sequence[tuple[int, Ask]], seeds: Sequence[int] = ()) -> None:
        self.active = self._route(asks, seeds)

    def backward(self, loss: Tensor) -> None:
        """Gradients of the last answer, anew; weights stand as they did then, since checkpointed blocks run again."""
        self.zero_grad()
        with ExitStack() as stack:
            for weights in self.full.values():
                stack.enter_context(weights.placed(weights.leaves))
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "grad and param do not obey")  # a cell's row of the stack is strided
            loss.backward()

    def settle(self) -> None:
        """The backward pass is over. Until then the routing stays: checkpointed blocks are computed again in it."""
        self.active = {}
        for part in self._reading():
            part.settle()

    def _show(self, text: Text) -> None:
        """Give the adapters that read image tokens what the rows' prompts show."""
        for name, crossed in self.crossed.items():
            used = self.active.get(name, [])
            if used and name not in text.images:
                raise BenchError(f"The adapter {name!r} takes part, but no prompt shows it an image (Text.showing).")
            crossed.look(used, text.images.get(name, text.states), name in self.trained)

    def _route(self, asks: Sequence[tuple[int, Ask]], seeds: Sequence[int] = ()) -> dict[str, list[Block]]:
        device = self.backbone.device
        found = {name: blocks(name, asks, self.cells, device, name in self.trained, seeds) for name in self.layers}
        return {name: parts for name, parts in found.items() if parts}

    def _hook(self, site: str):
        own = {name: layers[site] for name, layers in self.layers.items() if site in layers}

        def add_deltas(module: nn.Module, args: tuple, plain: Tensor) -> Tensor | None:
            out = plain
            for name, layer in own.items():
                for block in self.active.get(name, ()):
                    out = add_delta(out, args[0], plain, layer, block)
            return out

        return add_deltas

    # --- one adapter of one cell: its numbers, its file

    def row(self, name: str, cell: int) -> Tensor:
        """The trainable numbers (n,) of one adapter of one cell; a view."""
        self._forget()
        return self.theta[name].detach()[cell]

    def parts(self, name: str) -> dict[str, slice]:
        """The parts of an adapter's numbers that have a learning rate of their own, by label: "style:text_encoder"."""
        start = self.text_starts.get(name)
        if start is None:
            return {name: slice(None)}
        return {name: slice(start), f"{name}:{TEXT}": slice(start, None)}

    def grad_row(self, name: str, cell: int) -> Tensor:
        return self.grad[name][cell]

    def zero_grad(self) -> None:
        self._forget()
        for grad in self.grad.values():
            grad.zero_()

    def _forget(self) -> None:
        """Numbers are about to move."""
        self.reader.kept = {}
        for weights in self.full.values():
            weights.forget()
        for word in self.words.values():
            word.forget()

    def state(self, name: str, cell: int) -> dict[str, Tensor]:
        """The adapter under the names that diffusers' `load_lora_weights` and PEFT read, alpha folded into `up`.

        Of a full fine-tuning all weights, each under its part's name: `unet.conv_in.weight`. What image tokens need is
        named as in IP-Adapter's public files, embeddings as `text_encoder.<word>`.
        """
        if name in self.full:
            return self.full[name].state()
        if name in self._whole():
            return self._whole()[name].state(cell)
        state = {}
        for site, layer in self.layers[name].items():
            for key, values in layer.halves().items():
                value = values[cell] * (layer.scale if key == "lora_B.weight" else 1)
                own = value.detach().float().cpu().reshape(layer.stored(key))
                state[f"{full_name(site, self.backbone.part)}.{key}"] = own.contiguous()
        return state

    def load(self, name: str, cell: int, state: Mapping[str, Tensor]) -> None:
        """Fill one adapter from a state dict as `state` gives it: these names in these shapes, and no others."""
        if name in self.full:
            return self.full[name].load(state)
        if name in self._whole():
            return self._whole()[name].load(cell, state)
        adapter_files.check(name, dict(self._shapes(name)), state)
        self._forget()
        with torch.no_grad():
            for site, layer in self.layers[name].items():
                if not layer.down.requires_grad:  # a frozen half, shared by all cells and banks until a file fills it
                    layer.down = layer.down.clone()
                for key, values in layer.halves().items():
                    value = state[f"{full_name(site, self.backbone.part)}.{key}"].reshape(values.shape[1:]).to(values)
                    values[cell].copy_(value / (layer.scale if key == "lora_B.weight" else 1))

    def _shapes(self, name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The names and shapes of `state` of a low-rank adapter."""
        for site, layer in self.layers[name].items():
            yield from ((f"{full_name(site, self.backbone.part)}.{key}", layer.stored(key)) for key in layer.halves())

    def files(self, name: str) -> dict[str, str]:
        """Where an adapter is kept: path below a folder -> the beginning of the names of `state` that goes there."""
        made = {**self.full, **self._whole()}.get(name)
        return {f"{name}.safetensors": ""} if made is None else made.files(name)

    def save(self, name: str, cell: int, folder: Path) -> None:
        """Write an adapter, or fine-tuned weights in diffusers' folders and names, below a folder.

        Raises BenchError when a number is not finite.
        """
        adapter_files.save(folder, self.files(name), self.state(name, cell))

    def read(self, name: str, cell: int, folder: Path) -> None:
        """Fill one adapter from what `save` wrote below a folder. Raises BenchError unless it is there, whole."""
        self.load(name, cell, adapter_files.read(folder, self.files(name)))

    # --- creation

    def _create_full(self, name: str, spec: FullSpec) -> None:
        if self.cells != 1 or len(self.specs) != 1:
            raise Impossible(
                f"Full fine-tuning holds one network of its own: one cell with one set of weights; {self.cells} cells "
                f"with {len(self.specs)} were requested; train each alone, or use low-rank adapters (method.tune=lora)."
            )
        self.full[name] = weights = FullWeights(self.backbone, spec, _dtype(self.backbone))
        self.theta[name], self.grad[name] = weights.theta, weights.grad

    def _with_weights(self, name: str, made: Any) -> Any:
        """An adapter of another kind with its weights: views of the flat numbers, in its shapes."""
        sizes = [prod(shape) for shape in made.shapes.values()]
        theta = torch.zeros(self.cells, sum(sizes), dtype=_dtype(self.backbone), device=self.backbone.device)
        grad = torch.zeros_like(theta)
        parts = zip(made.shapes.items(), theta.split(sizes, 1), grad.split(sizes, 1), strict=True)
        made.weights = {key: leaf(values, grads, shape) for (key, shape), values, grads in parts}
        self.theta[name], self.grad[name], self.layers[name] = theta, grad, {}
        return made

    def _reading(self) -> list[CrossAttention | SharedAttention]:
        """Adapters that read what a forward pass computes."""
        return [*self.shared.values(), *self.crossed.values()]

    def _whole(self) -> dict[str, CrossAttention | TokenEmbeddings | SharedAttention]:
        """The adapters that are not low-rank layers."""
        return {**self.crossed, **self.words, **self.shared}

    def _sites(self) -> dict[str, nn.Module]:
        return {site: layer.module for layers in self.layers.values() for site, layer in layers.items()}

    def _create(self, name: str, spec: AdapterSpec) -> None:
        sites, rank = self._places(name, spec)
        if spec.file is not None:
            spec = replace(spec, dora=has_lengths(self.read_files[name]))
        sizes = [sum(map(prod, shapes(module, at(site, spec), rank[site]).values())) for site, module in sites.items()]
        theta = torch.zeros(self.cells, sum(sizes), dtype=_dtype(self.backbone), device=self.backbone.device)
        grad = torch.zeros_like(theta)
        self.theta[name], self.grad[name] = theta, grad
        of_text = [size for site, size in zip(sites, sizes, strict=True) if site.startswith(TEXT)]
        if of_text:
            self.text_starts[name] = sum(sizes) - sum(of_text)
        parts = zip(sites.items(), theta.split(sizes, 1), grad.split(sizes, 1), strict=True)
        self.layers[name] = {
            site: stacked(site, module, at(site, spec), rank[site], values, grads)
            for (site, module), values, grads in parts
        }

    def _places(self, name: str, spec: AdapterSpec) -> tuple[Mapping[str, nn.Module], dict[str, int]]:
        """The layers of an adapter by site and their ranks: a file's own, or else those that the spec names."""
        if spec.file is None:
            sites = {**self.backbone.sites(spec.where), **(text_sites(self.backbone) if spec.text_encoder else {})}
            return sites, dict.fromkeys(sites, spec.rank)
        network, encoders = self.backbone.network, text_layers(self.backbone)
        self.read_files[name] = read_lora(Path(spec.file), network, self.backbone.part, encoders)
        rank = ranks(self.read_files[name])
        return {site: encoders.get(site) or network.get_submodule(site) for site in rank}, rank

    # --- a cell takes its slot

    @torch.no_grad()
    def start(self, cell: int, generator: Any) -> None:
        """Initial values of all adapters of one cell, drawn in the order of `specs`, whoever had its place before."""
        self._forget()
        for name, spec in self.specs.items():
            if name in self.full:
                self.full[name].reset()
            elif name in self._whole():
                self._whole()[name].begin(cell, generator)
            elif isinstance(spec, AdapterSpec):
                self._start(name, spec, cell, generator)

    def _start(self, name: str, spec: AdapterSpec, cell: int, generator: Any) -> None:
        if spec.init not in INITS:
            raise BenchError(f"Adapters were to start {spec.init!r}; known are {', '.join(INITS)}.")
        for layer in self.layers[name].values():
            layer.up[cell] = 0
            if layer.magnitude is not None:
                layer.magnitude[cell] = lengths(layer.module)
            if spec.orthonormal_row is None:
                layer.down[cell] = INITS[spec.init](tuple(layer.down.shape[1:]), generator).to(layer.down)
        if spec.file is not None:
            self.load(name, cell, self.read_files[name])


def _dtype(backbone: Backbone) -> torch.dtype:
    return torch.float64 if backbone.dtype == torch.float64 else torch.float32
