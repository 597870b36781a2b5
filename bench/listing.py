"""`t2i-bench list methods|datasets|metrics|backbones|experiments [--json]`: one line for each, with what it needs."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import paths
from bench.errors import BenchError

PAPER = re.compile(r"arXiv (\d{4}\.\d{4,5})")
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


def _sentence(text: str) -> str:
    """The first sentence. A full stop within a name or number does not end it."""
    return re.split(r"(?<=[a-z)\d])[.:] (?=[A-Z])", text, maxsplit=1)[0].rstrip(".")


def _plain(path: Path) -> Mapping[str, Any]:
    """The settings of a configuration over those that its `defaults` name in the same folder."""
    import yaml

    settings = yaml.safe_load(path.read_text()) or {}
    merged: Row = {}
    for name in settings.pop("defaults", ()):
        if isinstance(name, str) and name != "_self_":
            merged |= _plain(path.with_name(f"{name}.yaml"))
    return merged | settings


def methods() -> Iterator[Row]:
    from hydra.utils import get_object

    for path in _configurations("method"):
        header, settings = _header(path), _plain(path)
        needs = sorted(getattr(get_object(settings["_target_"]), "needs", ()))
        paper = PAPER.search(header)
        here = _missing(settings)
        yield {"name": path.stem, "what": _sentence(header), "paper": paper and f"arXiv {paper[1]}", "needs": needs,
               "here": here is None, "missing": here}  # fmt: skip


def _missing(settings: Any) -> str | None:
    """What of the weights that the settings name is not on this machine."""
    from bench.settings import build

    for key in ("encoder", "weights"):
        value = settings.get(key) if isinstance(settings, Mapping) else None
        if isinstance(value, Mapping) and "_target_" in value:
            try:
                made = build(value)
            except BenchError as error:
                return str(error)
            if (missing := getattr(made, "missing", None)) is not None and (reason := missing()):
                return reason
    return None


def datasets() -> Iterator[Row]:
    from bench.data import schema, sources

    for name in schema.names():
        spec = schema.describe(name)
        here = sources.missing(spec)
        yield {"name": name, "what": f"{spec['noun'] or 'style'}, {spec['style_words'] or 'no style words'}",
               "paper": None, "needs": [spec["licence"]], "here": here is None, "missing": here}  # fmt: skip


def metrics() -> Iterator[Row]:
    from bench.settings import build

    for path in _configurations("metrics"):
        for key, settings in _plain(path).items():
            if not isinstance(settings, Mapping) or "_target_" not in settings:
                continue
            made = build(settings)
            values = ", ".join(made.higher_is_better) or key
            document = (type(made).__doc__ or "").strip().splitlines()
            yield {"name": f"{path.stem}/{key}", "what": f"{values}: {_sentence(document[0]) if document else ''}",
                   "paper": None, "needs": [], "here": made.missing() is None, "missing": made.missing()}  # fmt: skip


def backbones() -> Iterator[Row]:
    from bench.backbones import missing

    for path in _configurations("backbone"):
        here = missing(_plain(path))
        yield {"name": path.stem, "what": _sentence(_header(path)), "paper": None, "needs": [],
               "here": here is None, "missing": here}  # fmt: skip


def experiments() -> Iterator[Row]:
    for path in _configurations("experiment"):
        yield {"name": path.stem, "what": _sentence(_header(path)), "paper": None, "needs": [], "here": True,
               "missing": None}  # fmt: skip


KINDS: dict[str, Callable[[], Iterator[Row]]] = {
    "methods": methods, "datasets": datasets, "metrics": metrics, "backbones": backbones, "experiments": experiments,
}  # fmt: skip


def line(row: Row, width: int) -> str:
    extra = [row["paper"], f"needs {', '.join(row['needs'])}" if row["needs"] else None]
    extra.append(None if row["here"] else "not on this machine")
    return f"{row['name']:{width}}  {'; '.join([row['what'], *filter(None, extra)])}"


def main(arguments: Sequence[str] | None = None) -> None:
    parse = argparse.ArgumentParser(prog="t2i-bench list", description=__doc__)
    parse.add_argument("kind", choices=list(KINDS))
    parse.add_argument("--json", action="store_true", help="all fields, with the reason where something is missing")
    chosen = parse.parse_args(arguments)
    paths.extend_packages()
    rows = list(KINDS[chosen.kind]())
    if chosen.json:
        print(json.dumps(rows, indent=1))
    else:
        width = max(len(row["name"]) for row in rows)
        print("\n".join(line(row, width) for row in rows))


if __name__ == "__main__":
    main()
