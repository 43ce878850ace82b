"""Figure 6: memory and throughput over length, latency over batch, measured, with the paper's points beside."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from retbench.record import Record
from retbench.report.conditions import hardware_words
from retbench.report.figures.layout import caption, is_column
from retbench.report.frame import BASELINE, CHALLENGER, main_setting, to_frame
from retbench.report.numbers import length, memory_unit, significant
from retbench.report.paper import Curve, Paper
from retbench.report.style import COLUMN_WIDTH, INK, PAPER, RC, Look, looks, plain

Point = dict[str, Any]
DASHES, DOTS = (0, (4, 2)), (0, (1, 1.5))
Value = tuple[float, float, float]  # a number with the ends of its interval


@dataclass(frozen=True)
class Line:
    """One system's measured points, by x, and the statuses of those that failed, by x."""

    system: str
    points: dict[int, Value]
    failed: dict[int, str]

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


def draw(records: Sequence[Record], paper: Paper, width: float = COLUMN_WIDTH) -> Figure:
    """The three panels, stacked in a column, side by side on a page; ``width`` in inches.

    Shows one setting (machine, device, dtype, threads, size), that of the largest cell measured.
    Raises ValueError without records.
    """
    if not records:
        raise ValueError("no records to draw")
    shown = [records[at] for at in main_setting(to_frame(records)).index]
    batch = _largest(shown, lambda record: record.cell.batch_size)
    longest = _largest(shown, lambda record: record.cell.seq_len)
    one_batch = [record for record in shown if record.cell.batch_size == batch]
    one_length = [record for record in shown if record.cell.seq_len == longest]
    panels = [_memory(one_batch, paper), _throughput(one_batch, paper), _latency(one_length, paper, longest)]
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, 6.3 if is_column(width) else 2.75), layout="constrained")
        axes = figure.subplots(3, 1) if is_column(width) else figure.subplots(1, 3)
        look = looks(record.cell.system for record in shown)
        drawn = [_draw_panel(ax, panel, look) for ax, panel in zip(axes, panels, strict=True)]
        _legend(figure, look, [record.cell.system for record in shown], any(drawn), is_column(width))
        caption(figure, _words(shown, len(shown) < len(records), batch, longest, paper, drawn), width)
    return figure


# ---- what is drawn --------------------------------------------------------------------------------------------------


def _memory(records: Sequence[Record], paper: Paper) -> Panel:
    """(a) Peak memory of decode at each measured depth, in GiB or MiB."""
    peaks = [point.get("peak_memory_bytes") for record in records for point in _depths(record)]
    unit, size = memory_unit([max((peak for peak in peaks if peak), default=None)])
    weights = [record.metrics["weights_bytes"] for record in records if record.metrics.get("weights_bytes")]

    def value(record: Record, point: Point) -> Value | None:
        peak = point.get("peak_memory_bytes")
        return (peak / size, peak / size, peak / size) if peak else None

    return Panel(
        "(a) peak memory of decode",
        "context (tokens)",
        unit,
        _over_length(records, value),
        paper.panels["memory"].unit,
        list(paper.panels["memory"].curves),
        log=False,
        level=max(weights) / size if weights else None,
    )


def _throughput(records: Sequence[Record], paper: Paper) -> Panel:
    """(b) Tokens a second of the whole batch at each measured depth."""

    def value(record: Record, point: Point) -> Value | None:
        times = _tpot(point)
        return _rate(record.cell.batch_size, times) if times else None

    panel = paper.panels["throughput"]
    lines = _over_length(records, value)
    return Panel(
        "(b) throughput at that context", "context (tokens)", "tokens/s", lines, panel.unit, list(panel.curves)
    )


def _latency(records: Sequence[Record], paper: Paper, longest: int) -> Panel:
    """(c) TPOT at the last position over batch, beside the paper's curve of that length or else of its longest."""
    panel = paper.panels["latency"]
    theirs = [curve for curve in (panel.curve(BASELINE, longest) or panel.curve(BASELINE),) if curve]
    retnet = panel.curve(CHALLENGER)
    at = f" at {length(theirs[0].seq_len)}" if theirs and theirs[0].seq_len not in (None, longest) else ""
    lines = []
    for system, own in _by_system(records).items():
        found = {record.cell.batch_size: _tpot(record.metrics) for record in own}
        failed = {record.cell.batch_size: record.status for record in own if found[record.cell.batch_size] is None}
        lines.append(Line(system, {x: times for x, times in found.items() if times}, {**failed}))
    return Panel(
        "(c) latency of a token (TPOT)",
        "batch size",
        "ms",
        lines,
        f"{panel.unit}{at}",
        [*theirs, *([retnet] if retnet else [])],
        over_batch=True,
    )


def _over_length(records: Sequence[Record], value: Callable[[Record, Point], Value | None]) -> list[Line]:
    """A line for each system through all depths of all its cells; at a depth that is a cell's length that cell wins."""
    lines = []
    for system, own in _by_system(records).items():
        points: dict[int, Value] = {}
        for record in own:
            for point in _depths(record):
                found = value(record, point)
                if found and (point["context"] not in points or point["context"] == record.cell.seq_len):
                    points[point["context"]] = found
        failed = {record.cell.seq_len: record.status for record in own if record.cell.seq_len not in points}
        lines.append(Line(system, points, {**failed}))
    return lines


def _depths(record: Record) -> list[Point]:
    """What was measured inside a cell by depth; a cell that knows its last position alone has one depth."""
    return record.contexts or [{**record.metrics, "context": record.cell.seq_len}]


def _tpot(point: Point) -> Value | None:
    time = point.get("tpot_ms")
    return (time, point.get("tpot_ms_low") or time, point.get("tpot_ms_high") or time) if time else None


def _rate(batch_size: int, times: Value) -> Value:
    time, low, high = times
    return 1000 * batch_size / time, 1000 * batch_size / high, 1000 * batch_size / low


def _by_system(records: Sequence[Record]) -> dict[str, list[Record]]:
    systems = dict.fromkeys(record.cell.system for record in records)
    return {system: [record for record in records if record.cell.system == system] for system in systems}


def _largest(records: Sequence[Record], key: Callable[[Record], int]) -> int:
    """The largest value among the cells that were measured, among all where none was."""
    return max(map(key, [record for record in records if _tpot(record.metrics)] or records))


# ---- how it is drawn ------------------------------------------------------------------------------------------------


def _draw_panel(ax: Axes, panel: Panel, look: dict[str, Look]) -> bool:
    """Draw the measured lines, the failures and the paper's points; says whether the paper had points to draw."""
    ax.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    for place, line in enumerate(panel.lines):
        # Lines often coincide (three Transformers, one memory): each is thinner than the one that it covers.
        _draw_line(ax, line, look[line.system], 1.0 + 0.4 * (len(panel.lines) - 1 - place))
    if panel.level is not None:
        ax.axhline(panel.level, color=INK, linewidth=0.8, linestyle=DASHES, zorder=1)
    _x_axis(ax, panel)
    theirs = _paper_points(panel)
    limits = _y_limits(panel, [y for _, points in theirs for _, y in points])
    _y_axis(ax, limits, panel.log)
    _draw_failures(ax, panel.lines, look)
    if theirs:
        _draw_paper(ax, panel, theirs, limits, look)
    return bool(theirs)


def _draw_line(ax: Axes, line: Line, look: Look, linewidth: float) -> None:
    x = sorted(line.points)
    y, low, high = (np.array([line.points[at][side] for at in x]) for side in range(3))
    errors = np.clip(np.stack([y - low, high - y]), 0, None) if x else None
    ax.errorbar(x, y, yerr=errors, color=look.colour, marker=look.marker, linewidth=linewidth,
                markersize=2.5 + linewidth, elinewidth=0.8, zorder=3)  # fmt: skip


def _draw_failures(ax: Axes, lines: Sequence[Line], look: dict[str, Look]) -> None:
    """A small word at the top for every cell without a number, one below the other where several share an x."""
    stacked: dict[int, int] = {}
    for line in lines:
        for x, status in line.failed.items():
            place = stacked[x] = stacked.get(x, -1) + 1
            ax.annotate(f"× {status}", (x, 1), (0, -1 - 7.5 * place), xycoords=("data", "axes fraction"),
                        textcoords="offset points", ha="right" if x == max(ax.get_xticks()) else "center", va="top",
                        color=look[line.system].colour, fontsize=6.5, fontweight="bold", zorder=5)  # fmt: skip


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
        ax.plot(x, y, color=look[system].colour, marker=look[system].marker, markerfacecolor="white", alpha=0.45,
                markeredgewidth=0.8, linewidth=0.8, linestyle=DOTS, zorder=2)  # fmt: skip
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
    most = max(sum(x in line.failed for line in panel.lines) for x in panel.span) if panel.lines else 0
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


def _legend(figure: Figure, look: dict[str, Look], systems: Sequence[str], with_paper: bool, narrow: bool) -> None:
    """One legend for the three panels, above them."""
    handles = [
        Line2D([], [], color=look[system].colour, marker=look[system].marker, label=plain(system))
        for system in dict.fromkeys(systems)
    ]
    handles.append(Line2D([], [], color=INK, linewidth=0.8, linestyle=DASHES, label="model weights"))
    if with_paper:
        handles.append(
            Line2D([], [], color=PAPER, marker="o", markerfacecolor="white", markeredgewidth=0.8, linewidth=0.8,
                   linestyle=DOTS, label="paper (right axis)")
        )  # fmt: skip
    columns = 2 if narrow else len(handles) if len(handles) <= 6 else 4
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, columnspacing=1.0, borderaxespad=0.2)


def _words(
    shown: Sequence[Record], partial: bool, batch: int, longest: int, paper: Paper, drawn: Sequence[bool]
) -> str:
    """The conditions of both sides, and how the paper's points were put on the panels."""
    parts = [
        f"Measured: {shown[0].cell.size}, {hardware_words(shown)}; (a) and (b) batch {batch}, (c) length {longest}, "
        "last position; bars are 95% intervals."
    ]
    if any(drawn):
        parts.append(
            f"Paper, hollow: {paper.setting.words}, read off its figure, scaled to meet our {BASELINE} at the largest "
            f"common x; its throughput is averaged over positions ({paper.panels['throughput'].conditions})."
        )
    if not all(drawn):
        missing = ", ".join(f"({name})" for name, there in zip("abc", drawn, strict=True) if not there)
        parts.append(f"The paper has no points in the range of {missing}.")
    if partial:
        parts.append("Other sizes or conditions are in the table.")
    return " ".join(parts)
