"""Between pixels and latents: diffusers' AutoencoderKL, with ranges and scaling in one place.

Shapes: N images of P pixels per side, C latent channels, H W latent size.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench.backbones import read_config
from bench.backbones.load import load_model
from bench.contracts import BenchError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PIXELS_AT_ONCE = 2**20  # decoding needs about 6 kB per pixel


class Autoencoder:
    """z = (latent - shift) * scale. Half precision only where the weights say that they survive it."""

    kind: ClassVar[str] = "AutoencoderKL"  # diffusers' class

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device, variant: str | None = None):
        import diffusers
        import torch

        unsafe = read_config(folder, "config.json").get("force_upcast", True)
        precision = torch.promote_types(dtype, torch.float32) if unsafe else dtype
        self.network = load_model(getattr(diffusers, self.kind), folder, precision, variant).to(device)
        self.factor = 2 ** (len(self.network.config.block_out_channels) - 1)
        self.channels = self.network.config.latent_channels
        self.shift, self.scale = self._normalisation(self.network.config)

    def _normalisation(self, config: Any) -> tuple[Tensor, Tensor]:
        """Shift and scale, each (1, C or 1, 1, 1)."""
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        return self._column(mean or [config.shift_factor or 0.0]), config.scaling_factor / self._column(std or [1.0])

    def _column(self, values: list[float]) -> Tensor:
        import torch

        dtype = torch.promote_types(self.network.dtype, torch.float32)
        return torch.tensor(values, device=self.network.device, dtype=dtype).view(1, -1, 1, 1)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, 3, P, P) -> mean and standard deviation of the scaled latent, each (N, C, H, W)."""
        import torch

        with torch.no_grad():
            parts = [self._posterior(part) for part in images.split(self._at_once(images.shape[-1]))]
        mean, std = (torch.cat(column).to(self.scale.dtype) for column in zip(*parts, strict=True))
        return (mean - self.shift) * self.scale, std * self.scale

    def _posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.to(self.network.device, self.network.dtype) / 127.5 - 1
        posterior = self.network.encode(x).latent_dist
        return posterior.mean, posterior.std

    def decode(self, z: Tensor) -> Tensor:
        """(N, C, H, W) -> uint8 (N, 3, P, P), rounded to the nearest grey level."""
        import torch

        parts = z.split(self._at_once(z.shape[-1] * self.factor))
        with torch.no_grad():
            return torch.cat([(self.pixels(part) * 255).round().to(torch.uint8) for part in parts])

    def pixels(self, z: Tensor) -> Tensor:
        """(N, C, H, W) -> float (N, 3, P, P) in [0, 1], all at once, with gradients.

        Raises BenchError where the decoder gives NaN or infinity, which would become black or white pixels.
        """
        latents = z.to(self.scale) / self.scale + self.shift
        x = self._decoded(latents.to(self.network.dtype)).to(self.scale.dtype)
        if not x.isfinite().all():
            raise BenchError(
                f"The autoencoder gave NaN or infinity in {self.network.dtype} for latents of at most "
                f"{float(z.detach().abs().max()):g}; give one that works in this precision (backbone.vae), or type "
                "backbone.dtype=float32."
            )
        return (x / 2 + 0.5).clamp(0, 1)

    def _decoded(self, latents: Tensor) -> Tensor:
        return self.network.decode(latents).sample

    def _at_once(self, pixels: int) -> int:
        return max(1, PIXELS_AT_ONCE // pixels**2)


class Flux2Autoencoder(Autoencoder):
    """FLUX.2's: each latent is a 2 x 2 patch of the network's, normalised by the statistics of its batch norm.

    Its scripts and pipelines use the mode of the posterior, so the standard deviation is zero.
    """

    kind: ClassVar[str] = "AutoencoderKLFlux2"

    def _normalisation(self, config: Any) -> tuple[Tensor, Tensor]:
        norm = self.network.bn
        self.factor, self.channels = self.factor * 2, self.channels * 4
        std = (norm.running_var + config.batch_norm_eps).sqrt()
        return self._column(norm.running_mean.tolist()), 1 / self._column(std.tolist())

    def _posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        from torch.nn.functional import pixel_unshuffle

        mean, _ = super()._posterior(images)
        patches = pixel_unshuffle(mean, 2)
        return patches, patches.new_zeros(patches.shape)

    def _decoded(self, latents: Tensor) -> Tensor:
        from torch.nn.functional import pixel_shuffle

        return super()._decoded(pixel_shuffle(latents, 2))
