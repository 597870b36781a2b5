"""Overrides of the command line: each is the same cell, a stated other one, or a sentence; nothing is run or written.

Hydra composes once; each override is parsed by Hydra's grammar and laid over that by Hydra's own code.
"""

import copy
import functools
import math
import random
import string
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from test_damaged_store import cases, limit  # noqa: F401

from bench.compose import cell, register_datasets
from bench.contracts import BenchError
from bench.environment import one_sentence
from bench.paths import CONF

SENTENCES = (BenchError, HydraException, OmegaConfBaseException)  # Hydra's command prints its own in a line or two


@functools.cache
def base():
    register_datasets()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", ["method=zero_shot", "dataset=halftone", "tracker=none", "results=none"])


def composed(*words):
    config = copy.deepcopy(base())
    ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(list(words)), config)
    return cell(config)


def settings():
    """Dotted name -> value of every setting of the cell."""
    plain, found = OmegaConf.to_container(base(), resolve=True), {}

    def walk(value, name):
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(inner, f"{name}.{key}" if name else str(key))
        elif name.partition(".")[0] not in ("hydra", "tracker", "results", "metrics"):
            found[name] = value

    walk(plain, "")
    return found


def written(value, rng):
    """A value in Hydra's grammar, in one of its spellings."""
    if isinstance(value, str):
        quote = rng.choice("'\"")
        return quote + value.replace("\\", "\\\\").replace(quote, "\\" + quote) + quote
    if isinstance(value, list):
        return "[" + rng.choice([",", ", "]).join(written(item, rng) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(item, rng)}" for key, item in value.items()) + "}"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


@pytest.mark.parametrize("block", cases(1, 40))
def test_the_same_value_in_any_spelling_is_the_same_cell(limit, block):  # noqa: F811
    whole, known = composed(), settings()
    plain = [
        name for name, value in known.items() if not isinstance(value, str) or value.isprintable() and "$" not in value
    ]
    for n in range(10):
        limit()
        rng = random.Random(f"same {block} {n}")
        name = rng.choice(plain)
        words = f"{rng.choice(['', '++'])}{name}={written(known[name], rng)}"
        assert composed(words).run_id == whole.run_id, words


@pytest.mark.parametrize("block", cases(1, 40))
def test_a_seed_in_any_spelling_is_that_seed(block):
    for n in range(5):
        seed = random.Random(f"seed {block} {n}").randrange(-(10**6), 10**9)
        assert composed(f"seed={seed}").seed == seed
        with pytest.raises(BenchError, match="seed"):
            composed(f"seed={seed}.5")
        with pytest.raises(BenchError, match="seed"):
            composed(f"seed='{seed}'")


@pytest.mark.parametrize("block", cases(1, 40))
def test_unknown_keys_are_refused_with_their_name(block):
    for n in range(10):
        rng = random.Random(f"unknown {block} {n}")
        name = rng.choice(sorted(settings()))
        place, key = rng.randrange(len(name)), rng.choice(string.ascii_lowercase)
        wrong = name[:place] + key + name[place:]
        if wrong in settings():
            continue
        with pytest.raises(HydraException) as error:
            composed(f"{wrong}=1")
        assert wrong.partition(".")[0] in str(error.value)


WORDS = [
    "nan", "inf", "-inf", ".nan", "1e400", "-1", "0", "true", "null", "''", "[]", "{}", "[1,[2]]", "{a:1}", "x", "1e30",
    "99999999999999999999", "'{noun.__class__}'", "'{'", "'}'", "é", "'\\n'", "'\u202e'", "'\ud800'", "/dev/zero",
    "'../../../../etc'", "'$(id)'", "'`id`'", "'!!python/object/apply:os.system [id]'", "x" * 5000, "'[' ",
]  # fmt: skip
NUMBERS = ("nan", "inf", "-inf")
CHECKED = ("seed", "strength", "mode", "missing_metrics", "pack", "plan", "wait", "workers", "mix_code",
           "backbone.dtype", "backbone.device", "sampler.scheduler")  # fmt: skip


@pytest.mark.parametrize("block", cases(1, 100))
def test_any_value_is_a_cell_or_a_sentence(limit, tmp_path, monkeypatch, block):  # noqa: F811
    """A cell that comes of it has exactly the value that was typed, and no other setting has moved."""
    monkeypatch.chdir(tmp_path)
    whole = OmegaConf.to_container(base(), resolve=True)
    for n in range(15):
        limit()
        rng = random.Random(f"any {block} {n}")
        name, words = rng.choice(sorted(settings())), rng.choice(WORDS)
        try:
            with one_sentence("bench"):
                found = composed(f"{name}={words}")
                found.run_id  # noqa: B018
        except (*SENTENCES, SystemExit) as error:
            assert len(str(error)) < 12_000, (name, words)
            continue
        assert name not in ("seed", "mode") or words in ("0", "-1", "99999999999999999999"), (name, words)
        untouched = {"method", "dataset", "backbone", "sampler"} - {name.partition(".")[0]}
        assert all(dict(getattr(found, part)) == whole[part] for part in untouched), (name, words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("words", [word for word in WORDS if word not in ("null", "0", "-1", "true", "[]")])
def test_settings_with_fixed_values_refuse_all_others(name, words):
    if name == "strength" and words == "1e30" or name in ("seed", "pack", "workers") and words.isdigit():
        return
    if name == "strength" and words.isdigit():
        return
    with pytest.raises(SENTENCES):
        composed(f"{name}={words}").run_id  # noqa: B018


@pytest.mark.parametrize("words", NUMBERS)
@pytest.mark.parametrize("name", [name for name, value in settings().items() if isinstance(value, float)])
def test_a_setting_that_is_no_finite_number_is_refused(name, words):
    with pytest.raises(SENTENCES):
        composed(f"{name}={words}").run_id  # noqa: B018


@pytest.mark.parametrize("block", cases(1, 60))
def test_random_lines_are_a_cell_or_a_sentence(limit, tmp_path, monkeypatch, block):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    letters = string.ascii_lowercase[:6] + "={}[](),:'\"\\$.~+-@/ 0123é\t\0*!&|<>`"
    for n in range(20):
        limit()
        rng = random.Random(f"lines {block} {n}")
        line = "".join(rng.choice(letters) for _ in range(rng.randrange(40)))
        line = rng.choice(["", "method.", "seed=", "dataset.prompts=", "+x=", "~"]) + line
        try:
            composed(line).run_id  # noqa: B018
        except SENTENCES:
            continue
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", ["+x=''", "+x=3b", "+x=@", "+x={a:1}", "+methods=pair"])
def test_a_setting_that_no_cell_has_is_refused_by_its_name(words):
    with pytest.raises(BenchError, match=f"^{words[1:].partition('=')[0]} was requested; the settings of a cell are"):
        composed(words)


@pytest.mark.parametrize("key", ["seed", "strength", "results", "metrics", "tracker", "trainer", "sampler"])
def test_a_setting_that_was_taken_out_is_named(key):
    with pytest.raises(SENTENCES, match=key):
        composed(f"~{key}")


INTERPOLATIONS = ["${oc.env:HOME}", "${oc.env:SECRET,x}", "${oc.decode:'1'}", "${x}", "${seed}", "${", "${}", "${.}"]


@pytest.mark.parametrize("words", INTERPOLATIONS)
@pytest.mark.parametrize("name", ["dataset.noun", "dataset.prompts", "method.name"])
def test_interpolations_that_are_typed_are_a_cell_or_a_sentence(name, words):
    try:
        composed(f"{name}={words}").run_id  # noqa: B018
    except SENTENCES:
        pass


OUTSIDE = ["'../../x'", "/etc/x", "..", "a/b", "''", "7", "null", "[a]", "x" * 300, "'a\tb'"]


@pytest.mark.parametrize("part", ["method", "dataset", "backbone"])
@pytest.mark.parametrize("words", OUTSIDE)
def test_a_name_never_leads_a_run_out_of_its_store(part, words):
    try:
        run_id = composed(f"{part}.name={words}").run_id
    except SENTENCES:
        return
    assert "/" not in run_id, run_id
    assert (Path("results") / run_id).resolve().parent == Path("results").resolve() and len(run_id) < 200


def test_the_base_of_these_tests_is_a_finite_cell():
    assert composed().run_id == composed("seed=0").run_id != composed("seed=1").run_id
    assert all(not isinstance(value, float) or math.isfinite(value) for value in settings().values())
