"""A tiny random backbone and a tiny dataset, for tests of what does not depend on a trained network, and full
fine-tuning of that backbone in plain torch, for replays.
"""

import functools
import hashlib
import zlib
from dataclasses import replace
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from bench.contracts import CONTEXT, Backbone, Dataset, Example, Pair, Text

WORDS = 1009  # ids of words; two words may share one


def words_of(text, add_special_tokens=False):
    """The tokenizer of the tiny backbone: a token for each word."""
    return SimpleNamespace(input_ids=[1 + zlib.crc32(word.encode()) % WORDS for word in text.split()])


class TinyWords(torch.nn.Module):
    """Where token ids (B, 6) become vectors (B, 6, 16), which the backbone makes of the whole prompt."""

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(WORDS + 1, 16, generator=torch.Generator().manual_seed(5))

    def forward(self, ids, vectors):
        return vectors


UPWARD = "up_blocks.1.attentions"  # where SDXL and `mini` have up_blocks.0.attentions


class TinyBackbone(Backbone):
    """A random UNet on 4 x 8 x 8 latents; "encoding" is 8 x 8 mean pooling, prompts embed as noise from their hash."""

    name, resolution, train_timesteps, latent_shape = "tiny", 64, 1000, (4, 8, 8)

    def __init__(self, dtype=torch.float32):
        from diffusers import DDIMScheduler, UNet2DConditionModel

        self.device, self.dtype = torch.device("cpu"), dtype
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = UNet2DConditionModel(
                sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
                cross_attention_dim=16, norm_num_groups=8, attention_head_dim=8,
            )  # fmt: skip
            self.reader = torch.nn.Linear(16, 16, bias=False)  # the text encoder: at first it changes nothing
            torch.nn.init.eye_(self.reader.weight)
            self.table = TinyWords()
        self.network = self.network.eval()
        for parameter in [*self.network.parameters(), *self.reader.parameters()]:
            parameter.data = parameter.data.to(dtype)
        self.network.requires_grad_(False)
        self.reader.requires_grad_(False)
        self.ddim = DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False
        )

    def parts(self):
        return {"unet": self.network, "text_encoder": self.reader}

    def token_tables(self):
        return {"text_encoder": (self.table, words_of)}

    def embed(self, prompts):
        ids = [[*words_of(prompt).input_ids[-6:], *[0] * 6][:6] for prompt in prompts]
        return Text(self.reader(self.table(torch.tensor(ids), self.words(prompts))), prompts=tuple(prompts))

    def drawing(self, text):
        """It takes reference images and pays no attention to them."""
        return replace(text, images={name: value for name, value in text.images.items() if name != CONTEXT})

    def words(self, prompts):
        def one(prompt):
            seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:6], "big")
            return torch.randn(6, 16, generator=torch.Generator().manual_seed(seed)).to(self.dtype)

        return torch.stack([one(prompt) for prompt in prompts])

    def encode(self, images):
        pooled = F.avg_pool2d(images.to(self.dtype) / 127.5 - 1, 8)
        mean = torch.cat([pooled, pooled.mean(1, keepdim=True)], 1)
        return mean, torch.full_like(mean, 0.05)

    def decode(self, z):
        return ((F.interpolate(z[:, :3], scale_factor=8) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def pixels(self, z):
        return (F.interpolate(z[:, :3], scale_factor=8) / 2 + 0.5).clamp(0, 1)

    def noisy(self, z, eps, t):
        kept = self.ddim.alphas_cumprod.to(z)[t].view(-1, 1, 1, 1)
        return kept.sqrt() * z + (1 - kept).sqrt() * eps

    def target(self, z, eps, t):
        return eps

    def predict(self, z, t, text):
        return self.network(z, t, text.states).sample

    def scheduler(self, name, steps):
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler.from_config(self.ddim.config)
        scheduler.set_timesteps(steps)
        return scheduler

    def sites(self, where):
        if where not in ("attention", "linear", "all"):
            from bench.backbones.sites import sites

            return sites(self.network, where.replace("up_blocks.0.attentions", UPWARD))
        ends = ("to_q", "to_k", "to_v", "to_out.0")
        kinds = {"attention": torch.nn.Linear, "linear": torch.nn.Linear, "all": (torch.nn.Linear, torch.nn.Conv2d)}
        found = {n: m for n, m in self.network.named_modules() if isinstance(m, kinds[where])}
        return {n: m for n, m in found.items() if where != "attention" or n.endswith(ends)}


tiny = functools.cache(TinyBackbone)  # one that tests share, for each dtype; banks are closed after use


def tiny_bank(method, filled=None, backbone=None):
    """The adapters that a method asks for, on a backbone, with random weights when `filled` is a seed."""
    from bench.adapters.bank import Bank
    from bench.seeding import generator

    bank = Bank(backbone or tiny(), method.adapters(tiny_dataset()), [generator("adapters", 0)])
    for name, theta in bank.theta.items() if filled is not None else ():
        noise = torch.randn(theta.shape, generator=generator("fill", filled, name), dtype=theta.dtype)
        theta.add_(noise, alpha=0.02 if name in bank.full else 0.2)
    return bank


def picture(seed):
    """A smooth random picture, uint8 (3, 64, 64)."""
    rough = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(rough, size=64, mode="bilinear")[0] * 255).to(torch.uint8).numpy()


def tiny_dataset(seed=0, **changes):
    content = Example(picture(seed), "a photo of a dog", "dog")
    style = Example(255 - picture(seed), "a photo of a dog", "dog")
    person = Example(255 - picture(seed + 20), "a photo of a dog", "dog", person=True)
    auxiliary = Example(picture(seed + 30), "a photo of a cat", "cat")
    values = dict(
        name=f"tiny{seed}", version=1, licence="none", source="drawn", style_words="in inverted style", noun="dog",
        pairs=(Pair(content, style),), references=(style, person), auxiliary=(auxiliary,),
        prompts=("a photo of a cat", "a photo of a car"),
        seeds=(0, 1), controls=(), reference_set=None, oracle=lambda image: 255 - image, content_hash=str(seed),
    )  # fmt: skip
    return Dataset(**{**values, **changes})


class PlainTuning:
    """All weights of a TinyBackbone in the hands of torch's AdamW; no bank, no trainer."""

    def __init__(self, backbone, recipe, text_encoder):
        self.backbone, self.recipe = backbone, recipe
        network = dict(backbone.network.named_parameters())
        self.weights = {name: value.detach().clone().requires_grad_() for name, value in network.items()}
        self.reader = backbone.reader.weight.detach().clone().requires_grad_(text_encoder)
        self.parameters = [*self.weights.values(), *([self.reader] if text_encoder else [])]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)

    def predict(self, z, t, prompts):
        states = self.backbone.words(prompts) @ self.reader.T
        return torch.func.functional_call(self.backbone.network, self.weights, (z, t, states)).sample

    def descend(self, loss):
        self.optimizer.zero_grad()
        loss.backward()
        if self.recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_norm)
        self.optimizer.step()

    def state(self):
        """As `Bank.state` names it."""
        trained = {f"unet.{name}": value.detach() for name, value in self.weights.items()}
        return trained | ({"text_encoder.weight": self.reader.detach()} if self.reader.requires_grad else {})


def tiny_image_encoder(folder):
    """A random CLIP image tower in transformers' format: 32 pixels, 16 patches of width 32, embedding of 24."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8,
        projection_dim=24,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder
