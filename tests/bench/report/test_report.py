"""The report's data against the records: choice of images, escaping, the page's limit, commands, figures, W&B."""

import base64
import csv
import hashlib
import io
import json
import random
import re
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image
from report_records import METHODS, NASTY, PROMPTS, STRENGTHS, STYLES, TRUTH, study_of

from bench.analysis import frames
from bench.compose import cell, register_datasets
from bench.contracts import BenchError
from bench.paths import CONF
from bench.report.__main__ import main
from bench.report.command import command, value
from bench.report.figures import Point, cliques, figures, front, panels, ranked, write
from bench.report.gallery import galleries
from bench.report.gather import package_differences
from bench.report.page import Wishes, build, gathered, settings
from bench.report.publish import publish
from bench.report.size import least_bytes
from bench.report.thumbnails import wanted
from bench.steps.work import Work
from bench.store.record import Record, Store
from bench.track import Tracker


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return study_of(tmp_path_factory.mktemp("report") / "results")


@pytest.fixture(scope="module")
def found(results):
    return gathered(Wishes(results, metric="quality"))


@pytest.fixture(scope="module")
def page(found):
    return build(found)


class Scripts(HTMLParser):
    """The script elements of a page as a browser's parser finds them, and all other text."""

    def __init__(self, html):
        super().__init__()
        self.scripts, self.inside, self.tags, self.text = [], None, [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self.inside = [dict(attributes), ""]

    def handle_endtag(self, tag):
        if tag == "script" and self.inside:
            self.scripts.append(tuple(self.inside))
            self.inside = None

    def handle_data(self, data):
        if self.inside:
            self.inside[1] += data
        else:
            self.text += data


def data_of(page):
    parsed = Scripts(page.html)
    return json.loads(next(text for attributes, text in parsed.scripts if attributes.get("id") == "data"))


# --- the page


def test_nothing_of_a_record_becomes_markup(page, found):
    parsed = Scripts(page.html)
    code = [text for attributes, text in parsed.scripts if "type" not in attributes]
    assert len(code) == 1 and "hacked" not in code[0]
    kinds = [attributes.get("type") for attributes, _ in parsed.scripts]
    assert kinds == ["application/json"] * (1 + len(found.galleries)) + [None]
    assert "i" not in {tag for tag, _ in parsed.tags}  # of gamma<i>
    assert f"the loss was NaN {NASTY}" in parsed.text and f"ValueError: {NASTY}" in parsed.text
    assert data_of(page)["galleries"][0]["prompts"] == PROMPTS


def test_only_the_pages_own_script_may_run_and_nothing_is_fetched(page):
    parsed = Scripts(page.html)
    policy = next(a["content"] for _, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy")
    code = next(text for attributes, text in parsed.scripts if "type" not in attributes)
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'; img-src data:;")
    assert not [a for _, a in parsed.tags if {"src", "href"} & set(a) and not a.get("href", "").startswith("#")]


def test_the_numbers_are_those_of_the_table(page, found):
    rows = {(r["method"], r["dataset"], r["strength"]): r for r in data_of(page)["rows"] if r["status"] == "done"}
    assert len(rows) == len(METHODS) * len(STYLES) * len(STRENGTHS)
    assert [r["n"] for r in data_of(page)["rows"] if r["status"] != "done"] == [1, 1]
    for (method, style, strength), row in rows.items():
        values = [
            score["value"] for record in found.records for score in record.scores
            if record.config["method"]["name"] == method and record.config["dataset"]["name"] == style
            and score["strength"] == strength and score["metric"] == "quality"
        ]  # fmt: skip
        assert row["n"] == len(values) == 2
        assert row["v"]["quality [net]"][0] == pytest.approx(np.mean(values), rel=1e-4)


def test_settings_of_one_method_are_told_apart_in_words(found):
    record = next(record for record in found.records if record.status == "done")
    ranks = [{**record.config, "method": {**record.config["method"], "rank": rank}} for rank in (4, 8)]
    records = [replace(record, run_id=f"{record.run_id}-{k}", config=config) for k, config in enumerate(ranks)]
    two = replace(found, records=records, lines=frames.frame(records))
    assert {row["settings"] for row in two.drawn["rows"]} == {"rank=4", "rank=8"}
    assert {row["settings"] for row in found.drawn["rows"]} == {""}  # nothing to tell apart


def test_the_page_compares_methods_as_the_table_does(results, monkeypatch):
    """Closed form: quality falls by 0.5 from alpha to beta to gamma<i> at each strength; leak is `quality` and knob."""
    own = {**settings(), "compare": [["quality", None], ["quality", "leak"], ["no such metric", None]]}
    monkeypatch.setattr("bench.report.page.settings", lambda: own)
    found = gathered(Wishes(results, metric="quality"))
    (plain, frame, _), (matched, at, _) = found.comparisons
    assert (plain, matched) == ("quality [net]", "quality [net] at matched leak [net]")
    pairs = {(r.dataset, r.a, r.b): r for r in frame.itertuples()}
    assert set(pairs) == {(d, a, b) for d in (*STYLES, "all 2") for a, b in combinations(METHODS, 2)}
    for (_, a, b), row in pairs.items():
        assert row.difference == pytest.approx(TRUTH[a] - TRUTH[b], abs=0.06) and row.verdict != "worse"
    answered = at[at.verdict != "absent"]
    assert len(at) == 6 * len(STYLES) + 6 and len(answered)
    for row in answered.itertuples():  # leak is 0.1 strength + 0.2 truth: at the other's leak one is at 1 or at 3
        assert row.difference == pytest.approx(0.3 if TRUTH[row.a] > TRUTH[row.b] else -0.7, abs=0.06)
    parsed = Scripts(build(found).html)
    assert "i" not in {tag for tag, _ in parsed.tags} and "gamma<i>" in parsed.text
    assert parsed.text.count("Effect: ") == 2 and "inconclusive" not in parsed.text


def test_failures_carry_their_log_and_a_choice_leaves_others_out(results, found):
    failures = {cell["id"]: cell for cell in found.content["failures"]}
    assert failures["beta-failed"]["log"].startswith("error.txt\nTraceback") and "beta-skipped" in failures
    some = gathered(Wishes(results, ["method=alpha"], metric="quality"))
    assert some.content["failures"] == [] and {row["method"] for row in some.content["rows"]} == {"alpha"}


def test_unreadable_and_unfinished_cells_are_told(tmp_path):
    root = study_of(tmp_path / "r", seeds=(0,), methods=("alpha",), styles=("dots",))
    (root / "broken").mkdir()
    (root / "broken" / "record.json").write_text('{"format": 1, "cut')
    begun = root / ".work" / "running-cell"
    begun.mkdir(parents=True)
    (begun / "log.csv").write_text("step,lr,losses\n1,0.1,0.5\n")
    told = {cell["id"]: (cell["status"], cell["log"]) for cell in gathered(Wishes(root)).content["failures"]}
    assert told["broken"] == ("unreadable", "")
    assert told["running-cell"] == ("unfinished", "log.csv\nstep,lr,losses\n1,0.1,0.5")


def test_no_record_and_an_unknown_metric_are_told(results):
    with pytest.raises(BenchError, match="No record below .* meets --where method=none"):
        gathered(Wishes(results, ["method=none"]))
    with pytest.raises(BenchError, match="--gallery-metric nothing is a column of no per_image.csv"):
        gathered(Wishes(results, metric="nothing"))


# --- the rule


def naive_means(gallery):
    """(prompt index, seed) -> mean of the metric over the rule's rows, by a double loop over the files."""
    means = {}
    for index, prompt in enumerate(gallery.prompts):
        for seed in (0, 1):
            numbers = []
            for row in [row for row in gallery.rows if row.main]:
                lines = (row.folder.parents[1] / "per_image.csv").read_text().splitlines()[1:]
                for strength, text, s, quality, _leak in csv.reader(lines):
                    if float(strength) == row.strength and text == prompt and int(s) == seed:
                        numbers.append(float(quality))
            assert len(numbers) == len(METHODS)
            means[index, seed] = sum(numbers) / len(numbers)
    return means


def test_columns_follow_the_rule(found):
    for gallery in found.galleries:
        means, picks = naive_means(gallery), gallery.picks()
        shots = [(i, s) for i in range(len(PROMPTS)) for s in (0, 1)]
        assert picks["first"] == shots[:4]
        assert picks["random"] == sorted(random.Random(f"0 {gallery.dataset}").sample(shots, 4))
        order = sorted(shots, key=means.get)
        assert picks["worst"] == order[:2]
        assert picks["median"] == order[5:7]  # the middle two of twelve


def test_rows_of_the_rule_have_the_configured_strength_and_the_smallest_seed(found):
    for gallery in found.galleries:
        main = [(row.key[0], row.strength, row.seed) for row in gallery.rows if row.main]
        assert sorted(main) == [(method, 2.0, 0) for method in sorted(METHODS)]
        assert len(gallery.rows) == len(METHODS) * len(STRENGTHS) * 2


def test_each_rows_own_worst_are_its_smallest_values(found):
    gallery = found.galleries[0]
    for row in gallery.rows:
        worst = min(row.files, key=lambda shot: gallery.value(row, shot))
        assert gallery.own_worst(row)[0] == worst


def test_without_the_configured_strength_the_middle_one_is_shown(tmp_path):
    root = study_of(tmp_path / "r", seeds=(3,), methods=("alpha",), styles=("dots",), strengths=(1.0, 3.0, 4.0, 5.0))
    (gallery,) = galleries(list(Store(root).records()), root, ["quality"])
    assert [(row.strength, row.seed) for row in gallery.rows if row.main] == [(3.0, 3)]


# --- its limit


def shown_of(page):
    parsed = Scripts(page.html)
    chunks = [json.loads(t) for a, t in parsed.scripts if str(a.get("id")).startswith("images-")]
    return {(g, *map(int, key.split())): text for g, chunk in enumerate(chunks) for key, text in chunk.items()}


def test_without_a_limit_every_image_is_there_and_is_the_right_one(page, found):
    shown = shown_of(page)
    assert len(shown) == page.shown == len(METHODS) * len(STYLES) * 2 * len(STRENGTHS) * len(PROMPTS) * 2
    for g, r, c in list(shown)[::37]:
        gallery = found.galleries[g]
        stored = np.asarray(Image.open(gallery.rows[r].files[gallery.shots[c]]), dtype=float)
        small = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown[g, r, c]))), dtype=float)
        assert small.shape == stored.shape and abs(small - stored).mean() < 12


def limited(found, max_mb):
    """The same records for a page with another limit."""
    other = replace(found, wishes=replace(found.wishes, max_mb=max_mb))
    other.content = found.content
    return other


def test_a_full_page_keeps_its_limit_says_what_it_left_out_and_has_the_rules_columns_first(found, page):
    limit = (len(page.html.encode()) - sum(map(len, shown_of(page).values())) + 60_000) / 1e6
    small = build(limited(found, limit))
    assert len(small.html.encode()) <= limit * 1e6
    assert small.shown + small.left_out == page.shown and small.left_out > 0
    assert (
        f"left out {small.left_out:,}." in small.html
        and f"holds {small.shown:,} of {page.shown:,} images" in small.html
    )
    order = list(dict.fromkeys(wanted(found.galleries)))
    assert set(shown_of(small)) == set(order[: small.shown])
    main = {(g, r) for g, gallery in enumerate(found.galleries) for r, row in enumerate(gallery.rows) if row.main}
    ruled = sum(len({*sum(gallery.picks().values(), []), *gallery.own_worst(row)})
                for gallery in found.galleries for row in gallery.rows if row.main)  # fmt: skip
    assert {place[:2] for place in order[:ruled]} == main
    with pytest.raises(BenchError, match="without an image, more than --max-mb 0.01"):
        build(limited(found, 0.01))


def test_a_page_that_cannot_fit_is_refused_before_its_tables_are_made(found, page):
    known = least_bytes(found.records, found.galleries, found.datasets, found.wishes.root, found.wishes.side)
    assert 0 < known < len(page.html.encode()) - sum(map(len, shown_of(page).values()))
    other = replace(found, wishes=replace(found.wishes, max_mb=known * 0.9e-6))
    with pytest.raises(BenchError, match="without an image, more than --max-mb"):
        build(other)
    assert not {"content", "model", "comparisons"} & vars(other).keys()


def test_a_broken_image_is_told_and_the_rest_is_shown(tmp_path):
    root = study_of(tmp_path / "r", seeds=(0,), methods=("alpha",), styles=("dots",))
    next((root / "alpha-dots-s0" / "images" / "strength=2").glob("*.png")).write_bytes(b"no image")
    page = build(gathered(Wishes(root)))
    assert "1 image files could not be read, first " in page.html
    assert page.shown == len(STRENGTHS) * len(PROMPTS) * 2 - 1 and page.left_out == 0


def test_training_images_are_shown_and_a_change_is_told(tmp_path):
    root = study_of(tmp_path / "r", seeds=(0,), methods=("alpha",), styles=("dots",))
    training = gathered(Wishes(root)).content["galleries"][0]["training"]
    colours = [np.asarray(Image.open(io.BytesIO(base64.b64decode(i["data"])))).mean((0, 1)) for i in training["images"]]
    assert np.allclose(colours, [(200, 120, 40), (40, 60, 200)], atol=4) and training["reason"] == ""
    Image.new("RGB", (32, 32), "red").save(root / "photos" / "plain.png")
    assert "have changed" in gathered(Wishes(root)).content["galleries"][0]["training"]["reason"]
    (root / "photos" / "plain.png").unlink()
    assert "plain.png" in gathered(Wishes(root)).content["galleries"][0]["training"]["reason"]


# --- commands


@pytest.fixture(scope="module")
def composed():
    register_datasets()

    def made(*overrides):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return cell(compose("config", list(overrides)))

    return made


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=pair", "dataset=halftone", "seed=3", "strength=[1,2.5]"),
        ("method=dreambooth", "dataset=blueprint", "trainer.lr_scale=10", "method.rank=8", "sampler.steps=7"),
        ("method=ip_adapter", "trainer.ema=0.99", "trainer.time_ids=[64,64,0,0]", "method.negative=lowres"),
        ("dataset=dreambooth/dog", "~dataset.prompts", "+dataset.prompts={file: TABLE, column: text}"),
        ("dataset=halftone", r"dataset.prompts=['a \'quoted\' cup, {braces}','true','12',' [x]']", "dataset.seeds=[5]"),
    ],
)
def test_the_command_asks_for_the_same_cell(composed, tmp_path, overrides):
    made = composed(*overrides)
    scores = [{"strength": s, "metric": "m", "value": 1.0} for s in made.strengths]
    record = Record(made.run_id, "done", None, Work(made, tmp_path).config(), scores=scores)
    python, dash, module, *words = shlex.split(command(record))
    again = composed(*words)
    assert (python, dash, module) == ("python", "-m", "bench")
    assert again.run_id == made.run_id and again.strengths == made.strengths
    assert len(words) <= len(overrides) + 5  # what the names alone give is not repeated


def test_values_in_hydras_grammar():
    parse = __import__("hydra.core.override_parser.overrides_parser", fromlist=["x"]).OverridesParser.create()
    for plain in [
        1,
        1.5,
        True,
        None,
        "word",
        "true",
        "1e3",
        "it's",
        "a\\",
        "a\\'b",
        "[x]",
        "",
        " a ",
        ["a,b", {"k": [1]}],
    ]:
        assert parse.parse_override(f"key={value(plain)}").value() == plain, plain


def test_an_old_record_has_no_command():
    assert command(Record("x", "done", None, {"method": {"name": "m"}})) is None


# --- figures


def test_the_front_equals_a_double_loop():
    rng = np.random.default_rng(0)
    points = [Point(x, y, None, None, None, None, 1.0) for x, y in rng.integers(0, 6, (40, 2)).tolist()]
    for x_up, y_up in ((True, True), (True, False), (False, True), (False, False)):
        signed = [(p.x if x_up else -p.x, p.y if y_up else -p.y) for p in points]
        best = set()
        for i, (x, y) in enumerate(signed):
            beaten = False
            for a, b in signed:
                beaten = beaten or (a >= x and b > y) or (a > x and b >= y)
            if not beaten:
                best.add((points[i].x, points[i].y))
        assert {(p.x, p.y) for p in front(points, x_up, y_up)} == best


def test_figures_hold_the_rows_points(found):
    settings = {"sweeps": ["quality"], "fronts": [["a / b", "leak", "quality"]], "ranks": ["train_s"]}
    drawn = figures(found.content, settings)
    assert set(drawn) == {"sweep-quality", "front-a / b"}  # a cost has no ranks
    made = panels(found.content["rows"], None, "quality [net]")
    assert {s: {m: [p.x for p in points] for m, points in made[s].items()} for s in made} == {
        s: {m: list(STRENGTHS) for m in METHODS} for s in STYLES
    }
    titles = [axes.get_title() for axes in drawn["sweep-quality"].axes]
    assert titles == list(STYLES)
    for axes, series in zip(drawn["sweep-quality"].axes, made.values(), strict=True):
        lines = [line.get_xydata().tolist() for line in axes.lines if line.get_linestyle() == "-"]
        assert lines == [[[p.x, p.y] for p in points] for points in series.values()]


@pytest.mark.slow
def test_figures_are_files_for_papers_and_repeat_to_the_byte(found, tmp_path):
    settings = {"sweeps": ["quality"], "fronts": [], "ranks": []}
    paths = write({"a / b": figures(found.content, settings)["sweep-quality"]}, tmp_path / "a")
    assert [path.name for path in paths] == ["a-b.pdf", "a-b.png"]
    again = write({"a / b": figures(found.content, settings)["sweep-quality"]}, tmp_path / "b")
    assert [p.read_bytes() for p in paths] == [p.read_bytes() for p in again]
    with Image.open(paths[1]) as picture:
        assert paths[0].read_bytes().startswith(b"%PDF") and picture.width > 600


@pytest.mark.slow  # of scipy.stats.studentized_range
def test_ranks_are_those_of_the_rules_rows(found):
    column = next(column for column in found.content["columns"] if column["name"] == "quality")
    rows = found.content["rows"]
    assert {row["strength"] for row in rows if row["main"]} == {2.0}
    ranks = ranked(rows, column)
    assert ranks.styles == 2 and ranks.mean == {"alpha": 1.0, "beta": 2.0, "gamma<i>": 3.0}
    assert ranked([row for row in rows if row["method"] != "beta"], column) is None


def test_bars_join_what_is_closer_than_the_critical_difference():
    rng = np.random.default_rng(0)
    for _ in range(50):
        ranks, critical = sorted(rng.uniform(1, 6, 6)), rng.uniform(0.5, 3)
        joined = cliques(ranks, critical)
        for i in range(6):
            for j in range(i + 1, 6):
                assert (ranks[j] - ranks[i] < critical) == any(a <= i and j <= b for a, b in joined)
        assert all(ranks[b] - ranks[a] < critical for a, b in joined)
        assert not [1 for a, b in joined for c, d in joined if (a, b) != (c, d) and c <= a and b <= d]


# --- W&B


class Kept(Tracker):
    """Remembers what it is given."""

    def __init__(self):
        self.seen = []

    def start(self, run_id, config, group="", tags=(), job=""):
        self.seen.append(("start", run_id))

    def log(self, step, values): ...

    def images(self, name, image):
        self.seen.append(("image", name))

    def pictures(self, name, images, captions): ...
    def describe(self, config): ...
    def summary(self, values): ...

    def table(self, name, frame):
        self.seen.append((name, frame))

    def artifact(self, name, path, type):
        self.seen.append(("artifact", path.name))

    def finish(self, status):
        self.seen.append(("finish", status))


def test_wandb_gets_the_same_tables_and_figures(found, tmp_path):
    kept, page = Kept(), tmp_path / "page.html"
    publish(found, page, [tmp_path / "sweep-x.pdf", tmp_path / "sweep-x.png"], kept)
    kinds = [name for name, _ in kept.seen]
    assert kinds == ["start", "summary", "long", "image", "artifact", "finish"]
    rows = len(METHODS) * len(STYLES) * len(STRENGTHS) + 2  # and one each for failed and skipped
    assert len(kept.seen[1][1]) == rows and "quality [net] low" in kept.seen[1][1]
    assert dict(kept.seen)["image"] == "sweep-x"
    assert dict(kept.seen)["artifact"] == "page.html"


def test_the_command_writes_page_and_figures(results, tmp_path, capsys):
    out = tmp_path / "page.html"
    main(["--results", str(results), "--where", "method=alpha", "--out", str(out)])
    assert re.match(rf"{re.escape(str(out))}: 0\.\d+ MB, 144 images shown, 0 left out\n", capsys.readouterr().out)
    with pytest.raises(BenchError, match="give a file in a folder that exists"):
        main(["--results", str(results), "--out", str(tmp_path / "no" / "page.html")])


def test_numbers_by_packages_stand_beside_ours():
    def scored(metric, value, network="net", strength=1.0, **about):
        return {"strength": strength, "metric": metric, "value": value, "network": network, "fingerprint": about}

    theirs = {"engine": "package 1", "same_as": {"kid_package": "kid"}}
    records = [
        Record(f"cell-{i}", "done", scores=[scored("kid", 1.0), scored("kid_package", 1.0 + gap, **theirs)])
        for i, gap in enumerate((0.5, -0.75))
    ]
    other = [scored("kid", 1.0, "another"), scored("kid_package", 9.0, **theirs), scored("x", 1.0, same_as="kid")]
    records.append(Record("cell-2", "done", scores=other))
    assert package_differences(records) == [("kid", "net", "package 1", "2", "0.75")]
