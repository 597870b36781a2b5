"""FD-DINOv2 (Stein et al. 2023): the Frechet distance in the features of DINOv2. Lower is closer.

People agree with it more than with Inception's. The paper takes ViT-L/14 on images squashed to 224; the column names
the network that was used, and the record its preprocessing.
"""

from __future__ import annotations

from typing import ClassVar

from metrics.fid import Frechet, frechet_quantities


class FdDinov2(Frechet):
    """The Frechet distance in DINOv2 features, and its null at the same N. Small N biases it as it biases FID."""

    label = "fd_dinov2"
    higher_is_better: ClassVar = {"fd_dinov2": False, "fd_dinov2_null": False}
    quantities: ClassVar = frechet_quantities(
        "fd_dinov2", "Frechet distance in DINOv2 features", "Stein et al. 2023", "FD-DINOv2"
    )
