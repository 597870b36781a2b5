"""Rare tokens: the search against a plain reading of the vocabulary file, and words that fall apart."""

import json

import pytest

from bench import tokens
from bench.backbones import rare_tokens
from bench.paths import ROOT

VOCABULARY = ROOT / "bench" / "mini" / "weights" / "diffusion" / "tokenizer" / "vocab.json"


@pytest.fixture(scope="module")
def mini():
    return rare_tokens.tokenizer_of("mini")


def toy():
    """Single letters, and three whole words merged in this order: hou, qz, house."""
    from transformers import CLIPTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    made = ["ho", "hou", "hous", "hou</w>", "qz</w>", "house</w>"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *made, "<|startoftext|>", "<|endoftext|>"]
    merges = [("h", "o"), ("ho", "u"), ("hou", "s"), ("ho", "u</w>"), ("q", "z</w>"), ("hous", "e</w>")]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=merges)


def test_the_search_is_a_plain_reading_of_the_vocabulary(mini):
    vocabulary = json.loads(VOCABULARY.read_text())
    whole = [word[:-4] for word in vocabulary if word.endswith("</w>")]
    expected = []
    for word in whole:
        longer = [other for other in whole if len(other) > len(word) and other[: len(word)] == word]
        if 2 <= len(word) <= 3 and word.isalpha() and word.isascii() and word not in rare_tokens.WORDS and not longer:
            if mini(word).input_ids[1:-1] == [vocabulary[f"{word}</w>"]]:
                expected.append(word)
    expected.sort(key=lambda word: vocabulary[f"{word}</w>"], reverse=True)
    assert rare_tokens.rare(mini) == expected
    assert set(rare_tokens.NAMED) <= set(expected) and not {"cat", "dog", "hou", "the"} & set(expected)


def test_beginnings_and_words_that_mean_something_are_left_out():
    tokenizer = toy()
    assert rare_tokens.rare(tokenizer) == ["qz"]  # hou begins house
    assert rare_tokens.rare(tokenizer, longest=5) == ["house", "qz"]  # WORDS holds short words alone


def test_a_word_that_falls_apart_is_noted_with_its_pieces(mini):
    assert rare_tokens.pieces(toy(), "sks") == ["s", "k", "s</w>"] and rare_tokens.pieces(mini, "sks") == ["sks</w>"]
    (note,) = rare_tokens.split_notes(["qz", "sks"], [toy()])
    assert note.startswith("the rare token 'sks' is 3 pieces on this backbone (s k s</w>);")
    assert rare_tokens.split_notes(["sks"], [mini]) == [] and rare_tokens.split_notes(["sks"], []) == []
    assert len(rare_tokens.split_notes(["sks"], [mini, toy()])) == 1  # one of two text encoders


def test_the_command_shows_named_words_and_candidates(capsys):
    assert tokens.main(["mini", "sbu", "sksk", "--count", "3"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "sbu      1 piece: sbu</w>" and shown[1].startswith("sksk     3 pieces: ")
    assert len(shown[2].split(": ")[1].split()) == 3
    assert tokens.main(["./nowhere"]) == 1 and "does not exist" in capsys.readouterr().err


def test_a_cell_notes_the_tokens_of_its_method_that_fall_apart(tmp_path, monkeypatch):
    from tiny import TinyBackbone, tiny_dataset

    from bench.cell import Cell
    from bench.sampling.sampler import Untouched
    from bench.steps.load import load
    from bench.steps.work import Work

    class Binding(Untouched):
        rare_tokens = ("qz", "sks")

    backbone, work = TinyBackbone(), Work(Cell({}, {}, {}, {}, {}, {}, {}, 0, ()), tmp_path)
    backbone.tokenizers = lambda: [toy()]
    vars(work).update(metrics={}, method=Binding(), dataset=tiny_dataset(), backbone=backbone)
    monkeypatch.setattr("bench.steps.load.check_missing", lambda work: None)
    load(work)
    assert work.notes == rare_tokens.split_notes(["sks"], [toy()]) != []
