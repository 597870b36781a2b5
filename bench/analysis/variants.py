"""Which data a record is about: rows of tables are told apart by the content of a dataset, never by its name alone.

A record keeps the hash of its dataset's content, which covers images, captions, prompts and evaluation seeds. What
differs from the dataset.yaml of that name is said in words: `form` for what is learned from ("3 pairs"), `evaluation`
for what is drawn and compared with ("1 prompt, 1 seed"). Where words do not tell two contents apart, paths do, and
the hash as a last resort.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.data import schema
from bench.errors import BenchError
from bench.settings import digest

if TYPE_CHECKING:
    import pandas as pd

    from bench.store.record import Record

DEFAULT = "default"  # as the dataset.yaml says
COLUMNS = ["content", "base", "form", "evaluation"]  # base: the name, with the place of the user's own files
KEPT = ["content", "place", "form", "described", "evaluation", "evaluation_hash"]  # of a record
PLACES = ("root", "pair", "references", "person", "background", "auxiliary", "reference_set")
DRAWN = {"reference_set": "reference set of {}", "reference_seed": "reference set of seed {}"}
LEARNED = {"pairs": "pair", "references": "reference", "auxiliary": "auxiliary image"}
WORDS = {
    "style_words": "style words '{}'",
    "noun": "noun {}",
    "oracle": "style function {}",
    "caption": "captions '{}'",
}


def of_config(config: Mapping[str, Any]) -> dict[str, str]:
    """What KEPT names, of the configuration that a record keeps; words are empty where nothing differs."""
    kept = config.get("dataset")
    content = kept.get("content") if isinstance(kept, Mapping) else None
    spec = schema.portable((config.get("requested") or {}).get("dataset") or {})
    known = _described(str(spec.get("name"))) if spec else {}
    changed = {key: value for key, value in spec.items() if key in known and not _same(value, known[key])}
    place, described = "\n".join(_paths(changed)), list(_described_as(changed))
    form = [*_form(changed, known), *([] if place else described)]  # the user's own files are always described anew
    about = {"content": str(content or ""), "place": place, "form": ", ".join(form)}
    about |= {"described": ", ".join(described), "evaluation": ", ".join(_evaluation(changed, known))}
    drawn = {key: _mapping(spec.get("rendered")).get(key) for key in DRAWN}
    drawn |= {key: spec.get(key) for key in ("prompts", "seeds")}
    return about | {"evaluation_hash": digest(drawn, 6)}


@functools.cache
def _described(name: str) -> Mapping[str, Any]:
    """The dataset.yaml of a name, or nothing where there is none on this machine."""
    try:
        return schema.portable(schema.describe(name))
    except (BenchError, OSError):
        return {}


def _same(a: Any, b: Any) -> bool:
    return digest(a) == digest(b)


def _form(changed: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[str]:
    """What is learned from, where it differs."""
    if "version" in changed:
        yield f"version {changed['version']}"
    pairs = changed.get("pair")
    if isinstance(pairs, (list, tuple)) and pairs and not isinstance(pairs[0], str) and len(pairs) > 1:
        yield f"{len(pairs)} pairs"
    for key, value in _rendered(changed, known).items():
        if key not in DRAWN:
            yield _counted(value, LEARNED[key]) if key in LEARNED else f"drawn with {key} {value}"


def _described_as(changed: Mapping[str, Any]) -> Iterator[str]:
    """How the images are described, and what they are compared with as unrelated ones."""
    for key, words in WORDS.items():
        if key in changed:
            yield words.format(changed[key]) if changed[key] is not None else f"no {words.partition(' {')[0]}"
    if "person_nouns" in changed:
        yield "other person nouns"
    if "controls" in changed:
        yield "other controls"


def _evaluation(changed: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[str]:
    """What is drawn and compared with, where it differs."""
    for key in ("prompts", "seeds"):
        if key in changed:
            yield _list(changed[key], known[key], key.removesuffix("s"))
    for key, value in _rendered(changed, known).items():
        if key in DRAWN:
            yield DRAWN[key].format(value)


def _list(value: Any, known: Any, noun: str) -> str:
    """ "1 prompt"; "12 other prompts" where their number does not tell; "prompts of list.csv" for a file."""
    if isinstance(value, Mapping):
        return f"{noun}s of {Path(str(value.get('file'))).name}"
    if not isinstance(value, (list, tuple)):
        return f"other {noun}s"
    same = isinstance(known, (list, tuple)) and len(known) == len(value)
    return _counted(len(value), f"other {noun}" if same else noun)


def _counted(number: Any, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _rendered(changed: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    made, usual = (_mapping(spec.get("rendered")) for spec in (changed, known))
    return {key: value for key, value in made.items() if not _same(value, usual.get(key))}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _paths(changed: Mapping[str, Any]) -> list[str]:
    """The paths of the user's own files, those of `root` for all that lie in it."""
    found = [changed["root"]] if changed.get("root") else [changed[key] for key in PLACES if changed.get(key)]
    return list(dict.fromkeys(_words(found)))


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _words(item)


def labels(records: Iterable[Record]) -> dict[str, str]:
    """Run id -> the label of its dataset among these records."""
    kept = {r.run_id: {"dataset": name_of(r.config.get("dataset")), **of_config(r.config)} for r in records}
    made = _labels(list({(about["dataset"], about["content"]): about for about in reversed(kept.values())}.values()))
    return {run: str(made[about["dataset"], about["content"]]["dataset"]) for run, about in kept.items()}


def name_of(value: Any) -> Any:
    return value.get("name") if isinstance(value, Mapping) else value


# --- labels ------------------------------------------------------------------------------------------------------


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """A table with KEPT gets COLUMNS; `dataset` becomes a label, one for each content of a name."""
    import numpy as np
    import pandas as pd

    keys = ["dataset", "content"]
    groups = table.groupby(keys, dropna=False, sort=False, observed=True)
    places = groups.ngroup().to_numpy()
    first = table.iloc[np.unique(places, return_index=True)[1]]
    lines = [
        {key: _known(value) for key, value in line.items()} for line in first[["dataset", *KEPT]].to_dict("records")
    ]
    made = _labels(lines)
    kinds = [made[line["dataset"], line["content"]] for line in lines]
    found = {
        column: pd.Categorical([kind[column] for kind in kinds]).take(places)
        for column in ("dataset", "base", "form", "evaluation")
    }
    return table.drop(columns=[key for key in KEPT if key not in COLUMNS]).assign(**found)


def _known(value: Any) -> Any:
    """None for what is missing."""
    return None if value != value else value


def _labels(lines: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, str], dict[str, Any]]:
    """(name, content) -> dataset (the label), base, form, evaluation."""
    made = [{**line, "base": base} for line, base in zip(lines, _bases(lines), strict=True)]
    otherwise = [line for line in made if line["evaluation"]]
    _tell_apart(otherwise, ("dataset", "evaluation"), "evaluation_hash", "evaluation", "set {}")
    same = ("base", "form", "evaluation")
    _tell_apart(made, same, "described", "form", "{}")
    _tell_apart(made, same, "content", "form", "content {}")
    return {(line["dataset"], line["content"]): _named(line) for line in made}


def _named(line: Mapping[str, Any]) -> dict[str, Any]:
    words = ", ".join(filter(None, (line["form"], line["evaluation"])))
    label = _bracketed(line["base"], words) if words else line["base"]
    return {"dataset": label, "base": line["base"]} | {key: line[key] or DEFAULT for key in ("form", "evaluation")}


def _bracketed(base: Any, words: str) -> str:
    return f"{base.removesuffix(')')}, {words})" if str(base).endswith(")") else f"{base} ({words})"


def _tell_apart(lines: Iterable[dict[str, Any]], same: Sequence[str], by: str, at: str, word: str) -> None:
    """Lines that are the same in words but not in `by` get it, too; of a hash the first letters."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(tuple(line[key] for key in same), []).append(line)
    for group in groups.values():
        known = {line[by] for line in group}
        if len(known) > 1:
            alone = len(known - {""}) == 1 and by == "content"  # the one that is known needs no word
            for line in (line for line in group if not (alone and line[by])):
                more = line[by] if by == "described" else line[by][:6] or "unknown"
                line[at] = ", ".join(filter(None, (line[at], more and word.format(more))))


def _bases(lines: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The name and, of the user's own files, as much of the end of their path as tells contents of a name apart."""
    found = []
    for line in lines:
        own = sorted({other["place"] for other in lines if other["dataset"] == line["dataset"] and other["place"]})
        found.append(f"{line['dataset']} ({_short(line['place'], own)})" if line["place"] else line["dataset"])
    return found


def _short(place: str, own: Sequence[str]) -> str:
    """The end of the first path that no other place shares, without its file ending."""
    for depth in range(1, 6):
        if [_end(other, depth) for other in own].count(_end(place, depth)) == 1:
            return _end(place, depth)
    return _end(place, 1)


def _end(place: str, depth: int) -> str:
    first = Path(place.partition("\n")[0])
    return "/".join((*first.parts[-depth:-1], first.stem))
