"""The rare token goes to the class word in any capitals; texts without it are counted before training, or refused."""

from dataclasses import replace

import pytest
from tiny import tiny_dataset

from bench.contracts import BenchError, Recipe, Unbound, with_token
from bench.steps.load import token_notes
from methods.dreambooth import DreamBooth
from methods.pair import PairCustomization
from methods.styleforge import StyleForge

RECIPE = Recipe(1, 1e-4)


@pytest.mark.parametrize(
    "prompt, bound",
    [
        ("a dog", "a sks dog"),
        ("A Dog", "A sks Dog"),
        ("DOG.", "sks DOG."),
        ("a dog's dog", "a sks dog's dog"),
        ("(dog)", "(sks dog)"),
        ("two dogs", None),
        ("a hotdog", None),
        ("a puppy", None),
        ("dog_house", None),
        ("", None),
    ],
)
def test_the_token_goes_to_the_class_word_or_the_text_is_found(prompt, bound):
    assert with_token(prompt, "dog", "sks") == (bound or prompt)
    assert Unbound.among([], [prompt], "dog").prompts == ([] if bound else [prompt])


@pytest.mark.parametrize("noun", ["c++", "a.b", "café", "teddy bear", "(x)"])
def test_a_class_word_of_any_signs_is_found(noun):
    assert with_token(f"a {noun} here", noun, r"\1") == rf"a \1 {noun} here"


def dataset(captions, prompts, style_words=None):
    made = tiny_dataset()
    examples = tuple(replace(made.pairs[0].style, caption=caption, noun="dog") for caption in captions)
    return replace(
        made, pairs=(), references=examples, prompts=tuple(prompts), noun="dog", style_words=style_words, oracle=None
    )


def test_prompts_and_captions_without_a_place_are_counted():
    some = dataset(["a dog", "two dogs"], ["a dog", "A Dog", "two dogs", "a puppy"])
    assert token_notes(DreamBooth(RECIPE).unbound(some), some) == [
        "1 of 2 captions get no rare token: the class word 'dog' is not in them, first 'two dogs'",
        "2 of 4 prompts get no rare token: the class word 'dog' is not in them, first 'two dogs'; "
        "write {noun} into dataset.prompts",
    ]


def test_captions_that_all_lack_a_place_are_refused():
    none = dataset(["two dogs", "a puppy"], ["a dog"])
    with pytest.raises(BenchError, match="None of the 2 captions holds the class word 'dog'.*first 'two dogs'"):
        token_notes(DreamBooth(RECIPE).unbound(none), none)


def test_methods_that_need_no_class_word_note_nothing():
    style = dataset(["a puppy"], ["a puppy"], style_words="in ink style")
    whole = dataset(["a dog"], ["a dog"])
    for method, data in [(DreamBooth(RECIPE), style), (StyleForge(RECIPE), style), (DreamBooth(RECIPE), whole)]:
        assert token_notes(method.unbound(data), data) == []


def test_the_captions_of_pairs_are_looked_at_with_their_own_class_words():
    made = tiny_dataset()
    method = PairCustomization(RECIPE)
    assert token_notes(method.unbound(made), made) == []
    content = replace(made.pairs[0].content, caption="something else")
    other = replace(made, pairs=(replace(made.pairs[0], content=content),))
    with pytest.raises(BenchError, match="None of the 1 captions"):
        token_notes(method.unbound(other), other)


def test_no_caption_at_all_is_no_error():
    empty = dataset([], ["a dog"])
    assert token_notes(DreamBooth(RECIPE).unbound(empty), empty) == []
