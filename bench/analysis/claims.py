"""The claims of an experiment: what a paper says of two methods, declared before the numbers are looked at.

`claims` of conf/experiment/<name>.yaml is a list; an entry has

    id, sentence     its name, and what is claimed, in words
    source, reached  paper and section, and what was read of it: paper, abstract or code
    kind             difference (the default), equivalence, bound, slope or monotone (`analysis.contrasts`)
    metric           the number that is compared, with [network] where there are several
    a, b             overrides that make the cells of A and B, such as "method=dreambooth method.prior_weight=0"
    direction        what is claimed of A, or of its slope: higher, lower, or nearer (to the metric's ideal)
    margin           of an equivalence or a bound; of a difference the gap that is too small to matter
    near             true: an equivalence of distances to the ideal
    matched          the metric at whose equal value A, over its strength sweep, is compared with B
    strengths        of A, for slope and monotone; default: its strength sweep
    datasets, seeds  the population
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from bench import paths
from bench.analysis.contrasts import DIRECTIONS, KINDS
from bench.contracts import BenchError

OTHER_KEYS = ("plan", "wait", "workers", "mix_code", "sweep", "pack", "results", "tracker", "hydra", "metrics")
REACHED = ("paper", "abstract", "code")
OVER_STRENGTHS = ("slope", "monotone")
ALONE = ("bound", *OVER_STRENGTHS)  # kinds that need no B


@dataclass(frozen=True)
class Claim:
    """One declared comparison, as its yaml has it."""

    id: str
    sentence: str
    source: str
    reached: str
    metric: str
    a: str
    datasets: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    kind: str = "difference"
    b: str | None = None
    direction: str = "higher"
    margin: float = 0.0
    near: bool = False
    matched: str | None = None
    strengths: tuple[float, ...] = ()

    @property
    def metrics(self) -> list[str]:
        return [self.metric, *([self.matched] if self.matched else [])]

    def words(self, side: str) -> list[str]:
        """The overrides of a side's cells, without dataset and seed."""
        text = self.a if side == "a" else self.b
        own = shlex.split(text or "")
        if self.kind in OVER_STRENGTHS or (self.matched and side == "a"):
            listed = ",".join(f"{strength:g}" for strength in self.strengths)
            own.append(f"strength=[{listed}]" if listed else "strength=sweep")
        return own

    @property
    def sides(self) -> list[str]:
        return ["a", *(["b"] if self.b else [])]


def declared(experiment: str) -> list[Claim]:
    """The claims of conf/experiment/<name>.yaml, none where it has none. Raises BenchError for one that is wrong."""
    import yaml

    path = paths.configuration(f"experiment/{experiment}.yaml")
    if not path.is_file():
        raise BenchError(
            f"experiment={experiment} was requested and there is no {path}; see t2i-bench list experiments."
        )
    return checked((yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("claims") or [])


def checked(found: Any) -> list[Claim]:
    """The claims of a list of mappings. Raises BenchError for one that is wrong."""
    if not isinstance(found, list):
        raise BenchError("The claims of an experiment are no list; write '- id: ...' for each claim.")
    claims = [_claim(entry, f"Claim {number} of the experiment") for number, entry in enumerate(found, 1)]
    ids = [claim.id for claim in claims]
    for twice in (name for name in ids if ids.count(name) > 1):
        raise BenchError(f"Two claims of an experiment have the id {twice}; give each its own.")
    return claims


def overrides(claims: Sequence[Claim]) -> list[list[str]]:
    """The overrides of every cell that the claims need, each list once."""
    made = [
        [*claim.words(side), f"dataset={name}", f"seed={seed}"]
        for claim in claims
        for side in claim.sides
        for name in claim.datasets
        for seed in claim.seeds
    ]
    return [list(words) for words in dict.fromkeys(map(tuple, made))]


def about(cells: set[tuple[str, str]]) -> list[str]:
    """The experiments that declare claims about any of these cells, (method, dataset)."""
    return [name for name in with_claims() if cells & cells_of(declared(name))]


def cells_of(claims: Sequence[Claim]) -> set[tuple[str, str]]:
    """(method, dataset) of every cell that the claims need."""
    return {
        (word.removeprefix("method="), name)
        for claim in claims
        for side in claim.sides
        for word in claim.words(side)
        if word.startswith("method=")
        for name in claim.datasets
    }


def shared(words: Sequence[str]) -> list[str]:
    """Of the overrides of a sweep, those that hold for the cells of claims, too: not what claims say themselves, nor
    how the sweep is run."""
    other = {"experiment", "method", "dataset", "seed", "strength", "group", "mode", *OTHER_KEYS}
    keys = [(word.partition("=")[0].lstrip("+~"), word) for word in words]
    return [word for key, word in keys if key.partition(".")[0] not in other]


def with_claims() -> list[str]:
    """The experiments that declare claims, shipped ones and the user's own."""
    folders = [paths.CONF, *([own] if (own := paths.own("conf")) else [])]
    files = [file for folder in folders for file in sorted((folder / "experiment").glob("*.yaml"))]
    return list(dict.fromkeys(file.stem for file in files if "\nclaims:" in file.read_text(encoding="utf-8")))


def _claim(entry: Any, where: str) -> Claim:
    if not isinstance(entry, Mapping):
        raise BenchError(f"{where} is {entry!r}, no mapping; write id, sentence, source, reached, metric, a, datasets.")
    known = {field.name: field for field in fields(Claim)}
    for key in (key for key in entry if key not in known):
        raise BenchError(f"{where} has the key {key}; keys are {', '.join(known)}.")
    for name in (n for n, field in known.items() if field.default is MISSING and not entry.get(n)):
        raise BenchError(f"{where} has no {name}; add it.")
    values = {key: _typed(key, value, where) for key, value in entry.items()}
    claim = Claim(**values)
    _check(claim, f"Claim {claim.id}")
    return claim


def _typed(key: str, value: Any, where: str) -> Any:
    """The value of a key; lists become tuples."""
    kinds: Mapping[str, Any] = {"seeds": int, "strengths": (int, float), "datasets": str}
    if key in kinds:
        listed = value if isinstance(value, list) else [value]
        if not listed or not all(isinstance(v, kinds[key]) and not isinstance(v, bool) for v in listed):
            raise BenchError(f"{where} has {key}: {value}; write a list such as {key}: {_example(key)}.")
        return tuple(listed)
    kind: Any = {"margin": (int, float), "near": bool}.get(key, str)
    if value is not None and (not isinstance(value, kind) or (key == "margin" and isinstance(value, bool))):
        raise BenchError(f"{where} has {key}: {value}; write {_example(key)}.")
    return value


def _example(key: str) -> str:
    examples = {"seeds": "[0, 1, 2]", "strengths": "[1, 2]", "datasets": "[halftone]", "margin": "a number"}
    return examples.get(key, "true or false" if key == "near" else "text")


def _check(claim: Claim, where: str) -> None:
    choices: Sequence[tuple[str, str, Sequence[str]]] = [
        ("kind", claim.kind, KINDS),
        ("direction", claim.direction, DIRECTIONS),
        ("reached", claim.reached, REACHED),
    ]
    for key, value, known in choices:
        if value not in known:
            raise BenchError(f"{where} has {key}: {value}; write one of {', '.join(known)}.")
    if not claim.b and claim.kind not in ALONE:
        raise BenchError(f"{where} is of the kind {claim.kind} and has no b; name what A is compared with.")
    if claim.kind == "equivalence" and not claim.margin > 0:
        raise BenchError(f"{where} is an equivalence with margin: {claim.margin:g}; give one above 0.")
    if claim.direction == "nearer" and claim.kind != "difference":
        raise BenchError(f"{where} has direction: nearer and is of the kind {claim.kind}; nearer is for a difference.")
    if claim.matched and claim.kind not in ("difference", "equivalence"):
        raise BenchError(f"{where} is of the kind {claim.kind} and is matched; only difference and equivalence can be.")
    for side in claim.sides:
        _check_side(claim, side, where)
    _check_names(claim, where)


def _check_side(claim: Claim, side: str, where: str) -> None:
    names = [word.removeprefix("method=") for word in claim.words(side) if word.startswith("method=")]
    if len(names) != 1:
        raise BenchError(f"{where} has {side}: {getattr(claim, side)}, without a method; write {side}: method=NAME ...")
    if not paths.configuration(f"method/{names[0]}.yaml").is_file():
        raise BenchError(f"{where} has {side}: method={names[0]}, which is no method; see t2i-bench list methods.")


def _check_names(claim: Claim, where: str) -> None:
    from bench.analysis import quantities
    from bench.data import schema

    for name in (name for name in claim.datasets if name not in schema.names()):
        raise BenchError(f"{where} names the dataset {name}, which does not exist; see t2i-bench list datasets.")
    for metric in (metric.partition(" [")[0] for metric in claim.metrics):
        known = metric in quantities.quantities() or metric in quantities.COSTS
        if not known and not paths.own("metrics"):  # a metric of the user may have any name
            raise BenchError(f"{where} names the metric {metric}, which does not exist; see t2i-bench list metrics.")
