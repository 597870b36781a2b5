"""What is missing on this machine for a cell, all of it at once, with one command that stages it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from bench.errors import BenchError, Unavailable

if TYPE_CHECKING:
    from bench.steps.work import Work

FETCH = re.compile(r"python -m bench\.fetch (?:weights ([\w.-]+)|([\w./-]+))")
HUB = re.compile(r"hf download ([\w./-]+)( --include '[^']*')?")
INSTALL = re.compile(r"uv pip install ([\w-]+)")
REMEDY = re.compile(r"; (?:type|on one|on a machine) ")  # where a sentence turns from what is missing to what to do
SKIP = "Or leave such metrics out with missing_metrics=skip."


def check_missing(work: Work) -> None:
    """Raises Unavailable when dataset, method or metrics of a cell lack files, BenchError for a dataset that is wrong.

    Weights of the backbone are listed with them. Alone they are no reason to stop, as the hub may give them.
    """
    from bench.data import sources

    dataset, metrics = list(_of_dataset(work)), _of_metrics(work)
    found = [*dataset, *_of_method(work), *_of_trainer(work), *metrics]
    if found:
        wrong = dataset and not sources.absent(dict(work.cell.dataset))
        raise (BenchError if wrong else Unavailable)(message([*found, *_of_backbone(work)], bool(metrics)))


def all_missing(work: Work) -> list[str]:
    """What is missing for a cell, weights of its backbone included, a sentence each."""
    return list(
        dict.fromkeys(
            [*_of_dataset(work), *_of_method(work), *_of_trainer(work), *_of_metrics(work), *_of_backbone(work)]
        ),
    )


def message(sentences: Sequence[str], with_metrics: bool = False) -> str:
    """A single sentence as it is; several without their remedies, with one command for all of them."""
    found, skip = list(dict.fromkeys(sentences)), f"\n{SKIP}" if with_metrics else ""
    if len(found) == 1:
        return found[0] + skip.replace("\n", " ")
    listed = "".join(f"\n  {without_remedy(sentence)}" for sentence in found)
    return (
        f"{len(found)} things are missing for this run:{listed}\nTo stage them all, type {staging_command(found)}{skip}"
    )


def without_remedy(sentence: str) -> str:
    return REMEDY.split(sentence)[0].rstrip(".")


def staging_command(sentences: Sequence[str]) -> str:
    """One line of shell that stages what the sentences name."""
    text = "\n".join(sentences)
    fetched = list(dict.fromkeys(FETCH.findall(text)))
    names = [name.rstrip(".") for _, name in fetched if name] + ["weights"] * any(id for id, _ in fetched)
    names += [id.rstrip(".") for id, _ in fetched if id]
    lines = [f"python -m bench.fetch {' '.join(names)}"] if fetched else []
    for repo, only in dict.fromkeys(HUB.findall(text)):
        lines.append(f"hf download {repo}{only} --local-dir $BENCH_MIRROR/weights/{repo}")
    packages = list(dict.fromkeys(INSTALL.findall(text)))
    lines += [f"uv pip install {' '.join(packages)}"] if packages else []
    return " && ".join(lines)


# --- the parts


def _of_dataset(work: Work) -> Iterator[str]:
    from bench.data import sources

    if sentence := sources.missing(dict(work.cell.dataset)):
        yield sentence


def _of_backbone(work: Work) -> Iterator[str]:
    from bench import backbones

    if sentence := backbones.missing(dict(work.cell.backbone)):
        yield sentence


def _of_method(work: Work) -> Iterator[str]:
    if sentence := work.method.missing():
        yield sentence


def _of_trainer(work: Work) -> Iterator[str]:
    from bench.training.settings import missing

    if work.method.recipe is not None and (sentence := missing(work.trainer.optimizer)):
        yield sentence


def _of_metrics(work: Work) -> list[str]:
    from bench.settings import build

    if work.cell.missing_metrics == "skip":
        return []
    metrics = (build(spec, f"metrics.{name}") for name, spec in work.cell.metrics.items())
    return [sentence for metric in metrics if (sentence := metric.missing())]
