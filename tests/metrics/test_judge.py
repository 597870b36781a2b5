"""The judge: a tiny random vision-language model against transformers itself, and a rigged one with known answers."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_judge
import torch
import yaml
from metric_cases import dataset, scenes
from rigged_judge import CALLS, Rigged, colours, likeness, outlines

from bench.contracts import BenchError, Comparison, Impossible
from bench.data.weights import weights
from metrics import vlm_judge
from metrics.networks import VisionLanguage
from metrics.networks.vision_language import Asked, _load, answer_tokens
from metrics.preference_judge import PreferenceJudge
from metrics.vlm_judge import CONTENT, GRADES, LEAK, PROMPT, QUESTIONS, STYLE, YES_NO, Judge, JudgeLeak

ROOT = Path(__file__).parents[2]
TEXTS = ["Is it?", "Is it a long question, or is it a short one?", "x"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_judge.save(tmp_path_factory.mktemp("tiny_judge"))


@pytest.fixture(scope="module")
def tiny(folder):
    return VisionLanguage(name="tiny", model=str(folder), device="cpu")


def whole(network, row, labels, text):
    """Probabilities of the next token (V,), the whole chat in one pass without a cache."""
    model, processor = _load(network)
    content = []
    for label in labels:
        content += [{"type": "text", "text": f"{label}: "}, {"type": "image"}]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
    chat = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    read = processor(text=[chat], images=[[x.transpose(1, 2, 0) for x in row]], return_tensors="pt")
    with torch.inference_mode():
        return torch.softmax(model(**read, use_cache=False).logits[0, -1].double(), 0).numpy()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_answers_are_the_softmax_of_the_whole_chat_read_in_one_pass(tiny, count):
    rows = scenes(3 * count, 1).reshape(3, count, 3, 64, 64)
    labels = [f"Picture {k + 1}" for k in range(count)]
    found = tiny.ask(rows, labels, [Asked(TEXTS, YES_NO), Asked(TEXTS[::-1], GRADES)])
    words = _load(tiny)[1].tokenizer
    for answers, texts, probabilities in zip((YES_NO, GRADES), (TEXTS, TEXTS[::-1]), found, strict=True):
        ids = answer_tokens(words, answers, "tiny")
        for row, text, said in zip(rows, texts, probabilities, strict=True):
            expected = whole(tiny, row, labels, text)
            shares = np.array([expected[some].sum() for some in ids])
            np.testing.assert_allclose(said, [*(shares / shares.sum()), shares.sum()], rtol=1e-3, atol=1e-6)
    assert np.ptp(found[0][:, 0]) > 0.02, "the answers do not depend on what is asked"


def test_answers_do_not_depend_on_the_rows_beside_them_and_come_again(tiny):
    rows = scenes(20, 2).reshape(10, 2, 3, 64, 64)
    asked = [f"{'long ' * k}?" for k in range(10)]
    (together,) = tiny.ask(rows, ("A", "B"), [Asked(asked, YES_NO)])
    alone = np.concatenate(
        [tiny.ask(rows[k : k + 1], ("A", "B"), [Asked(asked[k : k + 1], YES_NO)])[0] for k in range(10)]
    )
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-6)
    assert np.array_equal(together, tiny.ask(rows, ("A", "B"), [Asked(asked, YES_NO)])[0])
    (exchanged,) = tiny.ask(rows[:, ::-1], ("A", "B"), [Asked(asked, YES_NO)])
    assert np.abs(exchanged - together).max() > 1e-3, "the order of pictures does not matter to a random model"


def test_every_spelling_of_an_answer_that_is_one_token_counts(tiny):
    words = _load(tiny)[1].tokenizer
    assert answer_tokens(words, ("yes", "A"), "tiny") == [
        [words.convert_tokens_to_ids("yes")], [words.convert_tokens_to_ids("A")],
    ]  # fmt: skip
    with pytest.raises(BenchError, match="'perhaps' is no single token of tiny; choose another"):
        answer_tokens(words, ("perhaps",), "tiny")


def test_absent_cut_and_foreign_weights_are_one_sentence(folder, tmp_path):
    hub = VisionLanguage(name="hub", model="owner/absent-model")
    assert re.search("owner/absent-model are not on this machine; .*hf download owner/absent-model", hub.missing())
    empty = VisionLanguage(name="empty", model=str(tmp_path))
    assert "config.json and .safetensors files, but 0 weight files" in empty.missing()
    assert "wrong checksum" in VisionLanguage(name="tiny", model=str(folder), sha256="ab" * 32).missing()
    other = tmp_path / "other"
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(BenchError, match="cannot be loaded from .*; give the folder"):
        VisionLanguage(name="other", model=str(other), device="cpu").ask(
            scenes(1, 0)[None], ("A",), [Asked(["x"], YES_NO)]
        )


def test_other_weights_and_other_templates_are_other_judges(folder, tiny, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    same = VisionLanguage(name="tiny", model=str(tmp_path))
    assert same.digest == tiny.digest
    (tmp_path / "chat_template.jinja").write_text(tiny_judge.CHAT + " ")
    assert same.digest != tiny.digest


# --- the metric --------------------------------------------------------------------------------------------------


def test_values_agree_with_double_loops(evaluation):
    case, network = evaluation(), Rigged()
    score, copied = Judge(network).score(case), JudgeLeak(network).score(case)
    (pair,) = case.dataset.pairs
    s = pair.style.image
    for i, (y, y0) in enumerate(zip(case.images, case.baseline, strict=True)):
        assert score.per_image["judge_style"][i] == pytest.approx(1 + 4 * likeness(colours(y), colours(s)), abs=1e-5)
        assert score.per_image["judge_content"][i] == pytest.approx(
            1 + 4 * likeness(outlines(y), outlines(y0)), abs=1e-5
        )
        leak = likeness(outlines(y), outlines(s)) - likeness(outlines(y0), outlines(s))
        assert copied.per_image["judge_leak"][i] == pytest.approx(leak, abs=1e-5)
    assert score.values == {name: pytest.approx(x.mean()) for name, x in score.per_image.items()}
    assert score.fingerprint["judge"] == network.digest and score.fingerprint["network"] == "rigged"


def test_a_preference_for_a_place_and_a_wish_to_say_something_else_are_told(evaluation):
    class Biased(Rigged):
        def _seen(self, row, text):
            return 0.5 + 0.25 * np.sign(float(np.mean(row[0])) - float(np.mean(row[-1])))

    biased = Biased(name="biased", sure=0.2)
    score = Judge(biased).score(evaluation())
    assert score.values["judge_style"] == pytest.approx(3)
    assert JudgeLeak(biased).score(evaluation()).values["judge_leak"] == pytest.approx(0)
    assert score.notes == [
        "the two orders of pictures differ by 2 grades and 0.5 of P(yes) on average",
        "the allowed answers have 20% of the probability of all that biased could say: it wants to say something "
        "else, so do not trust it",
    ]
    assert len(Judge(Rigged()).score(evaluation()).notes) == 1


def test_an_answer_is_asked_for_once_and_two_questions_share_their_pictures(evaluation):
    case, network = evaluation(), Rigged(name="counted")
    CALLS.clear()
    first = Judge(network).score(case)
    assert any(len(texts) == 2 for _, texts, _ in CALLS)
    asked = sum(len(texts[0]) for _, texts, _ in CALLS)
    n = len(case.images)
    assert asked == n * (2 + 2 + 1)  # pictures: with the style, with the backbone's, in both orders; alone
    CALLS.clear()
    JudgeLeak(network).score(case)
    assert sum(len(texts[0]) for _, texts, _ in CALLS) == n * 2  # the backbone's with the style
    CALLS.clear()
    assert Judge(network).score(case).values == first.values and JudgeLeak(network).score(case) and not CALLS


def test_a_question_is_part_of_what_the_numbers_depend_on(evaluation, monkeypatch):
    case = evaluation()
    before = Judge(Rigged()).score(case).fingerprint["questions"], Judge(Rigged()).identity()
    monkeypatch.setattr(vlm_judge, "QUESTIONS", QUESTIONS | {"style": replace(STYLE, text="Alike?")})
    after = Judge(Rigged()).score(case).fingerprint["questions"], Judge(Rigged()).identity()
    assert before[0] != after[0] and before[1] != after[1]


def test_a_subject_is_judged_by_its_own_question(evaluation):
    examples = tuple(pair.style for pair in dataset().pairs)
    subject = dataset(style_words=None, noun="teapot", pairs=(), references=examples, oracle=None)
    CALLS.clear()
    score = Judge(Rigged(name="subject")).score(evaluation(dataset=subject))
    assert set(score.values) == {"judge_subject", "judge_prompt"}
    assert any("the very same teapot" in text for _, texts, _ in CALLS for text in texts[0])
    with pytest.raises(Impossible, match="is a subject"):
        JudgeLeak(Rigged()).score(evaluation(dataset=subject))


def test_the_tiny_model_gives_the_whole_score_twice_alike(evaluation, tiny):
    few = scenes(2, 7)
    case = evaluation(images=few[::-1].copy(), baseline=few)
    score = Judge(tiny, examples=1).score(case)
    assert set(score.values) == {"judge_style", "judge_content", "judge_prompt"}
    assert 1 < score.values["judge_style"] < 5 and 0 < score.values["judge_prompt"] < 1
    assert any("wants to say something else" in note for note in score.notes)
    swapped = evaluation(images=few, baseline=few[::-1].copy(), cache=case.cache.parent / "other")
    assert Judge(tiny, examples=1).score(swapped).values["judge_content"] == pytest.approx(
        score.values["judge_content"], abs=1e-4
    )  # the order of two pictures does not matter


# --- the rater of a study ----------------------------------------------------------------------------------------


def test_the_rater_chooses_by_what_it_sees_and_not_by_place():
    class Brighter(Rigged):
        def _seen(self, row, text):
            left, right = (float(np.mean(picture)) for picture in row[-2:])
            return 0.5 + (left - right) / 510

    dark, bright = np.full((3, 8, 8), 40, np.uint8), np.full((3, 8, 8), 200, np.uint8)
    large = np.full((3, 16, 16), 90, np.uint8)
    cases = [Comparison(dark, bright, (), "a dog"), Comparison(bright, dark, (), "a dog"),
             Comparison(large, bright.repeat(2, 1).repeat(2, 2), (dark, dark), "a cat")]  # fmt: skip
    CALLS.clear()
    chances = PreferenceJudge(Brighter()).left_is_better("Which is brighter?", cases)
    expected = [0.5 - 160 / 510, 0.5 + 160 / 510, 0.5 - 110 / 510]
    np.testing.assert_allclose(chances, np.array([expected, expected]).T, atol=1e-6)
    placed = PreferenceJudge(Brighter(first=0.25)).left_is_better("Which is brighter?", cases)
    np.testing.assert_allclose(placed.mean(axis=1), expected, atol=0.07)  # both orders cancel, but for the ends 0 and 1
    labels = {labels for labels, _, _ in CALLS}
    assert labels == {("Picture A", "Picture B"), ("Plain", "Example of the style", "Picture A", "Picture B")}
    assert CALLS[0][1] == [('Which is brighter? The text: "a dog". Answer A or B.',) * 2]


# --- what is written of it ---------------------------------------------------------------------------------------


def test_the_page_has_every_question_in_its_words():
    page = " ".join((ROOT / "docs" / "judge.md").read_text().split())
    assert all(question.text in page for question in (STYLE, LEAK, CONTENT, PROMPT, QUESTIONS["subject"]))
    assert all(f"`judge_{name}`" in page for name in QUESTIONS)


def test_the_default_is_one_model_everywhere_and_the_registry_says_which_revision():
    specs = [yaml.safe_load((ROOT / "conf" / name).read_text())["judge"]["network"]
             for name in ("metrics/judge.yaml", "study.yaml")]  # fmt: skip
    assert specs[0] == specs[1]
    entry = next(entry for entry in weights().values() if entry.get("hub") == specs[0]["model"])
    assert re.fullmatch("[0-9a-f]{40}", entry["revision"]) and re.fullmatch("[0-9a-f]{64}", specs[0]["sha256"])
