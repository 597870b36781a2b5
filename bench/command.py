"""The command `t2i-bench`, the same as `python -m bench`: runs and sweeps, or one of the verbs.

t2i-bench method=pair dataset=halftone seed=0        a run; with -m a sweep
t2i-bench list methods                               what there is: methods, datasets, metrics, backbones, experiments
t2i-bench table | claims | ranks | report | grid | status | fetch | doctor | study | stylize | tokens | export | rm
                                                     | merge ... each has --help
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from bench import paths

VERBS = ("table", "claims", "report", "grid", "status", "fetch", "doctor", "study", "stylize", "tokens", "export", "rm",
         "merge", "ranks", "listing")  # fmt: skip
SAME = {"list": "listing"}  # a verb that is no name for a module


def main(arguments: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if arguments is None else arguments)
    paths.leave_working_directory()
    verb = SAME.get(words[0], words[0]) if words else ""
    if words[:1] == ["--version"]:
        from importlib.metadata import version

        print(f"t2i-bench {version('t2i-bench')}")
    elif verb in VERBS:
        sys.argv = [f"t2i-bench {words[0]}", *words[1:]]
        runpy.run_module(f"bench.{verb}", run_name="__main__")
    elif words and words[0].isalpha():
        known = ", ".join([*VERBS[:-1], *SAME])
        sys.exit(f"bench: no command {words[0]!r}; commands are {known}. A run is: method=pair dataset=halftone.")
    else:
        from bench.runs import start

        sys.argv = [sys.argv[0], *words]
        start()
