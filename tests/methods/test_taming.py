"""The reconstruction of joint training: whom it sees, what it drops, what its loss is made of."""

import pytest
import torch
from tiny import TinyBackbone, picture, tiny_dataset
from torch.nn.functional import mse_loss

from bench.adapters.bank import Bank
from bench.adapters.image_encoder import ImageEncoder
from bench.contracts import Ask, Example, Loss, Recipe
from bench.sampling.sampler import Request, Sampler, Untouched, sample, shots
from bench.seeding import generator
from bench.training.latents import Latents
from methods.taming import TamingStyle, clean

RECIPE = Recipe(steps=2, lr=1e-3, batch_size=2)
REFERENCES = tuple(Example(picture(seed), f"a photo of a dog {seed}", "dog") for seed in range(3))
OWN = [Example(picture(9), "a photo of a dog", "dog")]


@pytest.fixture(scope="module")
def clip():
    return ImageEncoder("bench/mini/weights/clip")


def taming(clip, **changes):
    return TamingStyle(clip, **{"recipe": RECIPE, "rank": 3, **changes})


def data_of(backbone):
    return Latents(tiny_dataset(references=REFERENCES), backbone, RECIPE, OWN)


def said(backbone, method, k=0):
    """One step: its ask, the answer, its loss."""
    bank = Bank(backbone, method.adapters(tiny_dataset()), [generator("adapters")])
    bank.theta["style"].normal_(generator=generator("fill")).mul_(0.1)
    step = method.step(data_of(backbone), k, generator("step", k))
    ask = next(step)
    answer = bank.answer([(0, ask)])[0]
    loss = step.send(answer)
    bank.close()
    assert isinstance(ask, Ask) and isinstance(loss, Loss)
    return ask, answer.detach(), loss.value.detach()


def test_it_draws_one_reference_and_sees_another(clip):
    backbone, method = TinyBackbone(), taming(clip, drop=0.0)
    features = clip([example.image for example in REFERENCES])
    captions = [backbone.embed([example.caption]).states[0] for example in REFERENCES]
    seen = set()
    for k in range(6):
        ask, _, _ = said(backbone, method, k)
        for row in range(2):
            (drawn,) = [i for i, states in enumerate(captions) if torch.equal(states, ask.text.states[row])]
            (shown,) = [i for i, f in enumerate(features) if torch.equal(f, ask.text.images["image"][row])]
            seen.add((drawn, shown))
        assert (ask.text.images["image"][2:] == 0).all()  # general pictures are never seen
    assert seen <= {(a, b) for a in range(3) for b in range(3) if a != b} and len(seen) > 3


def test_dropping_shows_nothing(clip):
    ask, _, _ = said(TinyBackbone(), taming(clip, drop=1.0))
    assert (ask.text.images["image"] == 0).all() and ask.trains == {"image", "style"}


def test_the_loss_is_the_sum_of_its_parts(clip):
    """Each part again, from the same draws: two mean squared errors and alpha-bar (1 - cosine) of decoded estimates."""
    backbone = TinyBackbone()
    method = taming(clip, drop=0.0, general_weight=0.3, identity=0.7)
    ask, answer, loss = said(backbone, method)
    data, rng = data_of(backbone), generator("step", 0)
    (z,), examples = data.draw(("references",), rng)
    (own,), _ = data.draw(("prior",), rng)
    (eps, t), (own_eps, _) = data.noise(z, rng), data.noise(own, rng)
    kept = backbone.ddim.alphas_cumprod[t]
    total = mse_loss(answer[:2], eps) + 0.3 * mse_loss(answer[2:], own_eps)
    for i in range(2):
        z0 = (ask.z[i] - (1 - kept[i]).sqrt() * answer[i]) / kept[i].sqrt()
        phi = clip.of_pixels(backbone.pixels(z0[None]))[0]
        shown = ask.text.images["image"][i]
        total = total + 0.7 * kept[i] * (1 - phi @ shown / phi.norm() / shown.norm()) / 2
    torch.testing.assert_close(loss, total, rtol=0, atol=1e-5)


@pytest.mark.parametrize("velocity", [False, True])
def test_the_clean_estimate_is_exact_for_exact_predictions(velocity):
    backbone = TinyBackbone(torch.float64)
    if velocity:

        def target(z, eps, t):
            kept = backbone.ddim.alphas_cumprod.to(z)[t].view(-1, 1, 1, 1)
            return kept.sqrt() * eps - (1 - kept).sqrt() * z

        backbone.target = target
    data = data_of(backbone)
    z, eps = (torch.randn(3, 4, 8, 8, generator=generator(x)).double() for x in "ze")
    t = torch.tensor([3, 400, 900])
    z0, kept = clean(data, data.noisy(z, eps, t), data.target(z, eps, t), t)
    torch.testing.assert_close(z0, z, rtol=0, atol=1e-9)
    torch.testing.assert_close(kept, backbone.ddim.alphas_cumprod.double()[t])


def test_scale_zero_is_the_backbone_and_one_reference_is_not_enough(clip):
    backbone, method, data = TinyBackbone(), taming(clip), tiny_dataset(references=REFERENCES)
    bank = Bank(backbone, method.adapters(data), [generator("adapters")])
    bank.theta["style"].normal_(generator=generator("fill"))
    drawn = [
        next(sample(bank, [Request(0, m, data, shots(data), strength)], Sampler(steps=3, cfg=3.0)))[0]
        for m, strength in ((Untouched(), 0.0), (method, 0.0), (method, 1.0))
    ]
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).any()
    assert "two references" in method.lacks(tiny_dataset(references=REFERENCES[:1]))
    assert any("reconstruction" in note for note in method.notes)
