"""Figure 6: memory and throughput over length, latency over batch, measured, with the paper's points beside."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from retbench.record import Record
from retbench.report.conditions import hardware_words
from retbench.report.frame import BASELINE, CHALLENGER, main_setting
from retbench.report.layout import caption, is_column
from retbench.report.numbers import length, memory_unit
from retbench.report.panels import Line, Panel, Value, draw_panel, legend
from retbench.report.paper import Paper
from retbench.report.style import COLUMN_WIDTH, looks, styled

Point = dict[str, Any]


def draw(records: Sequence[Record], paper: Paper, width: float = COLUMN_WIDTH) -> Figure:
    """The three panels, stacked in a column, side by side on a page; ``width`` in inches.

    Shows one setting (device, dtype, threads, size) of each machine, that of the largest cell measured there.
    Raises ValueError without records.
    """
    if not records:
        raise ValueError("no records to draw")
    machines = list(dict.fromkeys(record.machine for record in records))
    parts = [[record for record in records if record.machine == machine] for machine in machines]
    shown = [record for own in parts for record in main_setting(own)]
    batch = _largest(shown, lambda record: record.cell.batch_size)
    longest = _largest(shown, lambda record: record.cell.seq_len)
    one_batch = [record for record in shown if record.cell.batch_size == batch]
    one_length = [record for record in shown if record.cell.seq_len == longest]
    panels = [_memory(one_batch, paper), _throughput(one_batch, paper), _latency(one_length, paper, longest)]
    with styled():
        figure = Figure(figsize=(width, 6.3 if is_column(width) else 2.75), layout="constrained")
        axes = figure.subplots(3, 1) if is_column(width) else figure.subplots(1, 3)
        look = looks(record.cell.system for record in shown)
        drawn = [draw_panel(ax, panel, look, machines) for ax, panel in zip(axes, panels, strict=True)]
        legend(figure, panels, look, any(drawn), is_column(width), machines)
        caption(figure, _words(shown, len(shown) < len(records), batch, longest, paper, drawn), width)
    return figure


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
    for system, machine, own in _series(records):
        found = {record.cell.batch_size: _tpot(record.metrics) for record in own}
        failed = {record.cell.batch_size: _failure(record) for record in own if not found[record.cell.batch_size]}
        lines.append(Line(system, {x: times for x, times in found.items() if times}, failed, machine, own[0].cell.size))
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
    for system, machine, own in _series(records):
        points: dict[int, Value] = {}
        for record in own:
            for point in _depths(record):
                found = value(record, point)
                if found and (point["context"] not in points or point["context"] == record.cell.seq_len):
                    points[point["context"]] = found
        failed = {record.cell.seq_len: _failure(record) for record in own if record.cell.seq_len not in points}
        lines.append(Line(system, points, failed, machine, own[0].cell.size))
    return lines


def _depths(record: Record) -> list[Point]:
    """What was measured inside a cell by depth; a cell that knows its last position alone has one depth."""
    return record.contexts or [{**record.metrics, "context": record.cell.seq_len}]


def _failure(record: Record) -> str:
    return record.status if record.status != "ok" else "not measured"


def _tpot(point: Point) -> Value | None:
    time = point.get("tpot_ms")
    return (time, point.get("tpot_ms_low") or time, point.get("tpot_ms_high") or time) if time else None


def _rate(batch_size: int, times: Value) -> Value:
    time, low, high = times
    return 1000 * batch_size / time, 1000 * batch_size / high, 1000 * batch_size / low


def _series(records: Sequence[Record]) -> list[tuple[str, str, list[Record]]]:
    """The records of each line, with its system and machine."""
    lines: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        lines.setdefault((record.cell.system, record.machine), []).append(record)
    return [(*names, own) for names, own in lines.items()]


def _largest(records: Sequence[Record], key: Callable[[Record], int]) -> int:
    """The largest value among the cells that were measured, among all where none was."""
    return max(map(key, [record for record in records if _tpot(record.metrics)] or records))


def _words(
    shown: Sequence[Record], partial: bool, batch: int, longest: int, paper: Paper, drawn: Sequence[bool]
) -> str:
    """The conditions of both sides, and how the paper's points were put on the panels."""
    anchor = BASELINE if any(record.cell.system == BASELINE for record in shown) else CHALLENGER
    parts = [
        f"Measured: {shown[0].cell.size}, {hardware_words(shown)}; (a) and (b) batch {batch}, (c) length {longest}, "
        "last position; bars are 95% intervals."
    ]
    if any(drawn):
        parts.append(
            f"Paper, hollow: {paper.setting.words}, read off its figure, scaled to meet our {anchor} at the largest "
            f"common x; in its throughput {paper.panels['throughput'].conditions}."
        )
    if not all(drawn):
        missing = ", ".join(f"({name})" for name, there in zip("abc", drawn, strict=True) if not there)
        parts.append(f"The paper has no points in the range of {missing}.")
    if partial:
        parts.append("Other sizes or conditions are in the table.")
    return " ".join(parts)
