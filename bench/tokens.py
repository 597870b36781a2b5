"""Rare tokens of a backbone's tokenizer; `backbones.rare_tokens` says what makes a word rare.

python -m bench.tokens                      what sks, sbu and zwx are on `mini`, and a list of others
python -m bench.tokens sd15 sks qwz         the same for words of yours on another backbone of conf/backbone
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench.backbones.rare_tokens import LONGEST, NAMED, pieces, rare, tokenizer_of
from bench.contracts import BenchError
from bench.environment import one_sentence


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.tokens", description="Rare tokens of a backbone's tokenizer."
    )
    parser.add_argument("backbone", nargs="?", default="mini", help="of conf/backbone, or a folder or hub name")
    parser.add_argument("words", nargs="*", default=list(NAMED), help="words to look at")
    parser.add_argument("--longest", type=int, default=LONGEST, help="letters of the words that are searched")
    parser.add_argument("--count", type=int, default=40, help="how many to show, the rarest first")
    args = parser.parse_args(argv)
    try:
        tokenizer = tokenizer_of(args.backbone)
    except BenchError as error:
        print(f"bench.tokens: {error}", file=sys.stderr)
        return 1
    for word in args.words:
        found = pieces(tokenizer, word)
        print(f"{word:8} {len(found)} piece{'s' * (len(found) != 1)}: {' '.join(found)}")
    words = rare(tokenizer, args.longest)
    print(f"{len(words)} meaningless words of one piece, rarest first: {' '.join(words[: args.count])}")
    return 0


if __name__ == "__main__":
    with one_sentence("bench.tokens"):
        failed = main()
    sys.exit(failed)
