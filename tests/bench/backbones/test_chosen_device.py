"""The choice of a device, with machines that are feigned. No Apple machine was at hand: MPS itself is untested."""

import pytest
import torch

from bench.backbones.latent_diffusion import _device
from bench.contracts import BenchError
from bench.settings import build


def machine(monkeypatch, cuda, mps):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("name", "cuda", "mps", "expected"),
    [
        ("auto", False, True, "cpu"),
        ("auto", True, False, "cuda"),
        ("mps", False, True, "mps"),
        ("cpu", True, True, "cpu"),
    ],
)
def test_what_is_chosen(name, cuda, mps, expected, monkeypatch):
    machine(monkeypatch, cuda, mps)
    assert _device(name).type == expected


def test_what_is_not_there_is_refused(monkeypatch):
    machine(monkeypatch, False, False)
    for name, said in (("mps", "torch has no MPS here"), ("cuda", "torch finds no GPU")):
        with pytest.raises(BenchError, match=said):
            _device(name)


def test_mps_has_no_float64(monkeypatch):
    machine(monkeypatch, False, True)
    spec = {"_target_": "bench.backbones.stable_diffusion.StableDiffusion", "name": "mini", "resolution": 64}
    with pytest.raises(BenchError, match="type backbone.dtype=float32"):
        build({**spec, "path": "bench/mini/weights/diffusion", "device": "mps", "dtype": "float64"}, "backbone")
