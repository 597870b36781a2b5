"""Adapter files: each class of change states what comes of it, the same adapter, one at another scale, or a sentence.

The reference of an adapter is its products up @ down, computed here from the halves that were written.
"""

import json
import random

import pytest
import torch
from damage import cut, doubled, emptied, flipped, noise
from lora_cases import ATTENTION, diffusers_names, halves, kohya_names, lora_names, metadata, processor_names, saved
from narrow_networks import sd
from test_damaged_store import cases, limit  # noqa: F401

from bench.adapters.image_adapter_files import read_image_adapter
from bench.adapters.lora_files import read_lora
from bench.contracts import BenchError

NETWORK = sd()
PAIRS = halves(NETWORK, ATTENTION)
RANK = 4
TARGETS = [end[1:] for end in ATTENTION]
FORMATS = {
    "diffusers": diffusers_names,
    "lora": lora_names,
    "processors": processor_names,
    "kohya": lambda pairs: kohya_names(pairs, lambda site: RANK),
}


def products(state):
    """Site -> up @ down of what the reader gives."""
    sites = {key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")}
    assert len(state) == 2 * len(sites)
    return {
        site.removeprefix("unet."): state[f"{site}.lora_B.weight"] @ state[f"{site}.lora_A.weight"] for site in sites
    }


def check(path, pairs=PAIRS, scale=1.0):
    """What is read is scale * up @ down at every site, and nothing besides."""
    found = products(read_lora(path, NETWORK))
    assert set(found) == set(pairs)
    for site, (down, up) in pairs.items():
        torch.testing.assert_close(found[site], scale * (up.float() @ down.float()), rtol=1e-5, atol=1e-6)


def refused(path):
    with pytest.raises(BenchError) as error:
        read_lora(path, NETWORK)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1500, str(error.value)


# --- the same adapter, perhaps at another scale: (path, rng) -> pairs, scale


def in_another_order(path, rng):
    named = rng.choice(list(FORMATS.values()))(PAIRS)
    saved(path, dict(rng.sample(sorted(named.items()), len(named))))
    return PAIRS, 1.0


def in_another_format(path, rng):
    path = saved(path, rng.choice(list(FORMATS.values()))(PAIRS), {"author": "x" * rng.randrange(1000)})
    return PAIRS, 1.0


def in_another_dtype(path, rng):
    dtype = rng.choice([torch.float16, torch.bfloat16, torch.float32])
    pairs = {site: tuple(half.to(dtype) for half in both) for site, both in PAIRS.items()}
    saved(path, rng.choice(list(FORMATS.values()))(pairs))
    return pairs, 1.0


def of_some_layers(path, rng):
    pairs = dict(rng.sample(sorted(PAIRS.items()), rng.randint(1, len(PAIRS))))
    saved(path, rng.choice(list(FORMATS.values()))(pairs))
    return pairs, 1.0


def with_alpha(path, rng):
    alpha = rng.choice([0.0, 0.5, 1.0, 7.0, -2.0])
    saved(path, kohya_names(PAIRS, lambda site: alpha))
    return PAIRS, alpha / RANK


def with_settings(path, rng):
    alpha, stable = rng.choice([0.5, 1, 7, -2]), rng.random() < 0.5
    header = metadata(r=RANK, lora_alpha=alpha, use_rslora=stable, target_modules=TARGETS)
    saved(path, diffusers_names(PAIRS), header)
    return PAIRS, alpha / (RANK**0.5 if stable else RANK)


READ = [in_another_order, in_another_format, in_another_dtype, of_some_layers, with_alpha, with_settings]


# --- refused in a sentence: (path, rng) -> None


def one(state, rng, change):
    key = rng.choice(sorted(key for key in state if not key.endswith(".alpha")))
    return {**state, key: change(state[key])}


def any_format(rng):
    return rng.choice(list(FORMATS.values()))(PAIRS)


def not_finite(path, rng):
    def spoiled(half):
        half = half.clone()
        half.view(-1)[rng.randrange(half.numel())] = rng.choice([float("nan"), float("inf"), -float("inf")])
        return half

    saved(path, one(any_format(rng), rng, spoiled))


def transposed(path, rng):
    saved(path, one(any_format(rng), rng, lambda half: half.T))


def both_transposed(path, rng):
    site = rng.choice(sorted(PAIRS))
    down, up = PAIRS[site]
    saved(path, rng.choice(list(FORMATS.values()))({**PAIRS, site: (down.T, up.T)}))


def of_another_shape(path, rng):
    changes = [lambda x: x[:, :-1], lambda x: x[None], lambda x: x.flatten(), lambda x: x[:0], lambda x: x[0, 0]]
    saved(path, one(any_format(rng), rng, rng.choice(changes)))


def of_another_type(path, rng):
    dtype = rng.choice([torch.int8, torch.int32, torch.int64, torch.bool, torch.uint8])
    saved(path, one(any_format(rng), rng, lambda half: half.to(dtype)))


def without_a_half(path, rng):
    state = any_format(rng)
    state.pop(rng.choice(sorted(key for key in state if not key.endswith(".alpha"))))
    saved(path, state)


def with_unknown_names(path, rng):
    names = [
        "x", "unet.x.lora_A.weight", "unet.mid_block.lora_A.weight", "text_encoder.layers.0.q_proj.lora_A.weight",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight", "lora_unet_nothing.lora_down.weight",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_magnitude_vector", "unet.conv_in.bias",
        "lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "lora_unet_mid_block_attentions_0_proj_in.lokr_w1",
        "unet.é.lora_A.weight", "", "a\0b", "../../x", "lora_unet_nothing.alpha", "__class__.lora_A.weight",
    ]  # fmt: skip
    saved(path, {**any_format(rng), rng.choice(names): torch.ones(rng.choice([(), (4, 16), (1,)]))})


def with_a_layer_twice(path, rng):
    site = rng.choice(sorted(PAIRS))
    saved(path, {**diffusers_names(PAIRS), **lora_names({site: PAIRS[site]})})


def with_wrong_alphas(path, rng):
    state = kohya_names(PAIRS, lambda site: RANK)
    key = rng.choice(sorted(key for key in state if key.endswith(".alpha")))
    wrong = [torch.tensor(float("nan")), torch.ones(3), torch.ones(0), torch.tensor(4), None]
    found = rng.choice(wrong)
    saved(path, {k: v for k, v in {**state, key: found}.items() if v is not None})


def with_wrong_settings(path, rng):
    usual = dict(r=RANK, lora_alpha=RANK, target_modules=TARGETS)
    wrong = [
        {"r": 5}, {"r": "x"}, {"lora_alpha": None}, {"lora_alpha": float("nan")}, {"lora_alpha": [1]},
        {"lora_alpha": True}, {"use_dora": True}, {"bias": "all"}, {"peft_type": "LOHA"}, {"rank_pattern": [1]},
        {"alpha_pattern": 7}, {"unheard_of": 3}, {"init_lora_weights": "pissa"}, {"fan_in_fan_out": True},
        {"rank_pattern": {"to_q": 2}}, {"alpha_pattern": {"to_q": "x"}}, {"modules_to_save": ["conv_in"]},
    ]  # fmt: skip
    saved(path, diffusers_names(PAIRS), metadata(**{**usual, **rng.choice(wrong)}))


def with_a_wrong_header(path, rng):
    headers = [
        {"lora_adapter_metadata": text} for text in ("", "{", "[]", "7", "null", "[" * 5000, json.dumps("x"))
    ] + [{"ss_network_alpha": "1"}, {"lora_alpha": "x"}, {"use_dora": "true"}, {"network_alpha": "nan"}]
    saved(path, diffusers_names(PAIRS), rng.choice(headers))


def cut_or_noise(path, rng):
    saved(path, any_format(rng))
    data = path.read_bytes()
    path.write_bytes(rng.choice([cut, noise, doubled, emptied])(data, rng))


REFUSED = [
    not_finite, transposed, both_transposed, of_another_shape, of_another_type, without_a_half, with_unknown_names,
    with_a_layer_twice, with_wrong_alphas, with_wrong_settings, with_a_wrong_header, cut_or_noise,
]  # fmt: skip


@pytest.mark.parametrize("change", READ)
@pytest.mark.parametrize("block", cases(1, 15))
def test_it_is_the_same_adapter_at_the_scale_that_the_file_says(tmp_path, limit, change, block):  # noqa: F811
    for n in range(5):
        limit()
        path = tmp_path / f"{n}.safetensors"
        check(path, *change(path, random.Random(f"{change.__name__} {block} {n}")))


@pytest.mark.parametrize("change", REFUSED)
@pytest.mark.parametrize("block", cases(1, 15))
def test_it_is_refused_in_a_sentence(tmp_path, limit, change, block):  # noqa: F811
    for n in range(5):
        limit()
        path = tmp_path / f"{n}.safetensors"
        change(path, random.Random(f"{change.__name__} {block} {n}"))
        refused(path)


@pytest.mark.parametrize("block", cases(1, 15))
def test_flipped_bits_lose_no_layer_and_move_none(tmp_path, limit, block):  # noqa: F811
    """No format of adapters has a checksum: a bit of a weight may change, names and shapes may not."""
    path = tmp_path / "a.safetensors"
    shapes = {key: value.shape for key, value in read_lora(saved(path, diffusers_names(PAIRS)), NETWORK).items()}
    for n in range(20):
        limit()
        rng = random.Random(f"flipped {block} {n}")
        saved(path, diffusers_names(PAIRS))
        path.write_bytes(flipped(path.read_bytes(), rng))
        try:
            found = read_lora(path, NETWORK)
        except BenchError:
            continue
        assert {key: value.shape for key, value in found.items()} == shapes
        assert all(bool(value.isfinite().all()) for value in found.values())


# --- image adapters


def image_state(rng):
    draw = torch.Generator().manual_seed(rng.randrange(1000))
    return {
        "image_proj.proj.weight": torch.randn(12, 10, generator=draw),
        "image_proj.norm.weight": torch.randn(4, generator=draw),
        "ip_adapter.1.to_k_ip.weight": torch.randn(8, 4, generator=draw),
        "ip_adapter.1.to_v_ip.weight": torch.randn(8, 4, generator=draw),
    }


def nested(state):
    """As a .bin file of IP-Adapter holds them."""
    groups = {name.partition(".")[0] for name in state}
    return {g: {name.partition(".")[2]: x for name, x in state.items() if name.startswith(g)} for g in groups}


IMAGE_CHANGES = {
    "NaN": lambda state, rng: one(state, rng, lambda x: x * float("nan")),
    "integers": lambda state, rng: one(state, rng, lambda x: x.long()),
    "no projection": lambda state, rng: {k: v for k, v in state.items() if k.startswith("ip_adapter")},
    "no layers": lambda state, rng: {k: v for k, v in state.items() if k.startswith("image_proj")},
    "a stranger": lambda state, rng: {**state, rng.choice(["x", "unet.x", "", "lora.x"]): torch.ones(2)},
    "nothing": lambda state, rng: {},
}


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("block", cases(1, 10))
def test_a_whole_image_adapter_is_read_bit_for_bit(tmp_path, ending, block):
    for n in range(5):
        whole = image_state(random.Random(f"image {block} {n}"))
        path = saved(tmp_path / f"{n}.{ending}", nested(whole) if ending == "bin" else whole)
        found = read_image_adapter(path)
        assert set(found) == set(whole) and all(torch.equal(found[key], whole[key]) for key in whole)


@pytest.mark.parametrize("how", IMAGE_CHANGES)
@pytest.mark.parametrize("block", cases(1, 10))
def test_an_image_adapter_that_is_not_whole_is_refused(tmp_path, how, block):
    for n in range(5):
        rng = random.Random(f"{how} {block} {n}")
        path = saved(tmp_path / f"{n}.{rng.choice(['safetensors', 'bin'])}", IMAGE_CHANGES[how](image_state(rng), rng))
        with pytest.raises(BenchError) as error:
            read_image_adapter(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("block", cases(1, 10))
def test_damaged_bytes_of_an_image_adapter_are_refused(tmp_path, limit, ending, block):  # noqa: F811
    for n in range(10):
        limit()
        rng = random.Random(f"bytes {ending} {block} {n}")
        path = saved(tmp_path / f"{n}.{ending}", image_state(rng))
        path.write_bytes(rng.choice([cut, noise])(path.read_bytes(), rng))
        with pytest.raises(BenchError):
            read_image_adapter(path)


class Runs:
    def __reduce__(self):
        return print, ("code of a file ran",)


@pytest.mark.parametrize("reader", [read_image_adapter, lambda path: read_lora(path, NETWORK)])
def test_a_pickle_in_a_torch_file_does_not_run(tmp_path, capsys, reader):
    path = tmp_path / "a.bin"
    torch.save({"image_proj": Runs(), "ip_adapter": Runs()}, path)
    with pytest.raises(BenchError):
        reader(path)
    assert "ran" not in capsys.readouterr().out
