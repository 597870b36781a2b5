"""Report and study in a real browser: they render, sort, filter, open an image, and never complain."""

import json
import re

import pytest
from browser import chromium, opened
from claim_records import answers, claim
from report_records import METHODS, NASTY, PROMPTS, STRENGTHS, STYLES, study_of

from bench.report.figures import front, panels
from bench.report.page import Wishes, build, gathered
from bench.study.make import Wishes as Study
from bench.study.make import make


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return gathered(Wishes(study_of(tmp_path_factory.mktemp("page") / "results"), metric="quality"))


@pytest.fixture(scope="module")
def file(found, tmp_path_factory):
    path = tmp_path_factory.mktemp("html") / "page.html"
    path.write_text(build(found).html, encoding="utf-8")
    return path


def column(page, name):
    """The texts of a column of the results table, without intervals."""
    heads = page.locator("#results-table thead th button").all_inner_texts()
    place = next(k for k, text in enumerate(heads) if re.sub(r"[^\w ]", "", text).strip() == name)
    cells = page.locator("#results-table tbody tr").evaluate_all(
        "(rows, k) => rows.map((row) => { const cell = row.children[k].cloneNode(true);"
        "cell.querySelectorAll('small, sup').forEach((e) => e.remove()); return cell.textContent; })",
        place,
    )
    return cells


def test_the_table_sorts_both_ways_and_filters(browser, file, found):
    with opened(browser, file) as page:
        page.get_by_label("all metrics and costs").check()
        page.get_by_label("every strength").check()
        rows = len(METHODS) * len(STYLES) * len(STRENGTHS)
        press = page.get_by_role("button", name=re.compile("quality"))
        press.first.click()
        down = [float(text) for text in column(page, "quality") if text]
        assert len(down) == rows and down == sorted(down, reverse=True)  # the best first
        assert page.locator("#results-table th[aria-sort=descending]").count() == 1
        page.keyboard.press("Enter")  # the focus stays on the heading
        up = [float(text) for text in column(page, "quality") if text]
        assert up == sorted(down) and column(page, "quality")[-1] == ""  # without numbers: last both ways
        page.fill("#results-controls input[type=search]", "gamma dots")
        assert set(column(page, "method")) == {"gamma<i>"} and set(column(page, "dataset")) == {"dots"}
        assert len(column(page, "method")) == len(STRENGTHS)
        page.fill("#results-controls input[type=search]", "")
        page.get_by_label("dataset", exact=True).first.select_option(STYLES[1])
        assert set(column(page, "dataset")) == {STYLES[1]} and len(column(page, "dataset")) == len(METHODS) * 3
        assert "filtered out" in page.inner_text("#results-more")


def test_an_image_opens_beside_its_training_pair_and_another_method(browser, file):
    with opened(browser, file) as page:
        page.locator("#gallery button.shot").nth(1).click()
        viewer = page.locator("#viewer")
        assert viewer.is_visible() and page.inner_text("#viewer-title") == f"{PROMPTS[0]} (seed 1)"
        images = viewer.locator("img")
        assert images.count() == 3  # the image, and the pair
        assert images.evaluate_all("all => all.every((i) => i.complete && i.naturalWidth > 0)")
        page.locator("#viewer select").select_option(index=4)
        assert images.count() == 4
        before = page.inner_text("#viewer-title")
        page.locator("#viewer-close").focus()
        page.keyboard.press("ArrowRight")
        assert page.inner_text("#viewer-title") == f"{NASTY} (seed 0)" != before
        page.keyboard.press("Escape")
        assert not viewer.is_visible()


def test_galleries_show_the_rules_columns_and_load_images_when_they_are_seen(browser, file, found):
    gallery = found.galleries[0]
    with opened(browser, file) as page:
        page.locator("#gallery").scroll_into_view_if_needed()
        page.locator("#gallery img[src] >> nth=11").wait_for()
        for part, shots in gallery.picks().items():
            page.locator(f"#galleries button[data-part={part}]").click()
            heads = page.locator("#gallery thead th").all_inner_texts()
            assert heads == [f"{gallery.prompt(i)} (seed {s})" for i, s in shots]
        page.get_by_label(re.compile("every row")).check()
        assert page.locator("#gallery tbody tr").count() == len(gallery.rows)
        alts = page.locator("#gallery img").evaluate_all("all => all.map((i) => i.alt)")
        assert len(alts) == 2 * len(gallery.rows) and all("seed" in alt for alt in alts)
        page.wait_for_timeout(300)
        assert 0 < page.locator("#gallery img[src]").count() < len(alts)  # the others are below the fold


def test_what_is_exploratory_is_one_click_away(browser, file):
    with opened(browser, file, unfold=False) as page:
        order = page.locator("main > section").evaluate_all("all => all.map((s) => s.id)")
        assert order[:2] == ["galleries", "results"]  # there is no claim here
        assert page.locator("#galleries, #results").locator(":scope > details:not(.rule)").count() == 0
        for name in ("comparisons", "sweeps", "fronts", "failures", "cells", "about"):
            assert not page.locator(f"#{name} > details > :not(summary)").first.is_visible()
            page.locator(f"nav a[href='#{name}']").click()
            assert page.locator(f"#{name} > details > :not(summary)").first.is_visible()


def test_the_table_begins_with_default_strengths(browser, file):
    with opened(browser, file) as page:
        assert set(column(page, "strength")) == {"2", ""}  # failed cells have none
        page.get_by_label("every strength").check()
        assert {float(text) for text in column(page, "strength") if text} == set(STRENGTHS)


@pytest.mark.parametrize("width", [390, 900, 1400])
def test_the_first_metric_is_visible_and_nothing_but_tables_scrolls_sideways(browser, file, width):
    with opened(browser, file) as page:
        page.set_viewport_size({"width": width, "height": 900})
        box = page.locator("#results-table tbody td.number:not(.word)").first.bounding_box()
        assert 0 <= box["x"] and box["x"] + box["width"] <= width
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_claims_open_the_page_and_each_has_a_chart(browser, found, tmp_path):
    root = study_of(tmp_path / "results", seeds=(0, 1, 2), styles=STYLES[:1])
    here = gathered(Wishes(root, metric="quality"))
    claims = [claim("q", b="beta", margin=0.1), claim("n", a="nobody", b="beta")]
    vars(here)["claims"] = answers(root, *claims)
    path = tmp_path / "page.html"
    path.write_text(build(here).html, encoding="utf-8")
    with opened(browser, path, unfold=False) as page:
        order = page.locator("main > section").evaluate_all("all => all.map((s) => s.id)")
        assert order[:4] == ["claims", "galleries", "charts", "results"]
        assert page.locator("#claims .status").all_inner_texts() == ["shown", "not shown"]
        assert page.locator("#charts figure").count() == 2 and page.locator("#charts svg").count() == 1
        assert "no finished cell of A" in page.inner_text("#charts")


def test_the_front_on_the_page_is_the_front_of_the_figures(browser, file, found):
    columns = {c["name"]: c for c in found.content["columns"]}
    made = panels(found.content["rows"], columns["train_s"]["key"], columns["quality"]["key"])
    with opened(browser, file) as page:
        page.get_by_label("Across").select_option("train_s")
        page.get_by_label("Up").select_option("quality [net]")
        for k, series in enumerate(made.values()):
            best = {(m, p.strength) for m, points in series.items() for p in points
                    if p in front([q for some in series.values() for q in some], False, True)}  # fmt: skip
            marks = page.locator("#fronts-panels figure").nth(k).locator(".mark.front")
            assert (
                set(map(tuple, marks.evaluate_all("all => all.map((m) => [m.dataset.series, +m.dataset.strength])")))
                == best
            )
        page.locator("#curves-controls select").select_option("quality [net]")
        assert page.locator("#curves-panels .mark").count() == len(METHODS) * len(STYLES) * len(STRENGTHS)


def test_hostile_names_stay_text_and_details_give_command_and_provenance(browser, file):
    with opened(browser, file) as page:
        page.fill("#cells-controls input", "alpha")
        page.locator("#cells-table button.open").first.click()
        details = page.inner_text("#cells-table .details:not([hidden])")
        assert "python -m bench method=alpha" in details and "abc123" in details and NASTY in details
        page.locator("#failures li summary").first.click()
        assert NASTY in page.inner_text("#failures pre >> nth=0") and "mode=retry" in page.inner_text("#failures")
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("document.querySelectorAll('th i, td i, th b').length") == 0


CONTRAST = """() => {
  const light = (colour) => {
    const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = colour.match(/[\\d.]+/g).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const texts = "section > p, td, th, a, .status, dt, small, label";
  return [...document.querySelectorAll(texts)].map((e) => {
    const ink = light(getComputedStyle(e).color);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  });
}"""


def test_both_themes_and_narrow_windows(browser, file):
    """Text on its ground has a contrast of at least 4.5, and only the tables scroll sideways."""
    with opened(browser, file) as page:
        grounds = []
        for theme in ("light", "dark"):
            page.select_option("#theme", theme)
            grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert min(page.evaluate(CONTRAST)) >= 4.5
        assert grounds[0] != grounds[1]
        page.set_viewport_size({"width": 700, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= 700
        page.set_viewport_size({"width": 1400, "height": 900})


# --- the study


@pytest.fixture(scope="module")
def study(found, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return make(Study(found.wishes.root, trials=6, checks=2, repeats=1), folder)


def test_a_study_is_answered_with_keys_and_saved(browser, study):
    page_file, key_file = study
    trials = json.loads(key_file.read_text())["trials"]
    with opened(browser, page_file) as page:
        page.fill("#rater", "anna")
        page.click("#begin")
        ids = {name: k for k, name in enumerate(trials)}
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("Backspace")  # changed her mind
        for _ in range(len(trials)):
            assert page.locator(".pair img").evaluate_all(
                "all => all.every((i) => i.src.startsWith('data:image/webp'))"
            )
            page.keyboard.press("ArrowRight")
        with page.expect_download() as download:
            page.click("#save")
        result = json.loads(download.value.path().read_text())
        assert result["rater"] == "anna" and {a["trial"] for a in result["answers"]} == set(ids)
        assert {a["choice"] for a in result["answers"]} == {"right"}
        assert [a["trial"] for a in result["answers"]] != list(ids)  # each rater has an order of their own


def test_a_study_goes_on_where_it_stopped(browser, study):
    with opened(browser, study[0]) as page:
        page.evaluate("localStorage.clear()")
        page.click("#begin")
        page.click("#left")
        page.click("#none")
        shown = page.inner_text("#prompt")
    with opened(browser, study[0]) as page:
        page.click("#resume")
        assert page.inner_text("#progress") == "3 of 9" and page.inner_text("#prompt") == shown


@pytest.mark.slow
def test_ten_thousand_images(browser, tmp_path):
    """Without a limit they are all there and only those in sight are loaded; with one the page is small."""
    prompts = [f"a photo of thing {k}" for k in range(139)]
    root = study_of(tmp_path / "r", seeds=(0, 1), prompts=prompts, image_seeds=(0, 1), side=16)
    found = gathered(Wishes(root, max_mb=100, metric="quality"))
    page = build(found)
    assert page.shown == 3 * 2 * 2 * 3 * 139 * 2 == 10_008 and page.left_out == 0
    path = tmp_path / "page.html"
    path.write_text(page.html)
    with opened(browser, path) as shown:
        shown.locator("#galleries button[data-part=all]").click()
        for _ in range(23):
            shown.get_by_role("button", name="Later").click()
        assert "thing 138 (seed 1)" in shown.locator("#gallery thead th").last.inner_text()
        shown.locator("#gallery button.shot").last.click()
        assert shown.locator("#viewer img").count() == 3
        assert shown.locator("#gallery img").count() < 200
    small = build(gathered(Wishes(root, max_mb=2, metric="quality")))
    assert len(small.html.encode()) <= 2e6 and small.left_out > 0
