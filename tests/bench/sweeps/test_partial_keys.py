"""A key that only some methods of a sweep have: what a message says to type works, and a typo is never ignored."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from bench import paths
from bench.compose import cells, register_datasets
from bench.errors import BenchError
from bench.sweeps.partial_keys import PartialKeys, as_typed, forced_at_first

ROOT = Path(__file__).parents[3]


@pytest.fixture
def sweep():
    """(words of every combination, method names) -> cells by method, and the notes"""
    register_datasets()

    def composed(words, methods=("zero_shot", "pair")):
        keys = PartialKeys(lambda words: compose("config", words))
        made = cells([[f"method={name}", *words] for name in methods], keys.compose)
        return {cell.method["name"]: cell.method for cell in made}, keys.notes()

    with initialize_config_dir(str(paths.CONF), version_base="1.3"):
        yield composed


@pytest.mark.parametrize("sign", ["", "+"])
def test_what_the_message_says_works(sweep, sign):
    with pytest.raises(BenchError, match="method=.* (has no such key|has it already)") as refused:
        sweep([f"{sign}method.recipe.steps=7"])
    (advised,) = re.findall(r"\+\+\S+", str(refused.value))
    methods, notes = sweep([advised])
    assert methods["pair"]["recipe"]["steps"] == 7 and "recipe" not in methods["zero_shot"]
    assert notes == [f"{advised} is left out where there is no such key: method=zero_shot."]


def test_an_argument_that_the_yaml_does_not_name_is_had(sweep):
    """Recipe.clip_norm stands in no yaml; the mapping `recipe` exists, so the class says whether the key is right."""
    methods, notes = sweep(["++method.recipe.clip_norm=0.5", "++method.rank=3"])
    assert methods["pair"]["recipe"]["clip_norm"] == 0.5 and methods["pair"]["rank"] == 3
    assert set(methods["zero_shot"]) & {"recipe", "rank"} == set() and len(notes) == 2


def test_a_key_that_the_class_takes_and_the_yaml_lacks_is_set(sweep):
    methods, notes = sweep(["++method.strength=0.3"], methods=("zero_shot",))
    assert methods["zero_shot"]["strength"] == 0.3 and not notes


@pytest.mark.parametrize("word", ["++method.rnk=3", "++method.recipes.steps=3"])
def test_a_key_that_nothing_has_is_refused(sweep, word):
    with pytest.raises(BenchError, match="no combination of this sweep has it"):
        sweep([word])


def test_words_are_forced_for_the_first_composition_only():
    words = ["-m", "method=pair,oracle", "method.rank=3", "+method.x.y=1", "++method.z=1", "sweep.attempts=2", "seed=0"]
    forced = forced_at_first(words)
    assert forced[2:5] == ["++method.rank=3", "++method.x.y=1", "++method.z=1"]
    assert [forced[i] for i in (0, 1, 5, 6)] == [words[i] for i in (0, 1, 5, 6)] and as_typed(forced) == words


def test_the_default_method_need_not_have_the_key(tmp_path):
    """Hydra first composes the default method, which has no `rollout_steps`."""

    def typed(*words):
        line = [sys.executable, "-m", "bench", "-m", f"results={tmp_path}", "plan=true", "tracker=none", *words]
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    code, said = typed("method=slider_text", "method.rollout_steps=3")
    assert code == 0 and "1 cells: 1 to run" in said
    code, said = typed("method=slider_text", "method.rollout_step=3")
    assert code != 0 and "method=slider_text has no such key" in said
