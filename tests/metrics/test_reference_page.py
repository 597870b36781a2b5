"""docs/metrics.md is what the metric classes say, and it leaves nothing out."""

import yaml

from bench.analysis import frames
from metrics import reference_page
from metrics.reference_page import PAGE, leaves, page, sets


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == page(), "type python -m metrics.reference_page"


def test_every_number_of_every_metric_is_described_in_full():
    assert len(leaves()) > 20
    for kind in leaves():
        assert set(kind.quantities) == set(kind.higher_is_better), kind
        for id, quantity in kind.quantities.items():
            assert all([quantity.name, quantity.formula, quantity.range, quantity.source, quantity.unit]), id


def test_every_metric_of_every_set_is_on_the_page():
    described = {f"{kind.__module__}.{kind.__name__}" for kind in leaves()}
    assert set(sets()) - described == {"metrics.unmeasured.Unmeasured"}


def test_every_headline_metric_and_cost_is_on_the_page():
    headline = yaml.safe_load((reference_page.CONF / "table.yaml").read_text())["headline"]
    described = {id for kind in leaves() for id in kind.quantities} | set(reference_page.COSTS)
    assert set(headline) <= described
    assert list(reference_page.COSTS) == frames.COST


def test_a_value_that_is_better_low_says_lower():
    rows = {line.split("`")[1]: line.split(" | ") for line in page().splitlines() if line.startswith("| `")}
    assert rows["kid"][4].startswith("lower") and rows["clip_t"][4] == "higher"
    assert "not a score" in rows["kid_se"][4] and "lower" not in rows["fid_null"][4]
