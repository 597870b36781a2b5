"""Settings with a fixed set of values, and the check of a value against the annotation of its field.

A class says what a field takes by its annotation: `Literal["lora", "full"]`, `int | None`, or a name of this module.
What `bench` itself reads is checked when a configuration is composed, before anything is imported or started.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from bench.errors import BenchError

Mode = Literal["cached", "retry", "force"]
MissingMetrics = Literal["fail", "skip"]
Plan = Literal[False, True, "probe"]
Pack = Literal["auto"]
DType = Literal["float16", "bfloat16", "float32", "float64"]
Scheduler = Literal["ddim", "euler", "dpm++", "pndm"]
TimeSampling = Literal["uniform", "logit_normal"]
Quantize = Literal["nf4", "int8", "fp8"]
LearningRate = Literal["constant", "cosine"]
Compile = Literal["auto", True, False, "graphs"]
Optimizer = Literal["adamw", "adamw8bit", "prodigy"]
Tracking = Literal["online", "offline", "disabled"]
Role = Literal["style", "references"]  # of the images that a method learns from or shows
DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")

AT_ENTRY = {  # a cell's settings, and how a sweep is run (conf/config.yaml)
    "mode": "Mode",
    "missing_metrics": "MissingMetrics",
    "group": "str | None",
    "pack": "int | Pack",
    "plan": "Plan",
    "wait": "bool",
    "workers": "int | None",
    "mix_code": "bool",
}
OF_PARTS = {"backbone.dtype": "DType", "sampler.scheduler": "Scheduler", "trainer.compile": "Compile"}
OF_PARTS |= {"tracker.mode": "Tracking", "backbone.time_sampling": "TimeSampling"}
OF_PARTS |= {"backbone.quantize": "Quantize | None", "backbone.variant": "str | None"}
OF_PARTS |= {"trainer.optimizer": "Optimizer"}
POSITIVE = ("pack", "workers")
NAMED = ("method", "dataset", "backbone")  # their names stand in the run id, which is the name of a folder
LONGEST_NAME = 80

KINDS: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "bool": bool, "None": type(None)}
WORDS = {"int": "a whole number", "float": "a number", "str": "a word", "bool": "true or false", "None": "null"}


def check(settings: Mapping[str, Any]) -> None:
    """Check a composed configuration. Raises BenchError. Parts of a user's own class are left to that class."""
    for key, annotation in AT_ENTRY.items():
        if key in settings:
            check_value(key, settings[key], annotation)
    for key in POSITIVE:
        if isinstance(settings.get(key), int) and settings[key] < 1:
            raise BenchError(f"{key}={settings[key]} was requested; type at least 1.")
    for part in NAMED:
        check_name(part, settings)
    for place, annotation in OF_PARTS.items():
        part, _, key = place.partition(".")
        if key in _ours(settings, part):
            check_value(place, settings[part][key], annotation)
    if "device" in _ours(settings, "backbone"):
        check_device("backbone.device", settings["backbone"]["device"])


def _ours(settings: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    found = settings.get(part)
    known = isinstance(found, Mapping) and str(found.get("_target_", "bench.")).startswith("bench.")
    return found if known and found else {}


def check_value(place: str, value: Any, annotation: str) -> None:
    """Raises BenchError for a value that the annotation does not allow; annotations of other kinds allow everything."""
    kinds, values = _allowed(annotation)
    if not (kinds or values) or any(_is(value, kind) for kind in kinds):
        return
    if not any(type(value) is type(one) and value == one for one in values):
        raise BenchError(f"{place}={value} was requested; {_takes(kinds, values)}.")


def check_name(part: str, settings: Mapping[str, Any]) -> None:
    """Raises BenchError unless the part has a name that can stand in the name of a folder."""
    found = settings.get(part)
    if not isinstance(found, Mapping):
        raise BenchError(f"{part}={found} was requested; type {part}=<name>, as t2i-bench list {part}s shows them.")
    name = found.get("name")
    plain = isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isprintable()
    if not plain or ("/" in str(name) and part != "dataset"):
        raise BenchError(
            f"{part}.name={str(name)[:LONGEST_NAME]!r} was requested; type a name of 1 to {LONGEST_NAME} letters "
            "without a slash."
        )


def check_device(place: str, value: Any) -> None:
    """Raises BenchError for what is no device of ours."""
    if not isinstance(value, str) or not DEVICE.fullmatch(value):
        raise BenchError(f"{place}={value} was requested; type {place}=auto, cpu, mps or cuda (with a number: cuda:1).")


@functools.cache
def _allowed(annotation: str) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Names of plain types, and single values; nothing where some part of the annotation is neither."""
    kinds: list[str] = []
    values: list[Any] = []
    for part in _parts(ast.parse(annotation.strip(), mode="eval").body):
        name = ast.unparse(part)
        alias = get_args(globals().get(name)) if name.isidentifier() else ()
        if name in KINDS:
            kinds.append(name)
        elif alias:
            values += alias
        elif isinstance(part, ast.Subscript) and ast.unparse(part.value) == "Literal":
            found = ast.literal_eval(part.slice)
            values += found if isinstance(found, tuple) else (found,)
        else:
            return (), ()
    return tuple(kinds), tuple(values)


def _parts(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return [*_parts(node.left), *_parts(node.right)]
    return [node]


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, KINDS[kind]) and (not isinstance(value, bool) or kind == "bool")


def _takes(kinds: tuple[str, ...], values: tuple[Any, ...]) -> str:
    """ "it takes a number or null", "type lora or full"."""
    words = [str(value).lower() if isinstance(value, bool) else str(value) for value in values]
    words += [WORDS[kind] for kind in kinds]
    listed = " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 2 else words)
    return f"{'type' if values else 'it takes'} {listed}"
