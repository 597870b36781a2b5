"""Load: everything that can stop a cell is found before it costs anything."""

from __future__ import annotations

from bench.backbones.rare_tokens import split_notes
from bench.contracts import CONVENTION, AdapterSpec, BenchError, Dataset, Impossible, Unbound
from bench.data import schema
from bench.fairness import contract
from bench.steps.missing import check_missing
from bench.steps.work import Work

FOLDER = "folder"  # the dataset of a user's own images, whose yaml has a placeholder for the noun


def load(work: Work) -> None:
    """Load the parts of a cell. Raises BenchError, or Impossible when the cell is to be skipped."""
    possible(work)
    work.notes += token_notes(work.method.unbound(work.dataset), work.dataset)
    work.notes += [*work.method.notes, *work.dataset.notes]
    work.notes += work.training_backbone.training_notes if work.method.recipe else ()
    work.notes += convention_notes(work)
    work.notes += split_notes(work.method.rare_tokens, work.backbone.tokenizers())
    for prompt in work.dataset.prompts:
        lost = max(map(work.backbone.truncated, work.method.prompts(prompt, work.dataset).values()))
        if lost:
            work.notes.append(f"prompt cut by {lost} tokens, its end token kept: {prompt!r}")


def possible(work: Work) -> None:
    """Raises what stops a cell, as far as it can be known without the backbone."""
    contract(work.cell).check(work.cell)
    check_missing(work)
    _ = work.metrics, work.sampler, work.trainer
    lacks = work.method.lacks(work.dataset)
    if lacks:
        raise Impossible(
            f"Method {work.cell.method['name']} needs {lacks}; dataset {work.dataset.name} "
            f"provides {', '.join(sorted(work.dataset.provides)) or 'nothing'}."
        )
    words_needed(work)
    work.specs()


def words_needed(work: Work) -> None:
    """Raises Impossible when a method would train on the placeholders of `dataset=folder` instead of words."""
    dataset, method = work.dataset, work.method
    if method.recipe is None or dataset.name != FOLDER:
        return
    lacking = ["dataset.noun=dog (what the images show)"] if dataset.noun == schema.describe(FOLDER)["noun"] else []
    if "style_words" in method.words and not dataset.style_words:
        lacking.append("'dataset.style_words=in ink style' (what the style is called)")
    if lacking:
        raise Impossible(
            f"Method {work.cell.method['name']} trains with words for your own images, and dataset {dataset.name} has "
            f"none; type {' and '.join(lacking)}."
        )


def convention_notes(work: Work) -> list[str]:
    """One note of what a flow model leaves open, and where the cell's adapters are; none for other models."""
    backbone, places = work.backbone, {}
    said = [f"{what} ({how})" for what, how in backbone.conventions().items()]
    for spec in work.specs().values():
        if isinstance(spec, AdapterSpec) and spec.file is None:
            places[str(spec.where)] = f"adapters at {spec.where} ({len(backbone.sites(spec.where))} layers)"
    return [f"{CONVENTION}{backbone.name}: {', '.join([*said, *places.values()])}"] if said else []


def token_notes(unbound: Unbound, dataset: Dataset) -> list[str]:
    """How many texts get no rare token for want of the class word. Raises BenchError when no caption gets it."""
    captions, prompts, noun = unbound.captions, unbound.prompts, dataset.noun
    remedy = f"the class word {noun!r} is not in them"
    if captions and len(captions) == unbound.of:
        raise BenchError(
            f"None of the {unbound.of} captions holds the class word {noun!r}, so no image would be bound to the rare "
            f"token, first {captions[0]!r}; write it into the captions, or type dataset.noun=<a word of theirs>."
        )
    notes = []
    if captions:
        notes.append(f"{len(captions)} of {unbound.of} captions get no rare token: {remedy}, first {captions[0]!r}")
    if prompts:
        count = f"{len(prompts)} of {len(dataset.prompts)} prompts get no rare token"
        notes.append(f"{count}: {remedy}, first {prompts[0]!r}; write {{noun}} into dataset.prompts")
    return notes
