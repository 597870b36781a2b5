"""t2i-bench claims experiment=claims: what the records say of the claims that an experiment declares.

Each claim has its estimate, 95 % interval, p (Holm over the declared claims alone), its status (shown, opposite shown,
not shown), the smallest gap that the design could have shown with 80 % power, and the commands of its cells. Further
words are overrides of all cells, such as backbone=sd15.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench import paths
from bench.contracts import BenchError
from bench.environment import one_sentence
from bench.files import atomic_write


def parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(prog="python -m bench.claims", description="The answers to declared claims.")
    parse.add_argument("words", nargs="+", metavar="experiment=NAME", help="and overrides of all cells: backbone=sd15")
    parse.add_argument("--results", type=Path, default=paths.results_folder(), help="folder of the records")
    parse.add_argument("--csv", type=Path, metavar="FILE", help="also write a line for each claim")
    return parse


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    names = [word.removeprefix("experiment=") for word in options.words if word.startswith("experiment=")]
    if len(names) != 1:
        raise BenchError(f"{' '.join(options.words)} was requested; type one experiment=NAME, and overrides after it.")
    from bench.analysis import claim_answers, claim_text

    words = [word for word in options.words if not word.startswith("experiment=")]
    found = claim_answers.answered(names[0], options.results, words)
    print(claim_text.text(found))
    if options.csv:
        atomic_write(options.csv, claim_text.frame(found).to_csv(index=False).encode())


if __name__ == "__main__":
    with one_sentence("bench.claims"):
        main()
