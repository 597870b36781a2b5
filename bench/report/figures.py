"""The page's figures for a paper: strength curves, Pareto fronts and critical-difference diagrams as PDF and PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.record import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = "#0072b2 #d55e00 #007a5e #b0418a #8f6a00 #3b7fb8 #5d4ea3 #4d4d4d #a33b3b #2f8a2f".split()  # as page.css
MARKERS = "os^DvP"
PANEL = 2.6  # inches


@dataclass(frozen=True)
class Point:
    """A method at one strength; low and high of an axis are None where there is no interval."""

    x: float
    y: float
    x_low: float | None
    x_high: float | None
    y_low: float | None
    y_high: float | None
    strength: float | None


Series = dict[str, list[Point]]


def panels(rows: Iterable[Mapping[str, Any]], x: str | None, y: str) -> dict[str, Series]:
    """Dataset -> method -> points in the order of the strength; x None is the strength itself."""
    made: dict[str, Series] = {}
    done = [row for row in rows if row["status"] == "done" and y in row["v"]]
    several = _several(done)
    for row in sorted(done, key=lambda row: (row["dataset"], row["method"], row["strength"] or 0)):
        across = row["v"].get(x) if x else [row["strength"], None, None]
        if across and across[0] is not None:
            (a, a_low, a_high), (b, b_low, b_high) = across, row["v"][y]
            point = Point(a, b, a_low, a_high, b_low, b_high, row["strength"])
            made.setdefault(row["dataset"], {}).setdefault(several(row), []).append(point)
    return made


def _several(rows: Sequence[Mapping[str, Any]]) -> Any:
    """What names a series: the method, and what else tells its lines apart."""
    backbones = {row["backbone"] for row in rows} if len({row["backbone"] for row in rows}) > 1 else set()

    def name(row: Mapping[str, Any]) -> str:
        same = [r for r in rows if all(r[key] == row[key] for key in ("method", "dataset", "backbone"))]
        words = [row["method"], f"on {row['backbone']}" if backbones else ""]
        return " ".join(filter(None, [*words, row["settings"] if len({r["settings"] for r in same}) > 1 else ""]))

    return name


def front(points: Sequence[Point], x_up: bool, y_up: bool) -> list[Point]:
    """The points that no other one equals or beats in both, ordered by x."""

    def beats(p: Point, q: Point) -> bool:
        across = p.x >= q.x if x_up else p.x <= q.x
        up = p.y >= q.y if y_up else p.y <= q.y
        return across and up and (p.x, p.y) != (q.x, q.y)

    return sorted((q for q in points if not any(beats(p, q) for p in points)), key=lambda point: point.x)


# --- drawing -----------------------------------------------------------------------------------------------------


def draw(made: Mapping[str, Series], x_label: str, y_label: str, ways: tuple[bool, bool] | None = None) -> Figure:
    """A panel per dataset; `ways` (is more better across, and up) draws the front, too."""
    from matplotlib.figure import Figure

    names = sorted({name for series in made.values() for name in series})
    across = min(4, len(made))
    down = -(-len(made) // across)
    figure = Figure(figsize=(PANEL * across + 0.4, PANEL * down + 0.5), layout="constrained")
    for axes, (dataset, series) in zip(figure.subplots(down, across, squeeze=False).flat, made.items(), strict=False):
        axes.set_title(dataset, fontsize=9)
        for name, points in series.items():
            _line(axes, names.index(name), name, points, ways is not None)
        if ways:
            best = front([point for points in series.values() for point in points], *ways)
            axes.plot([p.x for p in best], [p.y for p in best], "--", color="0.4", lw=0.8, zorder=1)
            axes.plot([p.x for p in best], [p.y for p in best], "o", mfc="none", mec="black", ms=9, zorder=4)
    _frame(figure, len(made), x_label, y_label)
    return figure


def _line(axes: Any, place: int, name: str, points: Sequence[Point], faint: bool) -> None:
    colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
    x, y = [p.x for p in points], [p.y for p in points]
    axes.plot(x, y, "-", color=colour, lw=1, alpha=0.5 if faint else 1)
    bars = {"fmt": marker, "color": colour, "ms": 4.5, "elinewidth": 0.8, "capsize": 1.5, "zorder": 3}
    axes.errorbar(x, y, yerr=_bars(points, "y"), xerr=_bars(points, "x"), label=name, **bars)


def _bars(points: Sequence[Point], axis: str) -> list[list[float]]:
    """Distances below and above; 0 where there is no interval."""
    known = [(getattr(p, axis), getattr(p, f"{axis}_low"), getattr(p, f"{axis}_high")) for p in points]
    return [
        [0.0 if low is None else max(0.0, value - low) for value, low, _ in known],
        [0.0 if high is None else max(0.0, high - value) for value, _, high in known],
    ]


def _frame(figure: Figure, used: int, x_label: str, y_label: str) -> None:
    for axes in figure.axes[used:]:
        axes.set_axis_off()
    for axes in figure.axes[:used]:
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25, lw=0.5)
    figure.supxlabel(x_label, fontsize=9)
    figure.supylabel(y_label, fontsize=9)
    known = {label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(known.values(), known.keys(), loc="outside upper center", ncols=4, fontsize=7, frameon=False)


def arrow(column: Mapping[str, Any]) -> str:
    """The name of a column and which way is better."""
    up = False if column["cost"] else column["higher"]
    return column["name"] + ("" if up is None else " (more is better)" if up else " (less is better)")


# --- writing -----------------------------------------------------------------------------------------------------


def figures(content: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Figure]:
    """Name -> figure of all curves and fronts of conf/report.yaml for which the records have numbers."""
    columns = {column["name"]: column for column in reversed(content["columns"])}  # the first of several networks
    made = {}
    for name in settings["curves"]:
        if name in columns and (data := panels(content["rows"], None, columns[name]["key"])):
            made[f"curve-{name}"] = draw(data, "strength", arrow(columns[name]))
    for label, x, y in settings["fronts"]:
        if x in columns and y in columns and (data := panels(content["rows"], columns[x]["key"], columns[y]["key"])):
            ways = bool(columns[x]["higher"]), bool(columns[y]["higher"])
            made[f"front-{label}"] = draw(data, arrow(columns[x]), arrow(columns[y]), ways)
    return made


def write(made: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Each figure as PDF and PNG; the same data give the same bytes."""
    folder.mkdir(exist_ok=True)
    paths = []
    for name, figure in made.items():
        for kind, extra in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
            file = io.BytesIO()
            figure.savefig(file, format=kind, dpi=200, metadata=extra)
            paths.append(folder / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}.{kind}")
            atomic_write(paths[-1], file.getvalue())
    return paths
