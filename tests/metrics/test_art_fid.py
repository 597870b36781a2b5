"""ArtFID is the product of its two parts, which other metrics have."""

import numpy as np
import pytest

from bench.contracts import Impossible
from metrics.art_fid import ArtFid
from metrics.fid import Fid
from metrics.lpips_leakage import LpipsLeakage


def test_it_is_the_product_of_content_and_style(evaluation, clip, alex):
    case = evaluation(prompts=[f"prompt {row}" for row in range(8)])
    fid, content = Fid(clip).score(case).values["fid"], LpipsLeakage(alex).score(case).values["lpips_content"]
    score = ArtFid(clip, alex).score(case)
    assert score.values["art_fid"] == pytest.approx((1 + content) * (1 + fid), rel=1e-6)
    assert score.fingerprint["publishable"] is False
    np.testing.assert_allclose(score.per_prompt["art_fid"].mean(), score.values["art_fid"], rtol=1e-6)


def test_images_of_the_backbone_itself_have_the_style_part_alone(evaluation, clip, alex):
    plain = evaluation()
    case = evaluation(images=plain.baseline)
    assert ArtFid(clip, alex).score(case).values["art_fid"] == pytest.approx(1 + Fid(clip).score(case).values["fid"])


def test_without_a_reference_set_there_is_none(evaluation, clip, alex):
    from metric_cases import dataset

    with pytest.raises(Impossible, match="ArtFID needs a reference set"):
        ArtFid(clip, alex).score(evaluation(dataset=dataset(reference_set=None)))
