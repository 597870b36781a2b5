"""Whether this machine measures right: python -m bench.doctor

Library versions and combinations that are known to be bad, the GPU, the offline mirror, weights by their hashes; and on
the networks that are here, identities (a distance of a thing to itself is zero) and published golden numbers, each with
its source. conf/doctor.yaml lists them. Prints one table; the exit status is 1 when something is wrong. What is only
absent is not wrong. It downloads nothing.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from bench.contracts import BenchError
from bench.data.files import human
from bench.data.weights import weights, weights_state
from bench.environment import failure, one_sentence
from bench.paths import CONF, cache_folder, mirror_folder
from bench.settings import build
from bench.store.provenance import PACKAGES

OK, NOTE, ABSENT, WRONG = "ok", "note", "absent", "WRONG"
STATES = {"here": OK, "hub": NOTE, "absent": ABSENT, "wrong": WRONG}  # of weights
UNREAD = "none"  # the loader of weights that this project does not read


@dataclass(frozen=True)
class Finding:
    area: str
    what: str
    state: str
    about: str


class Check(ABC):
    """Something that must hold on this machine."""

    what: str  # "LPIPS(x, x) = 0 on lpips-alex-256"

    @abstractmethod
    def missing(self) -> str | None:
        """A sentence that names what is not on this machine, or None."""

    @abstractmethod
    def run(self) -> tuple[bool, str]:
        """Whether it holds; and what was found, what is expected, and who says so."""


def examine() -> Iterator[Finding]:
    """Everything, in the order of the table."""
    import yaml

    requested = yaml.safe_load((CONF / "doctor.yaml").read_text())
    yield from libraries(requested["combinations"])
    yield machine()
    yield mirror()
    yield from (weight(id) for id, entry in weights().items() if entry["loader"] != UNREAD)
    yield from (checked(build(spec)) for spec in requested["checks"])
    yield Finding("golden", "other networks", NOTE, requested["no_golden_number"])


def libraries(combinations: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Versions in one line, then each known bad combination that is installed."""
    found = {name: _version(name) for name in PACKAGES}
    absent = [name for name, number in found.items() if number is None]
    listed = ", ".join(f"{name} {number}" for name, number in found.items() if number)
    yield Finding("libraries", "versions", OK, f"Python {platform.python_version()}, {listed}")
    if absent:
        yield Finding("libraries", "not installed", ABSENT, ", ".join(absent))
    bad = [entry for entry in combinations if _installed(entry["when"])]
    for entry in bad:
        names = " with ".join(f"{name} {_version(name)}" for name in entry["when"])
        yield Finding("libraries", names, NOTE, entry["problem"])
    if not bad:
        yield Finding("libraries", "combinations", OK, f"none of {len(combinations)} that are known to be bad")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _installed(when: Mapping[str, str]) -> bool:
    """Whether every package is here in a version that the specifier (">=1.18", "" for any) holds for."""
    from packaging.specifiers import SpecifierSet

    numbers = {name: _version(name) for name in when}
    return all(
        number is not None and SpecifierSet(when[name]).contains(number, prereleases=True)
        for name, number in numbers.items()
    )


def machine() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding("machine", "GPU", NOTE, "none that torch sees: networks run on the CPU, in float32")
    found = torch.cuda.get_device_properties(0)
    about = f"{found.name}, {human(found.total_memory)}; metrics run there in float32 without TF32"
    return Finding("machine", "GPU", OK, about)


def mirror() -> Finding:
    """The offline mirror and the cache."""
    try:
        folder = mirror_folder()
    except BenchError as error:
        return Finding("machine", "offline mirror", WRONG, str(error))
    if folder is None:
        about = f"BENCH_MIRROR is not set; files are looked for in {cache_folder()} alone"
        return Finding("machine", "offline mirror", NOTE, about)
    readable = os.access(folder, os.R_OK | os.X_OK)
    about = f"BENCH_MIRROR is {folder}" + ("" if readable else ", which cannot be read; correct its rights")
    return Finding("machine", "offline mirror", OK if readable else WRONG, about)


def weight(id: str) -> Finding:
    """One entry of the weights registry."""
    try:
        state, about = weights_state(id)
    except OSError as error:
        return Finding("weights", id, WRONG, str(failure(error) or error))
    if state == "absent":
        about = f"{weights()[id]['used_by']}; python -m bench.fetch weights {id}"
    return Finding("weights", id, STATES[state], about)


def checked(check: Check) -> Finding:
    try:
        lacking = check.missing()
        if lacking:
            return Finding("check", check.what, ABSENT, lacking.partition("; type")[0])  # a row above says what to type
        right, about = check.run()
    except (BenchError, OSError) as error:
        return Finding("check", check.what, WRONG, str(failure(error) or error))
    return Finding("check", check.what, OK if right else WRONG, about)


def main(argv: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(prog="python -m bench.doctor", description=(__doc__ or "").split("\n\n")[1]).parse_args(
        argv
    )
    from tabulate import tabulate

    found = list(examine())
    rows = [[finding.area, finding.what, finding.state, finding.about] for finding in found]
    widths = [None, 40, None, 90]
    print(tabulate(rows, ["", "what", "state", "found"], maxcolwidths=widths, disable_numparse=True))
    counts = {state: sum(finding.state == state for finding in found) for state in (OK, NOTE, ABSENT, WRONG)}
    print("\n" + ", ".join(f"{count} {state}" for state, count in counts.items()))
    return 1 if counts[WRONG] else 0


if __name__ == "__main__":
    with one_sentence("bench.doctor"):
        wrong = main()
    sys.exit(wrong)
