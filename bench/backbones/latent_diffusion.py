"""What the Stable Diffusion family shares: a UNet on the latents of an autoencoder, conditioned on prompts.

Shapes: B rows, N images of P pixels per side, C latent channels, H W latent size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from typing import TYPE_CHECKING, Any, get_args

from bench.backbones import read_config, resolve, sites
from bench.backbones.quantization import configuration
from bench.choices import DType, Quantize, check_device
from bench.contracts import Backbone, BenchError, Text

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn


DTYPES = get_args(DType)


class LatentDiffusion(Backbone):
    """A frozen UNet, its autoencoder, its noise schedule; subclasses add how prompts are read.

    `dtype` is the precision of UNet and text encoders; below float32 the UNet runs under autocast, so adapters in
    float32 keep their precision, and latents and answers stay float32. `quantize` keeps the network's weights in 8 or 4
    bits.
    """

    network: Any  # diffusers' UNet2DConditionModel, or what `_network_class` gives
    pipeline_class: str  # of diffusers
    conditioning: str | None  # what the UNet's configuration calls its added conditioning

    def __init__(
        self,
        path: str,
        resolution: int,
        dtype: DType = "float32",
        device: str = "auto",
        name: str = "",
        vae: str | None = None,
        variant: str | None = None,
        channels_last: bool = False,
        gradient_checkpointing: bool = False,
        download_gb: float | None = None,
        quantize: Quantize | None = None,
        recipe: str | None = None,
    ):
        from bench.backbones.load import load_model

        self.name, self.resolution = name, resolution
        self.dtype, self.device = _dtype(dtype), _device(device)
        if self.device.type == "mps" and dtype == "float64":
            raise BenchError("backbone.dtype=float64 was requested, which MPS lacks; type backbone.dtype=float32.")
        self.folder = resolve(path, variant, download_gb, recipe)
        vae_folder = resolve(vae) if vae else self.folder / "vae"
        self._check(read_config(self.folder, f"{self.part}/config.json"))
        self.schedule = self._noise(read_config(self.folder, "scheduler/scheduler_config.json"))
        quantization = configuration(quantize, self.dtype, self.device)
        network_folder = self.folder / self.part
        self.network = load_model(self._network_class(), network_folder, self.dtype, variant, quantization)
        self.network.to(self.device)
        self.vae = self._autoencoder(vae_folder, variant)
        self.text_encoders = self._text_encoders(self.folder, variant)
        self._move_text_encoders(self.device)
        self._check_sizes()
        self._tune(channels_last, gradient_checkpointing)

    # --- what subclasses say

    @abstractmethod
    def _text_encoders(self, folder: Path, variant: str | None) -> tuple[Any, ...]: ...

    def _network_class(self) -> type[Any]:
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel

    def _noise(self, config: dict[str, Any]) -> Any:
        from bench.backbones.noise_schedule import NoiseSchedule

        return NoiseSchedule(config)

    def _autoencoder(self, folder: Path, variant: str | None) -> Any:
        from bench.backbones.autoencoder import Autoencoder

        return Autoencoder(folder, self.dtype, self.device, variant)

    def in_training(self, resolution: int | None, time_ids: Sequence[int] | None) -> Backbone:
        if self.part != "unet" or resolution in (None, self.resolution):  # a transformer knows one size
            return super().in_training(resolution, time_ids)
        made = copy(self)
        made.resolution = resolution
        made._check_sizes()
        return made.in_training(None, time_ids)

    def _move_text_encoders(self, device: torch.device | str) -> None:
        for encoder in self.text_encoders:
            encoder.network.to(device)

    # --- pixels and latents

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, 3, P, P) -> mean and standard deviation of the scaled latent posterior, each (N, C, H, W)."""
        if tuple(images.shape[1:]) != (3, self.resolution, self.resolution):
            raise BenchError(
                f"{self.name} encodes images (N, 3, {self.resolution}, {self.resolution}); found "
                f"{tuple(images.shape)}; resize them or set backbone.resolution."
            )
        return self.vae.encode(images)

    def decode(self, z: Tensor) -> Tensor:
        """(N, C, H, W) -> uint8 (N, 3, P, P)."""
        return self.vae.decode(z)

    def pixels(self, z: Tensor) -> Tensor:
        """(N, C, H, W) -> float (N, 3, P, P) in [0, 1], with gradients."""
        return self.vae.pixels(z)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        side = self.resolution // self.vae.factor
        return self.vae.channels, side, side

    # --- noise

    @property
    def train_timesteps(self) -> int:
        return self.schedule.train_timesteps

    def noisy(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return self.schedule.noisy(z, eps, t)

    def target(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return self.schedule.target(z, eps, t)

    def min_snr_weights(self, t: Tensor, gamma: float) -> Tensor:
        if not hasattr(self.schedule, "min_snr_weights"):  # of a flow
            return super().min_snr_weights(t, gamma)
        return self.schedule.min_snr_weights(t, gamma)

    def scheduler(self, name: str, steps: int) -> Any:
        return self.schedule.scheduler(name, steps)

    # --- the network

    def predict(self, z: Tensor, t: Tensor, text: Text) -> Tensor:
        """The UNet's prediction (B, C, H, W) for latents at timesteps t (B,), in the precision of z."""
        with self._autocast():
            prediction = self.network(
                z.to(self.device, self.dtype),
                t.to(self.device),
                encoder_hidden_states=text.states,
                added_cond_kwargs=dict(text.extras) or None,
                return_dict=False,
            )[0]
        return prediction.to(z.dtype)

    def _autocast(self) -> AbstractContextManager:
        import torch

        return torch.autocast(self.device.type, self.dtype) if self.dtype.itemsize < 4 else nullcontext()

    def sites(self, where: str) -> dict[str, nn.Module]:
        """Layers of the network that carry adapters, by name; `bench.backbones.sites` says what `where` can be."""
        return sites.sites(self.network, where)

    def truncated(self, prompt: str) -> int:
        return max(encoder.truncated(prompt) for encoder in self.text_encoders)

    def parts(self) -> dict[str, Any]:
        """The network and the text encoders by diffusers' names of them."""
        encoders = {
            f"text_encoder{suffix}": encoder.network
            for suffix, encoder in zip(("", "_2", "_3"), self.text_encoders, strict=False)
        }
        return {self.part: self.network, **encoders}

    def tokenizers(self) -> list[Any]:
        return [encoder.tokenizer for encoder in self.text_encoders]

    def token_tables(self) -> dict[str, tuple[Any, Any]]:
        encoders = [(name, part) for name, part in self.parts().items() if name != self.part]
        return {
            name: (encoder.get_input_embeddings(), tokenizer)
            for (name, encoder), tokenizer in zip(encoders, self.tokenizers(), strict=True)
        }

    def pipeline(self) -> Any:
        """diffusers' pipeline made of these very components, with the folder's own scheduler, no safety checker."""
        import diffusers

        scheduler = getattr(diffusers, self.schedule.config["_class_name"]).from_config(self.schedule.config)
        parts = {**self.parts(), "vae": self.vae.network, "scheduler": scheduler}
        for suffix, tokenizer in zip(("", "_2", "_3"), self.tokenizers(), strict=False):
            parts[f"tokenizer{suffix}"] = tokenizer
        return getattr(diffusers, self.pipeline_class)(**parts, **self._pipeline_options())

    @abstractmethod
    def _pipeline_options(self) -> dict[str, Any]: ...

    # --- checks and tuning

    def _check(self, config: dict[str, Any]) -> None:
        """A folder of another model family is reported before its weights are read."""
        if config.get("addition_embed_type") != self.conditioning:
            other = "sd15" if self.conditioning else "sdxl"
            raise BenchError(
                f"{self.folder} holds a UNet with added conditioning {config.get('addition_embed_type')!r}, "
                f"but {type(self).__name__} needs {self.conditioning!r}; try backbone={other} with this path."
            )

    def _check_sizes(self) -> None:
        factor, channels = self.vae.factor, self.network.config.in_channels
        if self.resolution < factor or self.resolution % factor:
            raise BenchError(
                f"The resolution {self.resolution} was requested; {self.name} needs a multiple of {factor}, "
                f"e.g. backbone.resolution={max(1, round(self.resolution / factor)) * factor}."
            )
        if channels != self.vae.channels:
            raise BenchError(
                f"The UNet of {self.folder} reads {channels} channels and its autoencoder makes {self.vae.channels}; "
                "give a plain text-to-image model (inpainting and editing models are not)."
            )

    def _tune(self, channels_last: bool, gradient_checkpointing: bool) -> None:
        """Memory layout, and activations recomputed in the backward pass (diffusers does so without reentrance)."""
        import torch

        if channels_last:
            self.network.to(memory_format=torch.channels_last)
            self.vae.network.to(memory_format=torch.channels_last)
        if gradient_checkpointing:
            self.network.enable_gradient_checkpointing()


def _dtype(name: str) -> torch.dtype:
    import torch

    if name not in DTYPES:
        raise BenchError(f"The precision {name!r} was requested; give backbone.dtype={'|'.join(DTYPES)}.")
    return getattr(torch, name)


def _device(name: str) -> torch.device:
    """`auto` is the GPU when there is one; Apple's MPS, which is untested, only on request."""
    import torch

    check_device("backbone.device", name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BenchError(f"The device {name!r} was requested; give backbone.device=auto, cpu, cuda or mps.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BenchError(f"The device {name!r} was requested, but torch finds no GPU; give backbone.device=cpu.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise BenchError(f"The device {name!r} was requested, but torch has no MPS here; give backbone.device=cpu.")
    return device
