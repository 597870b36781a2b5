"""docs/metrics.md, made from the metric classes: python -m metrics.reference_page

Every leaf class of `Metric` in this package is a section, and every number that it gives is a row of that section.
"""

from __future__ import annotations

import inspect
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

import yaml

import metrics
from bench.analysis.quantities import COSTS
from bench.contracts import Metric, Quantity
from bench.files import atomic_write
from bench.paths import CONF, ROOT

PAGE = ROOT / "docs" / "metrics.md"
HEAD = """# Metrics

This page is made from the metric classes. To change it, change the class and run `python -m metrics.reference_page`.

A metric is computed once per cell and strength. It may give several numbers. Each number has an id, which is its
column in the table. The column also names the network, for example `kid [mini-clip]`. Never compare numbers
of different networks.

Choose a set of metrics with `metrics=...`. Each set is a file in `conf/metrics/`:

```
python -m bench method=pair dataset=halftone metrics=mini
python -m bench.table --where dataset=halftone --metrics all
python -m bench.fetch weights sd
```

The first table of `python -m bench.table` shows the headline metrics of `conf/table.yaml`:
{headline}.
Those marked *cost* are described at the end of this page.

## Symbols

| symbol | meaning |
|---|---|
| `y` | a generated image; N of them |
| `y0` | the image of the untouched backbone for the same prompt and the same noise |
| `q` | the content prompt: without style words and without a rare token |
| `c` | a training image without the style (the plain half of a pair; without pairs, a reference) |
| `s` | a training image with the style, or a photograph of the subject |
| `r` | an image of the dataset's reference set |
| `u` | a control: an unrelated content image |
| `S` | the style as a function (only datasets with `oracle`) |
| `f`, `T` | image and text features of the network that the column names |
| `d` | LPIPS; `d_n` is LPIPS of images that are standardized to the same mean and contrast of luminance |

**Better** says which direction is better, then the ideal value or what the number is for.
A number that cannot be computed is left out of the record, and the record's notes say why.
"""


def leaves() -> list[type[Metric]]:
    """The metric classes of this package that give numbers, in the order of their modules and lines."""
    found = []
    for module in sorted(info.name for info in pkgutil.iter_modules(metrics.__path__)):
        members = vars(import_module(f"metrics.{module}")).values()
        found += [kind for kind in members if _is_leaf(kind) and kind.__module__ == f"metrics.{module}"]
    return found


def _is_leaf(kind: object) -> bool:
    return inspect.isclass(kind) and issubclass(kind, Metric) and bool(getattr(kind, "higher_is_better", None))


def sets() -> Mapping[str, list[str]]:
    """`_target_` of a metric -> the sets of conf/metrics that have it, those taken over by `defaults` included."""
    found: dict[str, list[str]] = {}
    for path in sorted((CONF / "metrics").glob("*.yaml")):
        for target in _targets(path):
            found.setdefault(target, []).append(path.stem)
    return found


def _targets(path: Path) -> Iterator[str]:
    entries = yaml.safe_load(path.read_text()) or {}
    for base in entries.pop("defaults", []):
        if base != "_self_":
            yield from _targets(path.with_name(f"{base}.yaml"))
    yield from (entry["_target_"] for entry in entries.values())


def page() -> str:
    """The whole page."""
    headline = yaml.safe_load((CONF / "table.yaml").read_text())["headline"]
    names = ", ".join(f"`{name}`" + (" (*cost*)" if name in COSTS else "") for name in headline)
    inside = sets()
    parts = [HEAD.replace("{headline}", names)]
    parts += [_section(kind, inside.get(f"{kind.__module__}.{kind.__name__}", [])) for kind in leaves()]
    return "\n".join([*parts, _costs()])


def _section(kind: type[Metric], inside: list[str]) -> str:
    about = inspect.cleandoc(kind.__doc__ or "")
    where = ", ".join(f"`metrics={name}`" for name in inside) or "no set of `conf/metrics`"
    rows = [_row(kind, id, quantity) for id, quantity in kind.quantities.items()]
    head = "| id | name | formula | unit | better | range | source |\n|---|---|---|---|---|---|---|"
    title = f"## {kind.__name__}\n\n{about}\n\nIn {where}. Source: `{kind.__module__.replace('.', '/')}.py`."
    return "\n".join([title, "", head, *rows, ""])


def _row(kind: type[Metric], id: str, about: Quantity) -> str:
    better = "higher" if kind.higher_is_better[id] else "lower"
    if about.ideal:
        better = f"{better}; {about.ideal}" if about.ideal[0].isdigit() else about.ideal
    cells = [f"`{id}`", about.name, f"`{about.formula}`", about.unit, better, about.range, about.source]
    return f"| {' | '.join(cells)} |"


def _costs() -> str:
    head = "## Costs\n\nEvery record has these. Tables show the median.\n\n| id | meaning |\n|---|---|"
    return "\n".join([head, *(f"| `{name}` | {text} |" for name, (_, _, text) in COSTS.items()), ""])


def main() -> None:
    PAGE.parent.mkdir(exist_ok=True)
    atomic_write(PAGE, page().encode())
    print(PAGE)


if __name__ == "__main__":
    sys.exit(main())
