"""What a number depends on besides the images."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from bench.contracts import Images
from metrics.features import images_hash

if TYPE_CHECKING:
    from metrics.networks import Network


def fingerprint(
    metric: str, n: int, network: Network | None = None, reference: Images | None = None, **more: Any
) -> dict[str, Any]:
    """Metric and version ("fid 1"), n, network with weights and preprocessing, reference set, library versions."""
    found: dict[str, Any] = {"metric": metric, "n": n}
    if network is not None:
        found |= {"network": network.name, "weights": network.weights_sha256[:16], "preprocessing": network.recipe}
    if reference is not None:
        found |= {"reference_n": len(reference), "reference": images_hash(reference)}
    packages = ("numpy", *(network.packages if network is not None else ()))
    return found | {"versions": {name: version(name) for name in packages}} | more
