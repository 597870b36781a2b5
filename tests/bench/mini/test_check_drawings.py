"""The check of a base trained on drawings: what is requested, how answers are counted, which way a bar points."""

from bench.mini import check_drawings, drawings


def test_seen_and_unseen_combinations_divide_what_the_world_knows():
    seen, unseen = (set(check_drawings.combinations(flag)) for flag in (False, True))
    assert not seen & unseen and 0.05 < len(unseen) / len(seen | unseen) < 0.2
    assert all(artist != drawings.PLAIN_SET for _, artist in unseen)
    assert {thing for thing, _ in unseen} <= {thing for thing, _ in seen}  # known by the plain artist at least


def test_requests_are_distinct_combinations_of_their_kind():
    asked = check_drawings.requested(True, 50, 0)
    assert len({(p.thing, p.artist) for p in asked}) == 50
    assert all(drawings.combination_held_out(p.thing, p.artist) for p in asked)


def test_shares_are_counted_by_question():
    asked = check_drawings.requested(False, 4, 0)
    said = {"thing": [p.thing for p in asked], "artist": [p.artist for p in asked[:3]] + ["nobody"],
            "background": ["?"] * 2 + [p.background.label for p in asked[2:]]}  # fmt: skip
    assert check_drawings.right(said, asked) == {"thing": 1.0, "artist": 0.75, "background": 0.5}


def test_a_bar_of_time_or_size_is_met_from_above():
    assert check_drawings.met("load_s", 1.9) and not check_drawings.met("bundle_mb", 48.1)
    assert check_drawings.met("decoder_db", 30.0) and not check_drawings.met("thing", 0.89)
