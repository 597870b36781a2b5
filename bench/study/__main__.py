"""python -m bench.study make --out study         then, with the files that came back:
python -m bench.study read --key study/key.json answers/*.json
python -m bench.study judge --page study/study.html --out answers/judge.json     a model as one more rater
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import paths
from bench.contracts import BenchError
from bench.environment import one_sentence

if TYPE_CHECKING:
    from bench.study.answers import Answers


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(prog="python -m bench.study", description="A blind preference study as a page.")
    parts = parse.add_subparsers(dest="part", required=True)
    make = parts.add_parser("make", help="write study.html (to give away) and key.json (to keep)")
    make.add_argument("--results", type=Path, default=paths.results_folder(), help="folder of the records")
    make.add_argument("--where", nargs="+", action="extend", default=[], metavar="COLUMN=A,B", help="as bench.table")
    make.add_argument("--out", type=Path, required=True, help="folder for both files")
    make.add_argument("--trials", type=int, default=40, help="comparisons")
    make.add_argument("--checks", type=int, default=4, help="attention checks besides them")
    make.add_argument("--repeats", type=int, default=4, help="comparisons shown again with sides exchanged")
    make.add_argument("--seed", type=int, default=0, help="decides pairs, sides and order")
    make.add_argument("--question", help="what raters are asked")
    make.add_argument("--no-example", action="store_true", help="do not show the training images")
    judge = parts.add_parser("judge", help="ask a vision-language model the same comparisons")
    judge.add_argument("--page", type=Path, required=True, help="the study.html that raters see")
    judge.add_argument("--out", type=Path, required=True, help="its result file, for read")
    judge.add_argument("--model", metavar="DIR", help="another model: a folder in transformers' format")
    read = parts.add_parser("read", help="agreement, strengths and the metrics beside them")
    read.add_argument("files", nargs="+", type=Path, help="result files that raters saved")
    read.add_argument("--key", type=Path, required=True)
    read.add_argument("--results", type=Path, default=paths.results_folder(), help="folder of the records")
    read.add_argument("--missed", type=int, default=0, help="attention checks that a rater may miss")
    read.add_argument("--keep", action="store_true", help="keep the judges' agreement in --results, for tables")
    read.add_argument("--csv", type=Path, metavar="FILE", help="also write strengths and metrics")
    return parse


def main(arguments: Sequence[str] | None = None) -> None:
    requested = parser().parse_args(arguments)
    {"make": _make, "judge": _judge, "read": _read}[requested.part](requested)


def _make(requested: Any) -> None:
    from bench.study.make import QUESTION, Wishes, make

    if not requested.out.parent.is_dir():
        raise BenchError(f"{requested.out.parent} is no folder that exists; make it first.")
    numbers = requested.trials, requested.checks, requested.repeats, requested.seed
    wishes = Wishes(
        requested.results, requested.where, *numbers, requested.question or QUESTION, not requested.no_example
    )
    page, key = make(wishes, requested.out)
    print(f"{page} to give away ({page.stat().st_size / 1e6:.1f} MB), {key} to keep")


def _judge(requested: Any) -> None:
    from bench.files import check_place
    from bench.study.judge import configured, judge

    check_place("--out", requested.out)
    count = judge(requested.page, configured(requested.model), requested.out)
    print(f"{count} answers in {requested.out}; give it to python -m bench.study read, with those of people")


def _read(requested: Any) -> None:
    from bench.files import atomic_write, check_place
    from bench.reading import spreadsheet
    from bench.study.agreement import agreements, beside, keep
    from bench.study.answers import read
    from bench.study.strengths import metrics_agree, strengths, with_metrics

    check_place("--csv", requested.csv)
    answers = read(requested.key, requested.files, requested.missed)
    if not answers.votes:
        raise BenchError(
            "No answer of a person is left: give files of people, who missed few attention checks; see --missed."
        )
    joined = with_metrics(strengths(answers.votes, answers.items), answers, requested.results)
    print(_shown(answers, joined, metrics_agree(answers, requested.results, joined)))
    if answers.judges:
        found = agreements(answers)
        print(f"\n{_text(beside(joined, answers))}\n\n{_text(found)}")
        if requested.keep:
            print(f"\nThe agreement is kept in {keep(answers, found, requested.results)}.")
    if requested.csv:
        atomic_write(requested.csv, spreadsheet(joined).to_csv(index=False).encode())


def _shown(answers: Answers, joined: Any, agreement: Any) -> str:
    """All tables as one text."""
    import pandas as pd

    from bench.analysis import shown_columns
    from bench.study.answers import alpha

    kept = sum(rater.kept for rater in answers.raters)
    head = f"{answers.key['question']}\n{kept} of {len(answers.raters)} raters kept, {len(answers.votes)} votes; "
    known = alpha(answers.votes)
    head += f"Krippendorff's alpha {known:.3f}" if known == known else "no two raters to compare"
    columns = ["item", "strength", "low", "high", "win_rate", "comparisons"]
    metrics = [c for name in shown_columns.headline() for c in joined if shown_columns._bare(c) == name]
    parts = [head, _text(pd.DataFrame(answers.raters)), _text(joined[[*columns, *metrics]])]
    return "\n\n".join([*parts, _text(agreement)] if len(agreement) else parts)


def _text(frame: Any) -> str:
    import tabulate

    return tabulate.tabulate(frame, headers="keys", showindex=False, floatfmt=".4g", missingval="")


if __name__ == "__main__":
    with one_sentence("bench.study"):
        main()
