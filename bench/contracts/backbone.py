"""What a backbone does, and what a method draws from while it trains.

Shapes: B rows of one forward pass, N images, C latent channels, H W latent size, P pixels per side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from bench.contracts.dataset import Dataset, Example
from bench.contracts.prediction import CONTEXT, Text
from bench.errors import Impossible

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


CONVENTION = "convention: "  # of the note that says them; it is a footnote of tables


class TrainingData(ABC):
    """What `Method.step` draws from: latents and embedded prompts, both cached, and the backbone's noise."""

    dataset: Dataset
    backbone: Backbone
    batch_size: int
    noise_offset: float = 0.0  # times one Gaussian number for each image and channel, added to the noise

    @abstractmethod
    def draw(self, roles: Sequence[str], rng: torch.Generator) -> tuple[list[Tensor], list[Example]]:
        """Latents (batch, C, H, W) per role, and the dataset's own examples that were drawn for the first role.

        Roles are "content" and "style" (the two halves of the pairs), "references", "auxiliary" and "prior". Roles
        drawn together share indices, flips and crops, so pairs stay aligned.
        """

    @abstractmethod
    def text(self, prompts: Sequence[str]) -> Text:
        """Embedded prompts, one row each; computed once per prompt."""

    def noise(self, like: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Gaussian noise shaped as `like` (B, C, H, W) and timesteps (B,) as the backbone draws them for training."""
        import torch

        eps = torch.randn(like.shape, generator=rng, dtype=torch.float32).to(like)
        if self.noise_offset:
            level = torch.randn((*like.shape[:2], 1, 1), generator=rng, dtype=torch.float32).to(like)
            eps = eps + self.noise_offset * level
        return eps, self.backbone.draw_timesteps(len(like), rng).to(like.device)

    def noisy(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Latents at timestep t of the backbone's path from image to noise, all (B, C, H, W)."""
        return self.backbone.noisy(z, eps, t)

    def target(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should predict: eps, v (Salimans & Ho 2022) or eps - z, as the backbone was trained."""
        return self.backbone.target(z, eps, t)

    def loss(self, out: Tensor, target: Tensor, t: Tensor) -> Tensor:
        """Mean squared error () of predictions out (B, C, H, W) of a target at timesteps t (B,).

        The trainer's option `min_snr` weights the rows. Methods whose loss is another one do not call it.
        """
        from torch.nn.functional import mse_loss

        return mse_loss(out, target)

    def start_noise(self, rng: torch.Generator) -> Tensor:
        """Gaussian noise (batch, C, H, W) to begin a rollout of the network from."""
        import torch

        eps = torch.randn((self.batch_size, *self.backbone.latent_shape), generator=rng, dtype=torch.float32)
        precise = self.backbone.dtype == torch.float64
        return eps.to(self.backbone.device, torch.float64 if precise else torch.float32)

    def scheduler(self, name: str, steps: int) -> Any:
        """A fresh diffusers scheduler with its timesteps set, for such a rollout."""
        return self.backbone.scheduler(name, steps)

    def pixels(self, z: Tensor) -> Tensor:
        """Latents (B, C, H, W) -> float (B, 3, P, P) in [0, 1], with gradients."""
        return self.backbone.pixels(z)


class Backbone(ABC):
    """A frozen text-to-image model behind one face: encode, decode, embed, diffuse, predict, schedule."""

    part: ClassVar[str] = "unet"  # diffusers' name of the network: its folder, and the prefix in adapter files
    rollout_scheduler: ClassVar[str] = "ddim"  # for rollouts of the network in training
    name: str
    resolution: int  # P, pixels per side
    network: nn.Module  # where adapters attach
    device: torch.device
    dtype: torch.dtype
    training_notes: Sequence[str] = ()  # how training on it departs from the reference scripts
    sizes: ClassVar[tuple[str, ...]] = ()  # extras of a text that say sizes of images and not what the prompt says

    def in_training(self, resolution: int | None, time_ids: Sequence[int] | None) -> Backbone:
        """The same networks for training images of `resolution` pixels, described by SDXL's `time_ids`: height and
        width of the original, crop top and left. None is as in sampling. Raises Impossible where there are none.
        """
        if resolution in (None, self.resolution) and time_ids is None:
            return self
        raise Impossible(
            f"trainer.resolution or trainer.time_ids was requested, which {self.name} does not have; leave them out."
        )

    @abstractmethod
    def embed(self, prompts: Sequence[str]) -> Text:
        """One row per prompt, in every role the same; the empty prompt is read as any other."""

    def absent(self, text: Text, rows: Sequence[bool]) -> Text:
        """`text`, the chosen rows of which stand for no negative prompt; here that is the empty prompt, as embedded."""
        return text

    @abstractmethod
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, 3, P, P) -> mean and standard deviation of the latent posterior, scaled, each (N, C, H, W)."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """(N, C, H, W) -> uint8 (N, 3, P, P)."""

    def pixels(self, z: Tensor) -> Tensor:
        """(N, C, H, W) -> float (N, 3, P, P) in [0, 1], with gradients, for losses on images."""
        raise Impossible(f"The backbone {self.name} decodes without gradients; choose another backbone.")

    @abstractmethod
    def noisy(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor: ...

    @abstractmethod
    def target(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor: ...

    @abstractmethod
    def predict(self, z: Tensor, t: Tensor, text: Text) -> Tensor:
        """The network's own prediction (B, C, H, W)."""

    @abstractmethod
    def sites(self, where: str) -> Mapping[str, nn.Module]:
        """Layers of `network` by name where adapters go: attention, all, up_blocks.0.attentions.1, ..."""

    def cross_attention(self) -> Mapping[str, nn.Module]:
        """Attention layers that read the text, by name, in the network's order; each has to_q, to_k, to_v, to_out."""
        return {name: module for name, module in self.network.named_modules() if name.endswith(".attn2")}

    @abstractmethod
    def scheduler(self, name: str, steps: int) -> Any:
        """A fresh diffusers scheduler with its timesteps set, from the backbone's own noise schedule."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""

    @property
    @abstractmethod
    def train_timesteps(self) -> int: ...

    def draw_timesteps(self, n: int, rng: torch.Generator) -> Tensor:
        """(n,) timesteps for training, on the CPU: uniform integers, unless the family is trained in another way."""
        import torch

        return torch.randint(self.train_timesteps, (n,), generator=rng)

    def min_snr_weights(self, t: Tensor, gamma: float) -> Tensor:
        """Weights (B,) of the squared error at timesteps t (B,); see `NoiseSchedule.min_snr_weights`."""
        raise Impossible(
            f"trainer.min_snr was requested, which is defined for noise and v prediction, not for {self.name}; "
            "type trainer.min_snr=null."
        )

    def timestep(self, ddpm: float) -> float:
        """The timestep here that has the noise-to-signal ratio of a DDPM timestep of Stable Diffusion."""
        return ddpm

    def drawing(self, text: Text) -> Text:
        """Prompts as they condition the network while images are drawn, from prompts as they do in training.

        Raises Impossible for prompts that show pictures (`CONTEXT`) to a network that does not read any.
        """
        if CONTEXT in text.images:
            raise Impossible(
                f"{self.name} does not read reference images beside a prompt; choose backbone=flux2_klein."
            )
        return text

    def conventions(self) -> Mapping[str, str]:
        """What a record says of choices that the family leaves open, such as the sampling of timesteps."""
        return {}

    def truncated(self, prompt: str) -> int:
        """Tokens of the prompt beyond what the text encoder reads."""
        return 0

    def parts(self) -> Mapping[str, nn.Module]:
        """What full fine-tuning can train, by diffusers' folder names: "unet" or "transformer", "text_encoder", ..."""
        return {self.part: self.network}

    def tokenizers(self) -> Sequence[Any]:
        """One per text encoder, in transformers' form; none where prompts are not read in tokens."""
        return ()

    def token_tables(self) -> Mapping[str, tuple[Any, Any]]:
        """By name in `parts`: the layer that turns token ids (B, L) into embeddings (B, L, D), and its tokenizer."""
        return {}
