"""The numbers of metrics=sd as a user gets them from clean-fid, torchmetrics, lpips and open_clip, one after another.

Each call reads the image files itself, as these libraries do; none knows what another one computed. They get the same
networks. Diversity over all pairs has no counterpart here: N (N - 1) / 2 calls of lpips would take hours.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from speed_networks import Networks

from bench.contracts import Evaluation
from metrics.cmmd import biased
from metrics.networks import LpipsNet, resize_clean
from metrics.networks.open_clip import _load_clip
from metrics.perceptual import standardise

BATCH = 16

Numbers = dict[str, float]


def calls(networks: Networks, folder: Path, case: Evaluation) -> dict[str, Callable[[], Numbers]]:
    """Library and number -> what computes it; keys of the results are our names, where both give the same number."""
    content, controls = case.dataset.pairs[0].content.image, case.dataset.controls
    return {
        "clean-fid: FID": lambda: clean_fid(networks, folder),
        "clean-fid: KID": lambda: clean_kid(networks, folder),
        "torchmetrics: FID": lambda: torchmetrics_fid(networks, folder),
        "torchmetrics: KID": lambda: torchmetrics_kid(networks, folder),
        "lpips: content kept": lambda: lpips_content(networks, folder),
        "lpips: gap to the training picture": lambda: lpips_gap(networks, folder, content, "lpips_leak_raw", plain),
        "lpips: leak": lambda: lpips_leak(networks, folder, content, controls),
        "open_clip: CLIP score, two prompts": lambda: clip_scores(networks, folder, case),
        "open_clip: CMMD": lambda: clip_cmmd(networks, folder),
        "open_clip: style similarity": lambda: clip_style(networks, folder, case.dataset.pairs[0].style.image),
    }


def warm(networks: Networks) -> None:
    """Import the libraries and build their networks: that is not timed on either side."""
    import torchmetrics.image.fid
    import torchmetrics.image.kid  # noqa: F401

    lpips_model(networks.lpips)
    _load_clip(networks.clip)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


def decoded(folder: Path) -> Iterator[np.ndarray]:
    """Batches of uint8 (B, P, P, 3)."""
    from PIL import Image

    paths = files(folder)
    for start in range(0, len(paths), BATCH):
        yield np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths[start : start + BATCH]])


# --- Inception ---------------------------------------------------------------------------------------------------


def clean_fid(networks: Networks, folder: Path) -> Numbers:
    from cleanfid.fid import compute_fid

    two = str(folder / "images"), str(folder / "reference")
    with contextlib.redirect_stdout(io.StringIO()):
        value = compute_fid(
            *two, custom_feat_extractor=_extractor(networks), num_workers=0, verbose=False, device="cpu"
        )
    return {"fid": float(value)}


def clean_kid(networks: Networks, folder: Path) -> Numbers:
    from cleanfid.fid import get_folder_features, kernel_distance

    x, y = (
        get_folder_features(str(folder / role), _extractor(networks), num_workers=0, device="cpu", verbose=False)
        for role in ("images", "reference")
    )
    return {"kid": 1000 * kernel_distance(x.astype(np.float64), y.astype(np.float64), num_subsets=1)}


def _extractor(networks: Networks) -> Callable[[Any], Any]:
    import torch

    def features(batch: Any) -> Any:
        with torch.inference_mode():
            return networks.inception.pool3((batch - 128) / 128)

    return features


def torchmetrics_fid(networks: Networks, folder: Path) -> Numbers:
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=_module(networks)).set_dtype(torch.float64)
    return {"torchmetrics fid": float(_updated(metric, folder).compute())}


def torchmetrics_kid(networks: Networks, folder: Path) -> Numbers:
    from torchmetrics.image.kid import KernelInceptionDistance

    n = len(files(folder / "images"))
    metric = KernelInceptionDistance(feature=_module(networks), subsets=1, subset_size=n)
    return {"torchmetrics kid": 1000 * float(_updated(metric, folder).compute()[0])}


def _module(networks: Networks) -> Any:
    import torch

    class Trunk(torch.nn.Module):
        num_features = networks.inception(np.zeros((1, 3, 299, 299), np.uint8)).shape[1]

        def forward(self, images: Any) -> Any:
            return networks.inception.forward(images)

    return Trunk()


def _updated(metric: Any, folder: Path) -> Any:
    import torch

    with torch.inference_mode():
        for role, real in (("reference", True), ("images", False)):
            for batch in decoded(folder / role):
                metric.update(torch.from_numpy(batch).permute(0, 3, 1, 2), real=real)
    return metric


# --- LPIPS -------------------------------------------------------------------------------------------------------


def plain(images: Any) -> Any:
    return images


@functools.cache
def lpips_model(network: LpipsNet) -> Any:
    """The package's own network with our trunk."""
    import lpips
    import torch

    model = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    state = torch.load(network.files()[0], weights_only=True)
    layers = {number: layer for k in range(1, 6) for number, layer in getattr(model.net, f"slice{k}").named_children()}
    for name, value in state.items():
        _, number, kind = name.split(".")
        getattr(layers[number], kind).data.copy_(value)
    return model.eval()


def _prepared(network: LpipsNet, folder: Path, view: Callable[[Any], Any] = plain) -> Iterator[Any]:
    """Batches (B, 3, S, S) in [-1, 1]."""
    import torch

    for batch in decoded(folder):
        images = view(torch.from_numpy(batch).permute(0, 3, 1, 2).float())
        yield resize_clean(images, network.size) / 127.5 - 1


def lpips_content(networks: Networks, folder: Path) -> Numbers:
    import torch

    model, network, parts = lpips_model(networks.lpips), networks.lpips, []
    with torch.inference_mode():
        for y, y0 in zip(_prepared(network, folder / "images"), _prepared(network, folder / "baseline"), strict=True):
            parts.append(model(y, y0).flatten())
    return {"lpips_content": float(torch.cat(parts).mean())}


def lpips_gap(networks: Networks, folder: Path, target: np.ndarray, name: str, view: Callable[[Any], Any]) -> Numbers:
    """E d(y0, target) - d(y, target)."""
    import torch

    model, network, means = lpips_model(networks.lpips), networks.lpips, []
    with torch.inference_mode():
        one = resize_clean(view(torch.from_numpy(np.ascontiguousarray(target))[None].float()), network.size) / 127.5 - 1
        for role in ("baseline", "images"):
            found = [model(y, one.expand_as(y)).flatten() for y in _prepared(network, folder / role, view)]
            means.append(float(torch.cat(found).mean()))
    return {name: means[0] - means[1]}


def lpips_leak(networks: Networks, folder: Path, content: np.ndarray, controls: tuple[np.ndarray, ...]) -> Numbers:
    """The controlled leak, in both orientations: one pass for each pair of pictures."""
    sides = []
    for turned in (lambda image: image, lambda image: image[..., ::-1]):
        moved = [
            lpips_gap(networks, folder, turned(image), "gap", standardise)["gap"] for image in (content, *controls)
        ]
        sides.append(moved[0] - float(np.mean(moved[1:])))
    return {"lpips_leak": max(sides)}


# --- CLIP --------------------------------------------------------------------------------------------------------


def clip_images(networks: Networks, folder: Path) -> np.ndarray:
    import torch
    from PIL import Image

    model, transform, _ = _load_clip(networks.clip)
    with torch.inference_mode():
        parts = [
            model.encode_image(torch.stack([transform(Image.fromarray(image)) for image in batch]))
            for batch in decoded(folder)
        ]
    return _unit(torch.cat(parts).double().numpy())


def clip_texts(networks: Networks, prompts: list[str]) -> np.ndarray:
    import torch

    model, _, tokenizer = _load_clip(networks.clip)
    with torch.inference_mode():
        parts = [model.encode_text(tokenizer(prompts[i : i + BATCH])) for i in range(0, len(prompts), BATCH)]
    return _unit(torch.cat(parts).double().numpy())


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def clip_scores(networks: Networks, folder: Path, case: Evaluation) -> Numbers:
    images = clip_images(networks, folder / "images")
    found = {"clip_t": case.prompts, "clip_t_full": case.full_prompts}
    return {
        name: 100 * float((images * clip_texts(networks, list(prompts))).sum(axis=1).mean())
        for name, prompts in found.items()
    }


def clip_cmmd(networks: Networks, folder: Path) -> Numbers:
    x, y = (clip_images(networks, folder / role) for role in ("images", "reference"))
    return {"cmmd": 1000 * biased(x, y)}


def clip_style(networks: Networks, folder: Path, target: np.ndarray) -> Numbers:
    y, y0 = (clip_images(networks, folder / role) for role in ("images", "baseline"))
    (t,) = _unit(networks.clip(target[None]).astype(np.float64))
    return {"style_clip": 100 * float(((y - y0) @ t).mean())}
