"""Networks that metrics read images with, and what they share."""

from metrics.networks.inception import Inception, inception_layers
from metrics.networks.lpips import LpipsNet
from metrics.networks.network import (
    ImageNetwork,
    Network,
    PerceptualNetwork,
    best_device,
    exact,
    load_strictly,
    misfit,
    read_state,
    resize_clean,
    unit,
    weights_path,
)
from metrics.networks.open_clip import OpenClip
from metrics.networks.readers import ReadersNet
from metrics.networks.vision_language import VisionLanguage

__all__ = [
    "ImageNetwork", "Inception", "LpipsNet", "Network", "OpenClip", "PerceptualNetwork", "ReadersNet",
    "VisionLanguage", "best_device", "exact", "inception_layers", "load_strictly", "misfit", "read_state",
    "resize_clean", "unit", "weights_path",
]  # fmt: skip
