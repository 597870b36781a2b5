"""Datasets of drawings: roles share no thing, prompts are known to the base, the truth is the artist's own drawing."""

import numpy as np
import pytest

from bench.data import emoji
from bench.mini import drawings, pictures
from bench.mini.drawings import HELD_OUT_SETS, WORLD_SETS


def test_no_thing_serves_two_roles():
    dealt = emoji.split()
    roles = [*dealt.evaluation, *dealt.tuning, *dealt.references, *dealt.pairs]
    assert len(roles) == len(set(roles)) == 24 + 12 + 20 + 4
    assert set(roles) <= set(drawings.known_things())


@pytest.mark.parametrize("artist", HELD_OUT_SETS)
def test_every_role_is_drawn_by_every_artist(artist):
    dealt, sheet = emoji.split(), drawings.sheet(artist)
    roles = {*dealt.evaluation, *dealt.tuning, *dealt.references, *dealt.pairs}
    assert all(thing in sheet for thing in roles)
    compared = emoji.reference_things(artist, 512)
    assert not set(compared) & roles and 200 <= len(compared) <= 512
    assert len(compared) == min(512, len(sheet.index) - len(roles))


@pytest.mark.parametrize("near", WORLD_SETS)
def test_auxiliary_drawings_are_of_other_things(near):
    dealt, others = emoji.split(), emoji.auxiliary_things(near)
    assert len(others) >= 20 and not set(others) & {*dealt.evaluation, *dealt.references, *dealt.pairs, *dealt.tuning}


def test_prompts_are_the_captions_of_the_world():
    written = emoji.prompts()
    assert len(written) == len(set(written)) == 24
    for prompt, thing in zip(written, emoji.split().evaluation, strict=True):
        assert prompt.startswith(pictures.noun(thing)) and emoji.background(thing, "evaluation").words in prompt
    assert not set(written) & set(emoji.prompts("tuning"))


def test_the_truth_stands_at_every_placement_on_the_prompts_background():
    found = emoji.truth("openmoji", 3, 64)
    assert found.shape == (27, 3, 64, 64) and found.dtype == np.uint8
    assert len({candidate.tobytes() for candidate in found}) == 27
    thing = emoji.split().evaluation[3]
    middle = emoji.image(emoji.picture(thing, "openmoji", "evaluation"), 64)
    assert any((candidate == middle).all() for candidate in found)
    assert emoji.truth("openmoji", 3, 128).shape == (27, 3, 128, 128)


def test_a_pair_is_one_thing_by_two_artists_at_one_place():
    plain, drawn = (emoji.picture("penguin", artist, "pairs") for artist in ("fluent-emoji", "fluent-emoji-flat"))
    assert plain.placed == drawn.placed and plain.background == drawn.background
    (image, caption, noun), *_ = emoji.examples(["penguin"], "fluent-emoji-flat", "pairs", 64)
    assert image.shape == (3, 64, 64) and caption == "a penguin on a white background" and noun == "penguin"
