"""Tiny random networks saved as the files that the extractors read, and small evaluations."""

import json

import numpy as np
import pytest
from metric_cases import dataset, scenes, sepia

from bench.contracts import Evaluation
from metrics.networks import LpipsNet, OpenClip

TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**TINY_CLIP)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "size": [32, 32], "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_CLIP, "preprocess_cfg": preprocess}))
    return folder


@pytest.fixture(scope="session")
def clip(clip_folder):
    return OpenClip(name="tiny-clip", model=str(clip_folder), device="cpu")


@pytest.fixture(scope="session")
def alex_file(tmp_path_factory):
    """A random AlexNet trunk under the names of torchvision's file."""
    import torch
    from torchvision.models import alexnet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        state = alexnet(weights=None).state_dict()
    path = tmp_path_factory.mktemp("alex") / "alexnet.pth"
    torch.save({name: value for name, value in state.items() if name.startswith("features.")}, path)
    return path


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory):
    """Random weights with calibrated batch norm: without it activations vanish and every image looks the same."""
    import torch

    from metrics.networks import inception_layers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        layers = inception_layers()
        for layer in layers.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = None
        with torch.no_grad():
            layers.train()(torch.from_numpy(scenes(4, 9, 299)).float() / 128 - 1)
        state = layers.state_dict() | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="session")
def alex(alex_file):
    return LpipsNet(weights=str(alex_file), name="random-alex-64", size=64, device="cpu")


@pytest.fixture
def parity(record_property):
    """Hold a number against a library's: parity("lpips", "distance", ours, theirs, rtol=1e-5). Shown by -rP."""

    def check(library, what, ours, theirs, rtol=0.0, atol=0.0):
        ours, theirs = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
        difference = float(np.abs(ours - theirs).max())
        relative = difference / float(np.abs(theirs).max())
        record_property(f"largest difference, {library}: {what}", (difference, relative))
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol)

    return check


def pytest_terminal_summary(terminalreporter):
    """With -rP: the largest difference to each library over all cases, from properties "largest difference, ..."."""
    found = {}
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name.startswith("largest difference, "):
                found.setdefault(name.partition(", ")[2], []).append(np.atleast_1d(value))
    if not found or "P" not in terminalreporter.config.getoption("reportchars"):
        return
    terminalreporter.section("largest differences to the libraries")
    for name, values in sorted(found.items()):
        most, *relative = np.max(values, axis=0)
        ratio = f"relative {relative[0]:9.2g}" if relative else ""
        terminalreporter.line(f"{name:65} {most:9.2g}   {ratio:18}   {len(values)} cases")


@pytest.fixture
def evaluation(tmp_path):
    """Build an evaluation: `evaluation(images=..., baseline=..., dataset=...)`."""

    def build(images=None, baseline=None, **changes):
        baseline = scenes(8, 7) if baseline is None else baseline
        images = np.stack([sepia(image) for image in baseline]) if images is None else images
        prompts = [("a red house", "a dog")[row % 2] for row in range(len(images))]
        defaults = {
            "images": images,
            "baseline": baseline,
            "prompts": prompts,
            "full_prompts": [f"{prompt} in sepia style" for prompt in prompts],
            "seeds": [row // 2 for row in range(len(images))],
            "dataset": dataset(),
            "cache": tmp_path / "features",
        }
        return Evaluation(**(defaults | changes))

    return build
