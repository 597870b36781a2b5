"""What every dataset of datasets/ promises. `test_planted_datasets.py` shows that each test can fail.

Images that are not on this machine are skipped with the sentence that says how to get them.
"""

import re

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from training_steps import global_random

from bench.data import evaluation, identity, loading, schema, sources

P = 64
FEW = {"references": 2, "auxiliary": 2, "reference_set": 2}  # of what is rendered
datasets = pytest.mark.parametrize("name", schema.names())


def few(name):
    """The dataset with few images; skipped when it is for images of the user, or when they are to be fetched."""
    spec = {**schema.describe(name), "controls": []}
    named = [role for role in ("rendered", "drawings", "pair", *schema.FOLDERS) if spec[role]]
    to_fetch = any(file.place() is None for file in sources.files(spec))
    if to_fetch or not (named or isinstance(spec["prompts"], dict)):
        pytest.skip(str(sources.missing(spec)))
    if spec["rendered"]:
        spec["rendered"] = {**spec["rendered"], **FEW}
    for role in schema.FOLDERS:
        if spec[role] is not None:
            spec[role] = sources.images_of(spec, role)[:2]
    return {**spec, "controls": [schema.SCENES] if schema.SCENES in schema.describe(name)["controls"] else []}


def paired(name):
    """The dataset, skipped when it has no pair."""
    spec = schema.describe(name)
    if not (spec["pair"] or (spec["rendered"] or {}).get("pairs")):
        pytest.skip("it has no pair")
    return loading.load(few(name), P)


# --- the description ---------------------------------------------------------------------------------------------


@datasets
def test_it_is_described_in_full(name):
    spec = schema.describe(name)
    assert set(spec) == set(schema.KEYS) and spec["name"] == name
    assert spec["licence"] and spec["source"], "it names no licence or no source"
    assert type(spec["version"]) is int and spec["version"] >= 1
    header = (schema.FOLDER / name / "dataset.yaml").read_text().partition("\n")[0]
    assert header.startswith("# python -m bench") and f"dataset={name}" in header, "its first line is no command"
    assert re.fullmatch(r"[\w./ -]*\{noun\}[\w./ -]*|[^{}]+", spec["caption"]), (
        "its caption has other braces than {noun}"
    )


@datasets
def test_its_evaluation_is_a_list_of_different_prompts_and_seeds(name):
    """Any number of them. A table of prompts is read where it is here."""
    spec = schema.describe(name)
    assert len(set(spec["seeds"])) == len(spec["seeds"]) and min(spec["seeds"]) >= 0, "a seed is repeated or negative"
    if isinstance(spec["prompts"], dict):
        return
    prompts = evaluation.prompts(spec)
    assert len(set(prompts)) == len(prompts) and all(prompts), "a prompt is repeated or empty"
    assert not [prompt for prompt in prompts if "{" in prompt], "a prompt keeps a brace"
    words = spec["style_words"]
    assert not words or not [prompt for prompt in prompts if words in prompt], "a prompt holds the style words"


@datasets
def test_no_prompt_is_about_the_object_of_its_pair(name):
    """Else a copied training image would pass for the right content."""
    spec = schema.describe(name)
    if not (spec["pair"] or spec["rendered"]):
        pytest.skip("it has no pair")
    assert spec["style_words"], "a pair shows a style, which has no words"
    about = [prompt for prompt in evaluation.prompts(spec) if re.search(rf"\b{re.escape(spec['noun'])}\b", prompt)]
    assert not about


@datasets
def test_its_identity_does_not_depend_on_where_the_command_is_given(name, tmp_path, monkeypatch):
    here = identity.identity(schema.describe(name))
    monkeypatch.chdir(tmp_path)
    assert identity.identity(schema.describe(name)) == here and re.fullmatch("[0-9a-f]{12}", here)


# --- the images --------------------------------------------------------------------------------------------------


@datasets
def test_its_images_are_whole_and_the_same_each_time(name):
    spec = few(name)
    with global_random(1):
        dataset = loading.load(spec, P)
    examples = [half for pair in dataset.pairs for half in (pair.content, pair.style)]
    examples += [*dataset.references, *dataset.auxiliary]
    for image in [*(example.image for example in examples), *dataset.controls]:
        assert image.shape == (3, P, P) and image.dtype == np.uint8 and image.std() > 1, "an image is blank"
    assert all(example.caption and example.noun for example in examples)
    if spec["rendered"] or spec["drawings"]:
        with global_random(2):
            again = loading.load(spec, P)
        both = zip(dataset.references, again.references, strict=True)
        assert all((ours.image == theirs.image).all() for ours, theirs in both)


@datasets
def test_it_does_not_compare_with_what_it_trains_on(name):
    """No control and no image of the reference set is a training image."""
    dataset = loading.load(few(name), P)
    trained = {half.image.tobytes() for pair in dataset.pairs for half in (pair.content, pair.style)}
    trained |= {example.image.tobytes() for example in dataset.references}
    compared = [] if dataset.reference_set is None else list(np.asarray(dataset.reference_set()))
    assert not trained & {np.ascontiguousarray(image).tobytes() for image in compared}
    assert not trained & {image.tobytes() for image in dataset.controls}


@datasets
def test_the_halves_of_a_pair_are_the_same_picture(name):
    """The stylised half is explained best by the plain one where it is, not moved by an eighth of its side."""
    for pair in paired(name).pairs:
        found = {shift: explained(pair.content.image, pair.style.image, shift) for shift in SHIFTS}
        best = max(found, key=found.get)
        assert best == (0, 0), f"the stylised half fits better when it is moved by {best} pixels"


@datasets
def test_the_second_half_of_a_pair_is_the_stylised_one(name):
    dataset = paired(name)
    if dataset.oracle is not None:
        assert all((dataset.oracle(pair.content.image) == pair.style.image).all() for pair in dataset.pairs)
    elif dataset.references:
        target = np.mean([tone(example.image) for example in dataset.references], axis=0)
        for pair in dataset.pairs:
            plain, style = (np.linalg.norm(tone(half.image) - target) for half in (pair.content, pair.style))
            assert style < plain, "the plain half is nearer to the references than the stylised one"
    else:
        pytest.skip("nothing tells which half is stylised: neither an oracle nor references")


SHIFTS = [(y, x) for y in (-P // 8, 0, P // 8) for x in (-P // 8, 0, P // 8)]


def explained(plain, style, shift):
    """Share of the variance of the stylised half that its colours and edges have from those of the plain one."""
    x, y = described(plain), described(np.roll(style, shift, (1, 2)))
    inside = np.s_[:, P // 8 : -P // 8, P // 8 : -P // 8]
    x, y = x[inside].reshape(4, -1).T, y[inside].reshape(4, -1).T
    x = np.c_[x, np.ones(len(x))]
    rest = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return 1 - np.square(rest).sum() / np.square(y - y.mean(0)).sum()


def described(image):
    """Blurred colours and edges, (4, P, P)."""
    down, right = np.gradient(image.mean(0))
    return np.stack([gaussian_filter(channel.astype(float), 2) for channel in [*image, np.hypot(down, right)]])


def tone(image):
    """Mean and spread of each channel, (6,)."""
    return np.concatenate([image.mean((1, 2)), image.std((1, 2))])
