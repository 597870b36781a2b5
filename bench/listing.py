"""`t2i-bench list methods|datasets|metrics|backbones|experiments [--json]`: one line for each, with what it needs.

A user's own methods and metrics are read as text: only a run imports them.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import paths
from bench.class_source import class_source, constant, is_own
from bench.errors import BenchError

PAPER = re.compile(r"arXiv (\d{4}\.\d{4,5})")
WEIGHTS = re.compile(r"\w[\w.-]*(/[\w.-]+)+")  # a folder, a file, or a place in a hub repository
Row = dict[str, Any]


def _configurations(group: str) -> Iterator[Path]:
    """The shipped and the user's own, by name."""
    found = {path.stem: path for path in sorted((paths.CONF / group).glob("*.yaml"))}
    own = paths.own("conf")
    if own is not None:
        found = {path.stem: path for path in sorted((own / group).glob("*.yaml"))} | found
    yield from found.values()


def _header(path: Path) -> str:
    """The comment at the head of a configuration, up to its command, as one line."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    head = []
    for line in lines:
        if not line.startswith("#") or line.startswith(("# Command", "#   ")):
            break
        head.append(line.lstrip("# ").strip())
    return " ".join(head)


def _sentence(text: str, ends: str = ".:") -> str:
    """The first sentence, or what stands before a colon. A full stop within a name or number does not end it."""
    return re.split(rf"(?<=[a-z)\d])[{ends}] (?=[A-Z])", text, maxsplit=1)[0].rstrip(".")


def _plain(path: Path) -> Mapping[str, Any]:
    """The settings of a configuration over those that its `defaults` name in the same folder."""
    import yaml

    settings = yaml.safe_load(path.read_text()) or {}
    merged: Row = {}
    for name in settings.pop("defaults", ()):
        if isinstance(name, str) and name != "_self_":
            merged |= _plain(path.with_name(f"{name}.yaml"))
    return merged | settings


def _row(name: str, what: str, missing: str | None, needs: Sequence[str] = (), paper: str | None = None) -> Row:
    return {"name": name, "what": what, "paper": paper, "needs": list(needs), "here": missing is None,
            "missing": missing}  # fmt: skip


def methods() -> Iterator[Row]:
    for path in _configurations("method"):
        header, settings = _header(path), _plain(path)
        paper = PAPER.search(header)
        needs = sorted(constant(settings["_target_"], "needs") or ())
        yield _row(path.stem, _sentence(header), _missing(settings), needs, paper and f"arXiv {paper[1]}")


def datasets() -> Iterator[Row]:
    from bench.data import schema, sources

    for name in schema.names():
        try:
            spec = schema.describe(name)
        except BenchError as error:
            yield _row(name, "cannot be read", str(error))
            continue
        what = f"{spec['noun']}, {spec['style_words'] or 'no style words'}"
        files = sources.files(spec)
        needs = [_count(len(files), "file")] if files else []
        yield _row(name, what, sources.missing(spec), needs) | {"licence": spec["licence"], "source": spec["source"]}


def metrics() -> Iterator[Row]:
    for path in _configurations("metrics"):
        for key, settings in _plain(path).items():
            if isinstance(settings, Mapping) and "_target_" in settings:
                yield _metric(f"{path.stem}/{key}", settings)


def _metric(name: str, settings: Mapping[str, Any]) -> Row:
    from bench.settings import build

    if is_own(settings["_target_"]):
        found = class_source(settings["_target_"])
        what = (found and ast.get_docstring(found[0])) or ""
        values, missing = constant(settings["_target_"], "higher_is_better") or (), _missing(settings)
    else:
        made = build(settings)
        what, values, missing = type(made).__doc__ or "", made.higher_is_better, made.missing()
    what = _sentence(" ".join(what.partition("\n\n")[0].split()))
    networks = [str(settings[key]["weights"]) for key in settings if "weights" in _mapping(settings[key])]
    return _row(name, f"{', '.join(values) or name.rpartition('/')[2]}: {what}", missing, networks)


def backbones() -> Iterator[Row]:
    from bench.backbones import missing

    for path in _configurations("backbone"):
        settings = _plain(path)
        size = settings.get("download_gb")
        needs = [f"{size:g} GB"] if size else []
        yield _row(path.stem, _sentence(_header(path), ends="."), missing(settings), needs)


def experiments() -> Iterator[Row]:
    for path in _configurations("experiment"):
        settings = _plain(path)
        varied = _mapping(_mapping(_mapping(settings.get("hydra")).get("sweeper")).get("params"))
        counts = [_count(len(str(value).split(",")), key) for key, value in varied.items()]
        missing = next(filter(None, map(_missing_dataset, str(varied.get("dataset", "")).split(","))), None)
        yield _row(path.stem, _sentence(_header(path), ends="."), missing, counts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _missing_dataset(name: str) -> str | None:
    from bench.data import schema, sources

    return sources.missing(schema.describe(name)) if name in schema.names() else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


# --- what is needed, without importing a method


def _missing(settings: Any) -> str | None:
    """What of the weights that the settings name, by a path or by an id of conf/weights.yaml, is not here."""
    from bench.data.weights import entry_of, weights, weights_at, weights_place

    registry = weights()
    for value in _strings(settings):
        try:
            if value in registry and "hub" not in entry_of(value) and weights_place(entry_of(value)) is None:
                return f"the weights {value} are not on this machine; type python -m bench.fetch weights {value}."
            if WEIGHTS.fullmatch(value):
                weights_at(value)
        except BenchError as error:
            return str(error)
    return None


def _strings(value: Any) -> Iterator[str]:
    """All words of nested settings but the names of classes."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for key, item in value.items() if key != "_target_" for text in _strings(item))
    elif isinstance(value, list):
        yield from (text for item in value for text in _strings(item))


def definitions() -> list[str]:
    """A line for each column of the table: its id, heading, and what it is."""
    from bench.analysis import quantities

    found = [(name, quantities.heading(name).text, what) for name, what in quantities.definitions()]
    widths = [max(len(line[i]) for line in found) for i in range(2)]
    return [f"  {name:{widths[0]}}  {heading:{widths[1]}}  {what}" for name, heading, what in found]


KINDS: dict[str, Callable[[], Iterator[Row]]] = {
    "methods": methods, "datasets": datasets, "metrics": metrics, "backbones": backbones, "experiments": experiments,
}  # fmt: skip


def line(row: Row, width: int) -> str:
    extra = [row["paper"], row.get("licence"), f"needs {', '.join(row['needs'])}" if row["needs"] else None]
    extra.append(None if row["here"] else "not on this machine")
    return f"{row['name']:{width}}  {'; '.join([row['what'], *filter(None, extra)])}"


def main(arguments: Sequence[str] | None = None) -> None:
    parse = argparse.ArgumentParser(prog="t2i-bench list", description=__doc__)
    parse.add_argument("kind", choices=list(KINDS))
    parse.add_argument("--json", action="store_true", help="all fields, with the reason where something is missing")
    chosen = parse.parse_args(arguments)
    rows = list(KINDS[chosen.kind]())
    if chosen.json:
        print(json.dumps(rows, indent=1))
    else:
        width = max(len(row["name"]) for row in rows)
        print("\n".join(line(row, width) for row in rows))
    if chosen.kind == "metrics" and not chosen.json:
        print("\nColumns of the table:")
        print("\n".join(definitions()))


if __name__ == "__main__":
    main()
