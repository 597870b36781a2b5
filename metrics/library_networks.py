"""Our networks and weights in the form that torchmetrics and lpips take them.

Shapes: B images, D features, P pixels per side.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from metrics.networks import ImageNetwork, LpipsNet, OpenClip, best_device
from metrics.networks.lpips import _load_lpips
from metrics.networks.open_clip import _load_clip

if TYPE_CHECKING:
    from torch import Tensor, nn


def features_module(network: ImageNetwork, example: np.ndarray) -> nn.Module:
    """The network's points as a module, uint8 (B, 3, P, P) -> float64 (B, D); `example` is one image."""
    import torch

    class Points(torch.nn.Module):
        num_features = network(np.asarray(example)).shape[1]

        def forward(self, images: Tensor) -> Tensor:
            return torch.from_numpy(network.as_points(network(images.cpu().numpy())))

    return Points()


@functools.cache
def lpips_of_package(network: LpipsNet) -> nn.Module:
    """lpips.LPIPS with the package's heads and our trunk."""
    import lpips

    return _with_trunk(lpips.LPIPS(net=network.trunk, pnet_rand=True, verbose=False), network)


@functools.cache
def lpips_of_torchmetrics(network: LpipsNet) -> nn.Module:
    """The network of torchmetrics' LearnedPerceptualImagePatchSimilarity, which itself would download a trunk."""
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    return _with_trunk(_NoTrainLpips(net=network.trunk, pnet_rand=True), network)


def _with_trunk(model: Any, network: LpipsNet) -> nn.Module:
    """The model with every layer of its trunk loaded from ours; both number layers as torchvision does."""
    trunk = _load_lpips(network)[0]
    for part in model.net.children():
        for number, layer in part.named_children():
            layer.load_state_dict(trunk[int(number)].state_dict())
    return model.eval().requires_grad_(False).to(best_device(network.device))


def clip_for_torchmetrics(network: OpenClip) -> tuple[nn.Module, Any]:
    """Model and processor with the part of transformers' CLIP interface that torchmetrics' CLIPScore calls."""
    import torch

    model, transform, tokenizer = _load_clip(network)

    class Clip(torch.nn.Module):
        config = None

        def get_image_features(self, pixels: Tensor) -> Tensor:
            return model.encode_image(pixels.to(best_device(network.device)))

        def get_text_features(self, tokens: Tensor, mask: Tensor) -> Tensor:
            return model.encode_text(tokens.to(best_device(network.device)))

    def process(text: Any = None, images: Any = None, **options: Any) -> dict[str, Tensor]:
        from torchvision.transforms.functional import to_pil_image

        if images is not None:
            return {"pixel_values": torch.stack([transform(to_pil_image(image)) for image in images])}
        tokens = tokenizer(list(text))
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

    return Clip(), process
