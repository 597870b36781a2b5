"""A stored adapter is read whole or not at all: a missing file, tensor or name never leaves the initial values."""

import pytest
import torch
from adapter_kinds import KINDS
from safetensors.torch import load_file, save_file
from tiny import TinyBackbone

from bench.adapters.bank import Bank
from bench.contracts import AdapterSpec, Ask, BenchError, Text
from bench.seeding import generator


@pytest.fixture(params=KINDS)
def bank(request):
    bank = Bank(TinyBackbone(), {"style": KINDS[request.param]}, [generator(0)])
    yield bank
    bank.close()


def test_what_is_not_there_is_not_read_as_untrained(bank, tmp_path):
    with pytest.raises(BenchError, match="The trained adapter .* is missing; put it back"):
        bank.read("style", 0, tmp_path)
    bank.save("style", 0, tmp_path)
    for path in bank.files("style"):
        whole = (tmp_path / path).read_bytes()
        (tmp_path / path).unlink()
        with pytest.raises(BenchError, match="is missing; put it back"):
            bank.read("style", 0, tmp_path)
        for cut in (b"", whole[:9], whole[: len(whole) // 2], b"\0" * len(whole)):
            (tmp_path / path).write_bytes(cut)
            with pytest.raises(BenchError, match="cannot be read as weights of an adapter"):
                bank.read("style", 0, tmp_path)
        (tmp_path / path).write_bytes(whole)
    bank.read("style", 0, tmp_path)


@pytest.mark.parametrize("how", ["gone", "renamed", "more", "another shape", "transposed", "empty"])
def test_names_and_shapes_are_those_of_the_adapter(bank, how, tmp_path):
    bank.save("style", 0, tmp_path)
    path = tmp_path / next(iter(bank.files("style")))
    state = load_file(path)
    name = next(key for key in state if state[key].dim() == 2 and len(set(state[key].shape)) == 2)
    rest, value = {key: x for key, x in state.items() if key != name}, state[name]
    changed = {
        "gone": rest,
        "renamed": rest | {f"x.{name}": value},
        "more": state | {"unet.more.lora_A.weight": value.clone()},
        "another shape": state | {name: torch.zeros(3, 5)},
        "transposed": state | {name: value.T.contiguous()},
        "empty": {},
    }[how]
    save_file(changed, path)
    before = bank.row("style", 0).clone()
    with pytest.raises(BenchError):
        bank.read("style", 0, tmp_path)
    assert torch.equal(bank.row("style", 0), before)


def test_an_adapter_that_nobody_declared_is_named():
    bank = Bank(TinyBackbone(), {"style": AdapterSpec(2)}, [generator(0)])
    z, text = torch.zeros(1, 4, 8, 8), Text(torch.zeros(1, 6, 16))
    with pytest.raises(BenchError, match="The adapter 'stile' was requested; declared are style"):
        bank.answer([(0, Ask(z, torch.tensor([5]), text, {"stile": 1.0}))])
