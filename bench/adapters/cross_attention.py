"""Decoupled cross-attention on image tokens, for all cells of a pack (IP-Adapter, arXiv 2308.06721 section 3.2):

    out = to_out(Attn(q, K_text, V_text) + scale * Attn(q, W_k tokens, W_v tokens)),    tokens = projection(features)

K cells, R rows of a block, E feature width, S patches, N image tokens, D text width, Q queries, C attention width.
Weights carry the names of the public files: `image_proj.*`, and `ip_adapter.<i>.to_k_ip.weight` where i counts the
network's attention layers, of which the cross-attentions are the odd ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.adapters.image_adapter_files import read_image_adapter
from bench.contracts import Backbone, BenchError, CrossAttentionSpec, Impossible
from bench.data.weights import weights_at

if TYPE_CHECKING:
    from bench.adapters.routing import Block

HEAD = 64  # width of a resampler's attention head, in all public files
PLACE = re.compile(r"(down|up)_blocks\.(\d+)\.attentions\.(\d+)\.|mid_block\.")


# --- from image features to tokens ------------------------------------------------------------------------------------


class Linear(nn.Module):
    """One vector (R, E) to N tokens (R, N, D): a linear layer and a normalisation."""

    def __init__(self, features: int, tokens: int, width: int):
        super().__init__()
        self.tokens = tokens
        self.proj = nn.Linear(features, tokens * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(self.proj(features).unflatten(1, (self.tokens, -1)))


class Resampler(nn.Module):
    """Patches (R, S, E) to N tokens (R, N, D): learned queries read the patches in `depth` rounds (IP-Adapter Plus)."""

    def __init__(self, features: int, tokens: int, width: int, hidden: int, heads: int, depth: int):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, tokens, hidden) / hidden**0.5)
        self.proj_in = nn.Linear(features, hidden)
        self.proj_out = nn.Linear(hidden, width)
        self.norm_out = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(hidden, heads), _feed_forward(hidden)]) for _ in range(depth)
        )

    def forward(self, features: Tensor) -> Tensor:
        x, latents = self.proj_in(features), self.latents.expand(len(features), -1, -1)
        rounds: Any = self.layers
        for attend, feed in rounds:
            latents = latents + attend(x, latents)
            latents = latents + feed(latents)
        return self.norm_out(self.proj_out(latents))


class PerceiverAttention(nn.Module):
    """Queries (R, N, W) read patches (R, S, W) and themselves."""

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.to_q = nn.Linear(hidden, HEAD * heads, bias=False)
        self.to_kv = nn.Linear(hidden, 2 * HEAD * heads, bias=False)
        self.to_out = nn.Linear(HEAD * heads, hidden, bias=False)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        latents = self.norm2(latents)
        key, value = self.to_kv(torch.cat([self.norm1(x), latents], 1)).chunk(2, -1)
        return self.to_out(attention(self.to_q(latents), key, value, self.heads))


def _feed_forward(width: int) -> nn.Sequential:
    wide, narrow = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
    return nn.Sequential(nn.LayerNorm(width), wide, nn.GELU(), narrow)


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over heads: (R, Q, C), (R, N, C), (R, N, C) -> (R, Q, C).

    Written out: for a handful of tokens it is as quick as the fused kernel, and several times quicker backward on CPU.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    return (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)


# --- the adapter ------------------------------------------------------------------------------------------------------


class CrossAttention:
    """One adapter at all cross-attention layers, for all cells. Whoever creates it binds `weights` of `shapes`."""

    def __init__(self, backbone: Backbone, spec: CrossAttentionSpec):
        self.name = backbone.name
        self.sites: dict[str, Any] = dict(backbone.cross_attention())
        self.scales = block_scales(list(self.sites), spec.scales)
        self._file = read_image_adapter(weights_at(spec.file)) if spec.file else None
        self._build = _projection(spec, self._file or {}, self._text_width())
        with torch.device("meta"):
            self.projection = self._build()
        self.shapes = self._shapes()
        self.weights: dict[str, Tensor] = {}  # (K, *shape)
        self.active: list[tuple[Block, Tensor]] = []  # rows of the current forward pass and their tokens (R, N, D)
        self.trained = False
        self._queries: dict[str, Tensor] = {}

    def _text_width(self) -> int:
        if not self.sites:
            raise Impossible(f"The backbone {self.name} has no cross-attention layers to read image tokens.")
        return next(iter(self.sites.values())).to_k.in_features

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The weights by their names in the public file, projection first."""
        shapes = {f"image_proj.{key}": tuple(value.shape) for key, value in self.projection.named_parameters()}
        for i, site in enumerate(self.sites):
            for kind in "kv":
                shapes[_key(i, kind)] = tuple(getattr(self.sites[site], f"to_{kind}").weight.shape)
        return shapes

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The file's weights, or else a drawn projection and copies of the text's keys and values."""
        if self._file is not None:
            return self._file
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            drawn = {f"image_proj.{key}": value.detach() for key, value in self._build().named_parameters()}
        for i, layer in enumerate(self.sites.values()):
            drawn |= {_key(i, kind): getattr(layer, f"to_{kind}").weight.detach() for kind in "kv"}
        return drawn

    def state(self, cell: int) -> dict[str, Tensor]:
        """The weights of one cell as a public file has them."""
        return {key: value[cell].detach().float().cpu().contiguous() for key, value in self.weights.items()}

    @torch.no_grad()
    def load(self, cell: int, state: Mapping[str, Tensor]) -> None:
        """Fill one cell from a state dict. Raises `Impossible` when it belongs to another network."""
        for key, shape in self.shapes.items():
            found = tuple(state[key].shape) if key in state else "nothing"
            if found != shape:
                raise Impossible(
                    f"Image adapter: the backbone {self.name} needs {shape} for {key}, found {found}; "
                    "give the adapter file (method.file) that was made for this backbone and image encoder."
                )
        extra = sorted(set(state) - set(self.shapes))
        if extra:
            raise Impossible(
                f"Image adapter: {len(extra)} weights have no place in the backbone {self.name}, first {extra[0]}; "
                "give a file of the base or the plus kind made for this backbone (method.file)."
            )
        for key, value in self.weights.items():
            value[cell] = state[key].to(value)

    def begin(self, cell: int, generator: torch.Generator) -> None:
        self.load(cell, self.initial(generator))

    def files(self, name: str) -> dict[str, str]:
        return {f"{name}.safetensors": ""}

    # --- one forward pass

    def look(self, blocks: Sequence[Block], features: Tensor, trained: bool) -> None:
        """Make the tokens of the rows that take part; features (B, E) or (B, S, E) of all rows."""
        self.trained, self._queries = trained, {}
        self.active = [(block, self.tokens(features, block)) for block in blocks]

    def settle(self) -> None:
        self.active, self._queries = [], {}

    def tokens(self, features: Tensor, block: Block) -> Tensor:
        """(B, E) or (B, S, E) -> (R, N, D); of several images, (B, n, E) or (B, n, S, E) -> (R, n * N, D)"""
        some = next(iter(self.weights.values()))
        shown = (features if block.rows is None else features[block.rows.to(features.device)]).to(some)
        parts = zip(block.cells, shown.split(block.size), strict=True)
        return torch.cat([self._project(self._of(cell), x) for cell, x in parts])

    def _project(self, weights: Mapping[str, Tensor], shown: Tensor) -> Tensor:
        """The tokens of some rows; those of several images follow each other."""
        several = shown.dim() > (2 if isinstance(self.projection, Linear) else 3)
        images = shown.flatten(0, 1) if several else shown
        tokens = torch.func.functional_call(self.projection, dict(weights), (images,))
        return tokens.unflatten(0, shown.shape[:2]).flatten(1, 2) if several else tokens

    def _of(self, cell: int) -> dict[str, Tensor]:
        prefix = "image_proj."
        own = {key.removeprefix(prefix): value for key, value in self.weights.items() if key.startswith(prefix)}
        return {key: (value if self.trained else value.detach())[cell] for key, value in own.items()}

    def attach(self) -> list[Any]:
        """Hooks that keep each layer's query and add the second attention before its output projection."""
        hooks = []
        for i, (site, layer) in enumerate(self.sites.items()):
            if self.scales[site]:
                hooks.append(layer.to_q.register_forward_hook(self._keep(site)))
                hooks.append(layer.to_out[0].register_forward_pre_hook(self._add(i, site)))
        return hooks

    def _keep(self, site: str):
        def keep(module: nn.Module, args: tuple, query: Tensor) -> None:
            if self.active:
                self._queries[site] = query

        return keep

    def _add(self, i: int, site: str):
        def add(module: nn.Module, args: tuple) -> tuple | None:
            if not self.active:
                return None
            query, out = self._queries.pop(site), args[0]
            for block, tokens in self.active:
                out = self._attend(i, site, query, out, block, tokens)
            return (out, *args[1:])

        return add

    def _attend(self, i: int, site: str, query: Tensor, out: Tensor, block: Block, tokens: Tensor) -> Tensor:
        """`out` (B, Q, C) plus scale * Attn(q, W_k tokens, W_v tokens) on the rows of the block."""
        key, value = (_per_cell(tokens, self._pick(_key(i, kind), block)) for kind in "kv")
        rows = query if block.rows is None else query.index_select(0, block.rows)
        delta = attention(rows, key, value, self.sites[site].heads).to(out.dtype)
        delta = delta * (block.scale * self.scales[site]).to(out)[:, None, None]
        return out + delta if block.rows is None else out.index_add(0, block.rows, delta)

    def _pick(self, key: str, block: Block) -> Tensor:
        value = self.weights[key] if self.trained else self.weights[key].detach()
        return value if block.cells == tuple(range(len(value))) else value[list(block.cells)]


def _key(i: int, kind: str) -> str:
    return f"ip_adapter.{2 * i + 1}.to_{kind}_ip.weight"


def _per_cell(x: Tensor, weight: Tensor) -> Tensor:
    """x (k * b, N, D), weight (k, C, D) -> (k * b, N, C), the k-th part of the rows through the k-th weight."""
    if len(weight) == 1:
        return F.linear(x, weight[0])
    wide = torch.bmm(x.reshape(len(weight), -1, x.shape[-1]), weight.transpose(1, 2))
    return wide.reshape(*x.shape[:-1], -1)


# --- which projection, which layers, which file -----------------------------------------------------------------------


def _projection(spec: CrossAttentionSpec, state: Mapping[str, Tensor], width: int):
    """What builds the projection that the spec names or, where there is a file, that the file holds."""
    shapes = {key.removeprefix("image_proj."): value.shape for key, value in state.items()}
    if not state:
        hidden = HEAD * spec.heads
        resampler = (spec.features, spec.tokens, width, hidden, spec.heads, spec.depth)
        return lambda: Resampler(*resampler) if spec.heads else Linear(spec.features, spec.tokens, width)
    try:
        made = _of_file(shapes, spec, width)
    except (KeyError, ValueError, IndexError, TypeError, ZeroDivisionError) as error:
        raise Impossible(
            f"Image adapter: the projection in {spec.file} is not whole ({error!r}); stage it again."
        ) from error
    if made is not None:
        return made
    raise Impossible(
        f"Image adapter: {spec.file} holds neither a linear projection (proj.weight) nor a resampler (latents); "
        "give a file of the base or the plus kind (method.file)."
    )


def _of_file(shapes: Mapping[str, Any], spec: CrossAttentionSpec, width: int):
    """What builds the projection whose weights have these shapes, or None for one of another kind."""
    if "proj.weight" in shapes:
        out, features = shapes["proj.weight"]
        _check_features(features, spec)
        tokens = max(1, out // shapes["norm.weight"][0])
        return lambda: Linear(features, tokens, width)
    if "latents" in shapes:
        hidden, features = shapes["proj_in.weight"]
        _check_features(features, spec)
        depth = 1 + max(int(key.split(".")[1]) for key in shapes if key.startswith("layers."))
        heads, tokens = shapes["layers.0.0.to_q.weight"][0] // HEAD, shapes["latents"][1]
        return lambda: Resampler(features, tokens, width, hidden, heads, depth)
    return None


def _check_features(features: int, spec: CrossAttentionSpec) -> None:
    if features != spec.features:
        raise Impossible(
            f"Image adapter: {spec.file} reads image features of width {features}, the image encoder gives "
            f"{spec.features}; give the encoder that it was trained with (method.encoder.path)."
        )


def block_scales(sites: Sequence[str], scales: float | Mapping[str, Any]) -> dict[str, float]:
    """A scale for each layer from a number, or from diffusers' form {"down": .., "mid": .., "up": {"block_0": [..]}}.

    A block's value is a number or one number for each of its attentions; what is not listed is 0. Raises BenchError
    for blocks that the network does not have.
    """
    if not isinstance(scales, Mapping):
        return {site: float(scales) for site in sites}
    places = {site: _place(site) for site in sites}
    _check_scales(scales, set(places.values()))
    return {site: _scale(scales, *place) for site, place in places.items()}


def _place(site: str) -> tuple[str, int, int]:
    """ "up_blocks.0.attentions.1.(...)" -> ("up", 0, 1)"""
    match = PLACE.match(site)
    if match is None:
        raise BenchError(f"Scales by block were requested, but the layer {site} lies in none; give one number.")
    return (match[1], int(match[2]), int(match[3])) if match[1] else ("mid", 0, 0)


def _scale(scales: Mapping[str, Any], part: str, block: int, layer: int) -> float:
    value = scales.get(part, 0.0)
    if isinstance(value, Mapping):
        value = value.get(f"block_{block}", 0.0)
    if isinstance(value, Sequence):
        value = value[layer if len(value) > 1 else 0]
    return float(value)


def _check_scales(scales: Mapping[str, Any], places: set[tuple[str, int, int]]) -> None:
    """Every listed block exists, and a list has one number, or one for each attention of the block."""
    counts: dict[tuple[str, str], int] = {}
    for part, block, _ in places:
        counts[part, f"block_{block}"] = counts.get((part, f"block_{block}"), 0) + 1
    for part, value in scales.items():
        listed = value if isinstance(value, Mapping) else {}
        lengths = {name: len(x) for name, x in listed.items() if isinstance(x, Sequence)}
        fits = {name: (part, name) in counts and lengths.get(name, 1) in (1, counts[part, name]) for name in listed}
        wrong = [name for name, good in fits.items() if not good]
        if wrong or part not in {name for name, _ in counts}:
            have = ", ".join(f"{name}.{block} ({n})" for (name, block), n in sorted(counts.items()))
            raise BenchError(f"Scales were requested at {part} {wrong or ''}; blocks and their attentions are {have}.")
