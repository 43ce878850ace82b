"""A panel of measured lines over length or batch, with failures in words and the paper's points on their own scale."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from retbench.report.frame import BASELINE, CHALLENGER
from retbench.report.numbers import length, significant
from retbench.report.paper import Curve
from retbench.report.style import INK, PAPER, Look, named

DASHES, DOTS = (0, (4, 2)), (0, (1, 1.5))
MACHINES: tuple[Any, ...] = ("-", (0, (5, 1, 1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 1.5)))
HOLLOW: dict[str, Any] = {"markerfacecolor": "white", "markeredgewidth": 0.8, "linewidth": 0.8}
Value = tuple[float, float, float]  # a number with the ends of its interval


@dataclass(frozen=True)
class Line:
    """One system's measured points on a machine, by x, and the statuses of those that failed, by x."""

    system: str
    points: dict[int, Value]
    failed: dict[int, str]
    machine: str = ""
    size: str = ""

    @property
    def label(self) -> str:
        """Whose line it is, for readers of the figure that are programs; the underscore keeps it out of legends."""
        return "_" + ", ".join(name for name in (self.system, self.size, self.machine) if name)

    def at(self, x: float) -> float | None:
        """The value at ``x``, interpolated between measured points, None outside of them."""
        known = sorted(self.points)
        if not known or not known[0] <= x <= known[-1]:
            return None
        return float(np.interp(x, known, [self.points[at][0] for at in known]))


@dataclass(frozen=True)
class Panel:
    """What one panel shows; the paper's curves stand on a scale of their own, ``paper_label``."""

    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    paper_label: str
    paper_curves: list[Curve]
    over_batch: bool = False
    log: bool = True
    level: float | None = None  # of the model's weights

    @property
    def span(self) -> tuple[int, int]:
        """The first and the last x that was asked for."""
        asked = [x for line in self.lines for x in (*line.points, *line.failed)]
        return min(asked), max(asked)

    @property
    def scale(self) -> float | None:
        """Paper's unit per measured unit, such that both Transformers meet at the largest x that both have."""
        for system in (BASELINE, CHALLENGER):
            for line in (line for line in self.lines if line.system == system):
                for curve in (curve for curve in self.paper_curves if curve.system == system):
                    for x, y in reversed(list(zip(curve.x, curve.y, strict=True))):
                        if measured := line.at(x):
                            return y / measured
        return None


def draw_panel(ax: Axes, panel: Panel, look: dict[str, Look], machines: Sequence[str] = ("",)) -> bool:
    """Draw the measured lines, the failures and the paper's points; says whether the paper had points to draw."""
    ax.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    for place, line in enumerate(panel.lines):
        # Lines often coincide (three Transformers, one memory): each is thinner than the one that it covers.
        style = machine_line(machines.index(line.machine))
        _draw_line(ax, line, look[line.system], 2.2 - 1.2 * place / max(len(panel.lines) - 1, 1), style)
    if panel.level is not None:
        ax.axhline(panel.level, color=INK, linewidth=0.8, linestyle=DASHES, zorder=1, label="_model weights")
    _x_axis(ax, panel)
    theirs = _paper_points(panel)
    limits = _y_limits(panel, [y for _, points in theirs for _, y in points])
    _y_axis(ax, limits, panel.log)
    if not any(line.points for line in panel.lines):
        ax.set_yticks([])
    _draw_failures(ax, panel.lines, look)
    if theirs:
        _draw_paper(ax, panel, theirs, limits, look)
    return bool(theirs)


def _draw_line(ax: Axes, line: Line, look: Look, linewidth: float, style: Any) -> None:
    x = sorted(line.points)
    y, low, high = (np.array([line.points[at][side] for at in x]) for side in range(3))
    errors = np.clip(np.stack([y - low, high - y]), 0, None) if x else None
    ax.errorbar(x, y, yerr=errors, color=look.colour, marker=look.marker, linewidth=linewidth,
                linestyle=style, markersize=2.5 + linewidth, elinewidth=0.8, zorder=3, label=line.label)  # fmt: skip


def _draw_failures(ax: Axes, lines: Sequence[Line], look: dict[str, Look]) -> None:
    """A small word at the top for every cell without a number, one below the other where several share an x."""
    stacked: dict[int, int] = {}
    for line in lines:
        for x, status in line.failed.items():
            place = stacked[x] = stacked.get(x, -1) + 1
            ax.annotate(f"× {status}", (x, 1), (0, -1 - 7.5 * place), xycoords=("data", "axes fraction"),
                        textcoords="offset points", ha="right" if x == max(ax.get_xticks()) else "center", va="top",
                        color=look[line.system].colour, fontsize=6.5, fontweight="bold", zorder=5,
                        label=line.label)  # fmt: skip


def _paper_points(panel: Panel) -> list[tuple[str, list[tuple[int, float]]]]:
    """The paper's points of the systems and the span that are drawn, in measured units."""
    scale = panel.scale
    first, last = panel.span
    known = {line.system for line in panel.lines}
    found = []
    for curve in panel.paper_curves if scale else []:
        points = [(x, y / scale) for x, y in zip(curve.x, curve.y, strict=True) if scale and first <= x <= last]
        if points and curve.system in known:
            found.append((curve.system, points))
    return found


def _draw_paper(
    ax: Axes,
    panel: Panel,
    theirs: list[tuple[str, list[tuple[int, float]]]],
    limits: tuple[float, float],
    look: dict[str, Look],
) -> None:
    """Faint and hollow, against an axis on the right in the paper's own units."""
    scale = panel.scale or 1.0
    for system, points in theirs:
        x, y = zip(*points, strict=True)
        ax.plot(x, y, color=look[system].colour, marker=look[system].marker, linestyle=DOTS, alpha=0.45, zorder=2,
                label=f"_{system}, paper", **HOLLOW)  # fmt: skip
    right = ax.twinx()
    right.grid(False)
    right.spines["right"].set(visible=True, color=PAPER)
    right.tick_params(colors=PAPER)
    _y_axis(right, (limits[0] * scale, limits[1] * scale), panel.log)
    right.set_ylabel(f"paper: {panel.paper_label}", color=PAPER)


def _x_axis(ax: Axes, panel: Panel) -> None:
    """Batches on a scale of doublings; lengths on a linear one with at most five round ticks."""
    first, last = panel.span
    if panel.over_batch:
        ticks = sorted({x for line in panel.lines for x in (*line.points, *line.failed)})
        ax.set_xscale("log", base=2)
        ax.set_xlim(first / 2**0.25, last * 2**0.25)
        labels = [str(tick) for tick in ticks]
    else:
        step = 2 ** max(math.ceil(math.log2(last / 4)), 0)
        ticks = list(range(0, last + 1, step))
        ax.set_xlim(-0.02 * last, 1.03 * last)
        labels = [length(tick) for tick in ticks]
    ax.set_xticks(ticks, labels)
    ax.xaxis.set_minor_locator(NullLocator())


def _y_limits(panel: Panel, theirs: list[float]) -> tuple[float, float]:
    """Limits that hold everything, from 0 on a linear scale, with room above for words about failures."""
    values = [end for line in panel.lines for point in line.points.values() for end in point] + theirs
    values += [panel.level] if panel.level is not None else []
    failed = [x for line in panel.lines for x in line.failed]
    most = max((failed.count(x) for x in failed), default=0)
    low, high = (min(values), max(values)) if values else (1.0, 10.0)
    room = 1 + 0.12 * most
    return (low / 1.3, high * 1.3 * (high / low) ** (room - 1)) if panel.log else (0.0, high * 1.07 * room)


def _y_axis(ax: Axes, limits: tuple[float, float], log: bool) -> None:
    """Scale, limits and ticks with plain numbers."""
    if log:
        decades = math.log10(limits[1] / limits[0])
        subs = (
            (1, 1.5, 2, 3, 4, 6, 8) if decades < 0.7 else (1, 2, 5) if decades < 2 else (1, 3) if decades < 3 else (1,)
        )
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(base=10, subs=subs))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_minor_locator(NullLocator())
    else:
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: significant(float(f"{value:.6g}"), 1)))
    ax.set_ylim(*limits)


def machine_line(place: int) -> Any:
    """The line of a machine: solid, then dots and dashes of their own; plain dashes are a model's."""
    return MACHINES[place % len(MACHINES)]


def machine_handles(machines: Sequence[str]) -> list[Line2D]:
    """What the legend says of several machines; nothing of one."""
    lines = [
        Line2D([], [], color=INK, linestyle=machine_line(at), label=named(name)) for at, name in enumerate(machines)
    ]
    return lines if len(machines) > 1 else []


def legend(
    figure: Figure,
    panels: Sequence[Panel],
    look: dict[str, Look],
    with_paper: bool,
    narrow: bool,
    machines: Sequence[str] = (),
) -> None:
    """One legend for all panels, above them."""
    systems = dict.fromkeys(line.system for panel in panels for line in panel.lines)
    handles = [
        Line2D([], [], color=look[system].colour, marker=look[system].marker, label=named(system)) for system in systems
    ]
    if any(panel.level for panel in panels):
        handles.append(Line2D([], [], color=INK, linewidth=0.8, linestyle=DASHES, label="model weights"))
    if with_paper:
        handles.append(Line2D([], [], color=PAPER, linestyle=DOTS, marker="o", label="paper (right axis)", **HOLLOW))
    handles += machine_handles(machines)
    columns = 2 if narrow else len(handles) if len(handles) <= 6 else 4
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, columnspacing=1.0, borderaxespad=0.2)
