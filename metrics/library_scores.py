"""A second opinion: the numbers of torchmetrics, clean-fid and lpips, computed by these packages on our networks.

Only networks and weights are ours. The columns are called <our column>_<package>, and a fingerprint names the package
and, as `same_as`, our column. What a package draws at random is drawn from a fixed seed, and images go in the order of
their content, so the same images always have the same number.
Shapes: N generated and M reference images, D features, P pixels per side.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bench.contracts import Evaluation, Images, Metric, Quantity, Score
from bench.data.image_files import save_images
from bench.data.images import image_keys, in_batches
from metrics.fingerprint import fingerprint
from metrics.library_networks import clip_for_torchmetrics, features_module, lpips_of_package, lpips_of_torchmetrics
from metrics.networks import ImageNetwork, Inception, LpipsNet, OpenClip, best_device, exact, resize_clean
from metrics.sets import reference_images

if TYPE_CHECKING:
    from torch import Tensor

SEED = 20180104
SUBSETS, SUBSET = 100, 1000  # of KID: the published recipe, and at most as many images as there are


@contextlib.contextmanager
def library_call() -> Iterator[None]:
    """Inference without warnings; torch's and numpy's global random states are fixed inside and restored after it."""
    import torch

    state = np.random.get_state()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), exact():
        warnings.simplefilter("ignore")
        np.random.seed(SEED)
        torch.default_generator.manual_seed(SEED)
        try:
            yield
        finally:
            np.random.set_state(state)


def by_content(images: Images) -> list[int]:
    """Row numbers in the order of the images' content."""
    keys = image_keys(images)
    return sorted(range(len(keys)), key=keys.__getitem__)


def second(ours: str, package: str, about: str) -> Quantity:
    """The entry of a column that a package computes where we have a column of our own."""
    name = f"{ours} by {package}"
    return Quantity(name, about, f"as {ours}", package, f"as {ours}", f"the value of {ours}", heading=name)


class Library(Metric):
    """A package's own computation. A leaf names the package, and our column for each of its own."""

    package: ClassVar[str]
    same_as: ClassVar[Mapping[str, str]]  # column -> our column

    def __init__(self, network: Any):
        self.network = network

    def missing(self) -> str | None:
        return self.network.missing()

    def identity(self) -> list[str]:
        return [*super().identity(), f"{self.package} {version(self.package)}"]

    def result(
        self,
        values: Mapping[str, float],
        n: int,
        reference: Images | None = None,
        per_image: Mapping[str, np.ndarray] | None = None,
    ) -> Score:
        """The score with its fingerprint."""
        engine = {"engine": f"{self.package} {version(self.package)}", "same_as": dict(self.same_as)}
        name = f"{type(self).__name__} {self.version}"
        return Score(values, per_image or {}, fingerprint(name, n, self.network, reference, **engine))


# --- sets of images ----------------------------------------------------------------------------------------------


class TorchmetricsSets(Library):
    """FID and KID by torchmetrics, on the features that our `fid` and `kid` are taken of."""

    package = "torchmetrics"
    same_as: ClassVar = {"fid_torchmetrics": "fid", "kid_torchmetrics": "kid"}
    higher_is_better: ClassVar = {"fid_torchmetrics": False, "kid_torchmetrics": False}
    quantities: ClassVar = {
        "fid_torchmetrics": second("fid", "torchmetrics", "FrechetInceptionDistance"),
        "kid_torchmetrics": second("kid", "torchmetrics", "KernelInceptionDistance, 100 subsets of min(N, M, 1000)"),
    }
    network: ImageNetwork

    def score(self, evaluation: Evaluation) -> Score:
        """Impossible without a reference set or with fewer than two images."""
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance

        reference = reference_images(evaluation, "FID and KID by torchmetrics")
        n = len(evaluation.images)
        with library_call():
            trunk = features_module(self.network, evaluation.images[:1])
            fid = FrechetInceptionDistance(feature=trunk)
            kid = KernelInceptionDistance(feature=trunk, subsets=SUBSETS, subset_size=min(n, len(reference), SUBSET))
            for metric in (fid, kid):
                _update(metric, evaluation.images, real=False)
                _update(metric, reference, real=True)
            values = {"fid_torchmetrics": float(fid.compute()), "kid_torchmetrics": 1000 * float(kid.compute()[0])}
        return self.result(values, n, reference)


def _update(metric: Any, images: Images, real: bool) -> None:
    import torch

    for batch in in_batches(images, by_content(images)):
        metric.update(torch.from_numpy(np.ascontiguousarray(batch)), real=real)


class CleanFid(Library):
    """FID and KID by clean-fid, which reads image files and resizes for Inception itself.

    Other networks than Inception do their own preprocessing, as in our columns.
    """

    package = "clean-fid"
    same_as: ClassVar = {"fid_cleanfid": "fid", "kid_cleanfid": "kid"}
    higher_is_better: ClassVar = {"fid_cleanfid": False, "kid_cleanfid": False}
    quantities: ClassVar = {
        "fid_cleanfid": second("fid", "clean-fid", "fid_from_feats"),
        "kid_cleanfid": second("kid", "clean-fid", "kernel_distance, 100 subsets of min(N, M, 1000)"),
    }
    network: ImageNetwork

    def score(self, evaluation: Evaluation) -> Score:
        """Impossible without a reference set or with fewer than two images."""
        from cleanfid.fid import fid_from_feats, kernel_distance

        reference = reference_images(evaluation, "FID and KID by clean-fid")
        with library_call():
            x, y = (self._features(images) for images in (evaluation.images, reference))
            kid = kernel_distance(x, y, num_subsets=SUBSETS, max_subset_size=SUBSET)
            values = {"fid_cleanfid": float(fid_from_feats(x, y)), "kid_cleanfid": 1000 * kid}
        return self.result(values, len(x), reference)

    def _features(self, images: Images) -> np.ndarray:
        """What clean-fid reads from a folder of these images, float64 (N, D)."""
        from cleanfid.fid import get_folder_features

        resize = None if isinstance(self.network, Inception) else _as_it_is
        with tempfile.TemporaryDirectory() as folder:
            for k, batch in enumerate(in_batches(images, by_content(images))):
                save_images(Path(folder) / f"{k:06d}", batch, [f"{i:06d}" for i in range(len(batch))])
            features = get_folder_features(
                folder, self._model, num_workers=0, device="cpu", verbose=False, custom_fn_resize=resize
            )
        return self.network.as_points(features)

    def _model(self, batch: Tensor) -> Tensor:
        """(B, 3, P, P) in 0..255, for Inception resized by clean-fid -> (B, D)."""
        batch = batch.to(best_device(self.network.device))
        if isinstance(self.network, Inception):
            return self.network.pool3((batch - 128) / 128)
        return self.network.forward(batch.round().byte())


def _as_it_is(image: np.ndarray) -> np.ndarray:
    return image


# --- LPIPS -------------------------------------------------------------------------------------------------------


class LpipsLibrary(Library):
    """The mean LPIPS from each image to the baseline image of the same prompt and seed. A leaf gives the network."""

    network: LpipsNet

    def distances(self) -> Any:
        """A callable: two batches (B, 3, P, P) in [-1, 1] -> B distances."""
        raise NotImplementedError

    def score(self, evaluation: Evaluation) -> Score:
        (column,) = self.same_as
        with library_call():
            call = self.distances()
            pairs = zip(self._prepared(evaluation.images), self._prepared(evaluation.baseline), strict=True)
            found = np.concatenate([call(y, y0).flatten().double().cpu().numpy() for y, y0 in pairs])
        return self.result({column: float(found.mean())}, len(found), per_image={column: found})

    def _prepared(self, images: Images) -> Iterator[Tensor]:
        import torch

        device = best_device(self.network.device)
        for batch in in_batches(images, list(range(len(images)))):
            shown = torch.from_numpy(np.ascontiguousarray(batch)).to(device)
            yield resize_clean(shown, self.network.size) / 127.5 - 1


class LpipsPackage(LpipsLibrary):
    """LPIPS by the package lpips, on our trunk and its own heads."""

    package = "lpips"
    same_as: ClassVar = {"lpips_content_lpips": "lpips_content"}
    higher_is_better: ClassVar = {"lpips_content_lpips": False}
    quantities: ClassVar = {"lpips_content_lpips": second("lpips_content", "lpips", "mean lpips.LPIPS(y, y0)")}

    def distances(self) -> Any:
        return lpips_of_package(self.network)


class TorchmetricsLpips(LpipsLibrary):
    """LPIPS by torchmetrics, on our trunk and its own heads."""

    package = "torchmetrics"
    same_as: ClassVar = {"lpips_content_torchmetrics": "lpips_content"}
    higher_is_better: ClassVar = {"lpips_content_torchmetrics": False}
    quantities: ClassVar = {
        "lpips_content_torchmetrics": second(
            "lpips_content", "torchmetrics", "mean LearnedPerceptualImagePatchSimilarity(y, y0)"
        )
    }

    def distances(self) -> Any:
        return lpips_of_torchmetrics(self.network)


# --- CLIP --------------------------------------------------------------------------------------------------------


class TorchmetricsClipScore(Library):
    """CLIPScore by torchmetrics on the content prompts. A mean below zero becomes zero there, and does not in ours."""

    package = "torchmetrics"
    same_as: ClassVar = {"clip_t_torchmetrics": "clip_t"}
    higher_is_better: ClassVar = {"clip_t_torchmetrics": True}
    quantities: ClassVar = {"clip_t_torchmetrics": second("clip_t", "torchmetrics", "max(CLIPScore(y, q), 0)")}
    network: OpenClip

    def score(self, evaluation: Evaluation) -> Score:
        import torch
        from torchmetrics.multimodal.clip_score import CLIPScore

        with library_call():
            metric = CLIPScore(model_name_or_path=lambda: clip_for_torchmetrics(self.network))
            done = 0
            for batch in in_batches(evaluation.images, list(range(len(evaluation.images)))):
                prompts = list(evaluation.prompts[done : done + len(batch)])
                metric.update(list(torch.from_numpy(np.ascontiguousarray(batch))), prompts)
                done += len(batch)
            value = float(metric.compute())
        return self.result({"clip_t_torchmetrics": value}, done)
