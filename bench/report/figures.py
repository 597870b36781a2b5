"""The page's figures for a paper: strength sweeps, Pareto fronts and critical-difference diagrams as PDF and PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bench.analysis.statistics import Ranks

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
        same = [r for r in rows if all(r[key] == row[key] for key in ("method", "backbone"))]
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


# --- ranks -------------------------------------------------------------------------------------------------------


def ranked(rows: Iterable[Mapping[str, Any]], column: Mapping[str, Any]) -> Ranks | None:
    """Ranks over styles of the rows that the gallery's rule shows; None below three of them or two styles."""
    import pandas as pd

    from bench.analysis import statistics

    main = [row for row in rows if row["main"] and column["key"] in row["v"]]
    name = _several(main)
    lines = [(row["dataset"], name(row), row["v"][column["key"]][0]) for row in main]
    scores = pd.DataFrame(lines, columns=["style", "row", "value"]).pivot(index="style", columns="row", values="value")
    scores = scores.dropna(axis=1)
    if column["higher"] is None or scores.shape[1] < 3 or len(scores) < 2:
        return None
    return statistics.ranks(scores, column["higher"])


def critical_difference(found: Ranks, label: str) -> Figure:
    """Mean ranks on a line, best on the left; bars join those closer than the critical difference (Demsar 2006)."""
    from matplotlib.figure import Figure

    order = sorted(found.mean.items(), key=lambda pair: pair[1])
    groups = cliques([rank for _, rank in order], found.critical_difference)
    figure = Figure(figsize=(6.5, 0.9 + 0.26 * len(order) + 0.12 * len(groups)), layout="constrained")
    axes = figure.subplots()
    for k in range(len(order)):
        _branch(axes, order, k, 0.5 + 0.35 * len(groups))
    for k, (first, last) in enumerate(groups):
        ends = [order[first][1] - 0.03, order[last][1] + 0.03]
        axes.plot(ends, [-0.3 - 0.35 * k] * 2, color=COLOURS[1], lw=3, solid_capstyle="butt")
    _ruler(axes, len(order), found, label)
    return figure


def _branch(axes: Any, order: Sequence[tuple[Any, float]], k: int, depth: float) -> None:
    """The line from a rank to its name; the better half is named on the left."""
    (name, rank), left = order[k], k < -(-len(order) // 2)
    y = -(depth + 0.6 * (k if left else len(order) - 1 - k))
    edge = 0.6 if left else len(order) + 0.4
    axes.plot([rank, rank, edge], [0, y, y], color="black", lw=0.8)
    axes.text(edge, y, f" {name} ({rank:.2f}) ", ha="right" if left else "left", va="center", fontsize=8)


def _ruler(axes: Any, n: int, found: Ranks, label: str) -> None:
    axes.axhline(0, xmin=0, color="none")
    axes.plot([1, n], [0, 0], color="black", lw=1)
    for tick in range(1, n + 1):
        axes.plot([tick, tick], [0, 0.12], color="black", lw=1)
        axes.text(tick, 0.2, str(tick), ha="center", va="bottom", fontsize=8)
    width = min(found.critical_difference, n - 1.0)
    axes.plot([1, 1 + width], [1.0, 1.0], color=COLOURS[1], lw=2)
    differ = "differ" if found.p < 0.05 else "are not shown to differ"
    words = f"critical difference {found.critical_difference:.2f}; the rows {differ} (Friedman, p = {found.p:.2g})"
    axes.text(1, 1.1, words, ha="left", va="bottom", fontsize=7)
    axes.set_title(f"Mean rank over {found.styles} styles: {label}", fontsize=9)
    axes.set_xlim(-1.5, n + 2.5)
    axes.set_axis_off()


def cliques(ranks: Sequence[float], critical: float) -> list[tuple[int, int]]:
    """First and last place of each largest run of sorted ranks that spans less than the critical difference."""
    runs = [(i, max(j for j in range(i, len(ranks)) if ranks[j] - ranks[i] < critical)) for i in range(len(ranks))]
    return [(i, j) for i, j in runs if j > i and not any(a <= i and j <= b and (a, b) != (i, j) for a, b in runs)]


# --- writing -----------------------------------------------------------------------------------------------------


def figures(content: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Figure]:
    """Name -> figure of all curves, fronts and ranks of conf/report.yaml for which the records have numbers."""
    columns = {column["name"]: column for column in reversed(content["columns"])}  # the first of several networks
    made = {}
    for name in settings["sweeps"]:
        if name in columns and (data := panels(content["rows"], None, columns[name]["key"])):
            made[f"sweep-{name}"] = draw(data, "strength", arrow(columns[name]))
    for label, x, y in settings["fronts"]:
        if x in columns and y in columns and (data := panels(content["rows"], columns[x]["key"], columns[y]["key"])):
            ways = bool(columns[x]["higher"]), bool(columns[y]["higher"])
            made[f"front-{label}"] = draw(data, arrow(columns[x]), arrow(columns[y]), ways)
    for name in settings["ranks"]:
        if name in columns and (ranks := ranked(content["rows"], columns[name])):
            made[f"ranks-{name}"] = critical_difference(ranks, arrow(columns[name]))
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
