"""The artists' drawings and the world composed of them: what is held out stays out, captions say what is drawn."""

import numpy as np
import pytest

from bench.mini import drawings, pictures
from bench.mini.drawings import HELD_OUT_SETS, PLAIN_SET, WORLD_SETS, sheet, things
from bench.mini.recipe import world

ALL_SETS = (*WORLD_SETS, *HELD_OUT_SETS)


@pytest.mark.parametrize("name", ALL_SETS)
def test_a_sheet_holds_a_drawing_of_each_listed_thing_and_names_its_licence(name):
    found = sheet(name)
    assert set(found.index) <= set(things()) and len(found.index) > 250
    assert found.licence in {"MIT", "Apache-2.0", "CC-BY-4.0", "CC-BY-SA-4.0"} and found.author
    for thing in found.index:
        drawn = found.drawing(thing)
        assert drawn.shape == (128, 128, 4) and (drawn[..., 3] > 128).mean() > 0.005, thing


def test_share_alike_sheets_are_never_in_pretraining():
    assert not [name for name in WORLD_SETS if sheet(name).licence == "CC-BY-SA-4.0"]
    assert not set(WORLD_SETS) & set(HELD_OUT_SETS)


def test_at_least_sixty_known_things_lie_in_every_sheet():
    everywhere = [name for name in drawings.known_things() if all(name in sheet(artist) for artist in ALL_SETS)]
    assert len(everywhere) >= 60


def _box(artist, thing):
    """Top, bottom, left and right of a drawing, in 64ths."""
    inside = drawings.scaled(artist, thing, 64)[..., 3] > 0.5
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    return np.array([rows[0], rows[-1], columns[0], columns[-1]])


def test_aligned_sets_lie_where_the_plain_set_lies():
    def distance(artist):
        names = [name for name in drawings.known_things() if name in sheet(artist)]
        return np.median([np.abs(_box(PLAIN_SET, name) - _box(artist, name)).mean() for name in names])

    found = {artist: distance(artist) for artist in ALL_SETS if artist != PLAIN_SET}
    aligned = [found.pop(artist) for artist in drawings.ALIGNED]
    assert max(aligned) <= 1.5 < min(found.values()), (aligned, found)


def test_what_is_held_out_is_never_drawn_for_the_base():
    rng = np.random.default_rng(0)
    drawn = [world.sample_base(rng) for _ in range(3000)]
    assert {picture.artist for picture in drawn} == set(WORLD_SETS)
    for picture in drawn:
        for placed in picture.placed:
            assert not drawings.held_out(placed.thing)
            assert not drawings.combination_held_out(placed.thing, picture.artist)
    shares = [np.mean([drawings.combination_held_out(name, artist) for name in things()]) for artist in WORLD_SETS[1:]]
    assert 0.1 < min(shares) and max(shares) < 0.2
    known = len(drawings.known_things()) / sum(thing.world for thing in things().values())
    assert 0.8 < known < 0.9


def test_readers_are_tested_on_drawings_that_they_are_not_trained_on():
    for artist in ALL_SETS:
        trained, tested = (set(world.reader_things(artist, which)) for which in (False, True))
        assert not trained & tested and len(tested) > 5


def test_a_picture_decides_its_pixels_and_captions_name_what_is_drawn():
    rng = np.random.default_rng(5)
    for _ in range(20):
        picture = world.sample_judges(rng)
        np.testing.assert_array_equal(pictures.render(picture), pictures.render(picture))
        assert pictures.render(picture).shape == (64, 64, 3)
        text = pictures.styled_caption(picture)
        assert all(things()[placed.thing].words in text for placed in picture.placed)
        assert picture.background.words in text


def test_every_background_has_a_label_and_looks_like_no_other():
    kinds = [(name.split() + [None])[:2] for name in pictures.BACKGROUNDS]
    drawn = [pictures.draw_background(pictures.Background(kind, colour, 1), 64) for kind, colour in kinds]
    assert len({picture.tobytes() for picture in drawn}) == len(pictures.BACKGROUNDS)
    assert [pictures.Background(kind, colour).label for kind, colour in kinds] == list(pictures.BACKGROUNDS)


def test_a_picture_by_another_artist_differs_in_the_drawing_alone():
    picture = pictures.Picture((pictures.centred("dog", 30),), PLAIN_SET, pictures.Background("plain", "blue"))
    ours, other = (pictures.render(p).astype(int) for p in (picture, picture.by("openmoji")))
    changed = np.abs(ours - other).max(-1) > 0
    assert changed.any() and not changed[:16].any() and not changed[:, :16].any()


def test_larger_pictures_show_the_same():
    picture = world.sample_base(np.random.default_rng(11))
    small, large = pictures.render(picture).astype(float), pictures.render(picture, 128).astype(float)
    shrunk = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(shrunk - small).mean() < 6
