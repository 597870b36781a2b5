"""A backbone in closed form: what a sample ends at is known, so what guidance does with it can be read off.

Every prompt, every shown image and every adapter has a point of its own, a unit vector. A row of a forward pass asks
for the sum m of the points of its prompt and of the adapters that are on, times their scales, and predicts
eps = (z - a m) / s, the exact noise of a distribution that is all at m. A sample then ends at the same combination of
the m that the guidance made of the predictions. B rows, D points.
"""

from dataclasses import replace

import torch
from diffusers import DDIMScheduler

from bench.contracts import CONTEXT, Backbone, Text
from bench.sampling.sampler import Request, Sampler, Shot, denoise

POINTS = 64


class AnalyticBackbone(Backbone):
    name, resolution, train_timesteps, latent_shape = "analytic", 8, 1000, (1, 1, POINTS)
    device, dtype = torch.device("cpu"), torch.float64

    def __init__(self):
        self.labels = []  # (kind, what), one for each point in use
        self.ddim = DDIMScheduler(clip_sample=False)

    def point(self, *label):
        """The unit vector (D,) of a prompt, a shown image or an adapter."""
        if label not in self.labels:
            self.labels.append(label)
        return torch.eye(POINTS, dtype=self.dtype)[self.labels.index(label)]

    def drawing(self, text):
        """It takes reference images and pays no attention to them."""
        return replace(text, images={name: value for name, value in text.images.items() if name != CONTEXT})

    def embed(self, prompts):
        return Text(torch.stack([self.point("prompt", prompt) for prompt in prompts])[:, None], prompts=tuple(prompts))

    def noise_of(self, z, t, m):
        """The noise in z (B, 1, 1, D) at timesteps t (B,) when all there is lies at m (B, D)."""
        kept = self.ddim.alphas_cumprod.to(z)[t.long()].view(-1, 1, 1, 1)
        return (z - kept.sqrt() * m[:, None, None]) / (1 - kept).sqrt()

    def scheduler(self, name, steps):
        scheduler = DDIMScheduler.from_config(self.ddim.config)
        scheduler.set_timesteps(steps)
        return scheduler

    def encode(self, images):
        """Every picture is at the origin."""
        z = torch.zeros(len(images), *self.latent_shape, dtype=self.dtype)
        return z, torch.zeros_like(z)

    def decode(self, z):
        raise NotImplementedError

    noisy = target = predict = sites = decode


class AnalyticBank:
    """Answers asks as `bench.adapters.Bank` does, with the points of the adapters in place of weights."""

    def __init__(self, backbone):
        self.backbone = backbone

    def answer(self, asks):
        return [self.backbone.noise_of(ask.z, ask.t, self._asked(ask)) for _, ask in asks]

    def _asked(self, ask):
        m = ask.text.states[:, 0].clone()
        for name, scale in ask.adapters.items():
            scale = scale.mean(1) if isinstance(scale, torch.Tensor) and scale.dim() == 2 else scale  # of the ranks
            scales = scale.to(m) if isinstance(scale, torch.Tensor) else torch.full((len(m),), float(scale)).to(m)
            m += scales[:, None] * self.backbone.point("adapter", name)
            if name in ask.text.images:
                shown = [self.backbone.point("image", row.numpy().tobytes()) for row in ask.text.images[name]]
                m += scales[:, None] * torch.stack(shown)
        return m


def shares(method, dataset, cfg, strength):
    """Where one sample ends, as {(kind, what): share}; shares below 1e-9 are left out."""
    backbone, sampler = AnalyticBackbone(), Sampler(steps=4, cfg=cfg, start_t=1000)
    shot = Shot(0, dataset.prompts[0], 0)
    z = shot.noise(backbone.latent_shape).double()[None]
    scheduler = backbone.scheduler(sampler.scheduler, sampler.steps)
    parts = [(Request(0, method, dataset, [shot], strength), [shot])]
    with torch.no_grad():
        z = denoise(AnalyticBank(backbone), parts, sampler, scheduler, z, scheduler.timesteps)
    found = zip(backbone.labels, z.flatten().tolist(), strict=False)
    return {label: share for label, share in found if abs(share) > 1e-9}
