"""The table of retbench compare: every metric of every cell that two sets of records share."""

import math
from collections.abc import Iterable

from retbench.compare import Change, Comparison
from retbench.report.numbers import significant
from retbench.report.tables import Column, Entry, Table
from retbench.spec import Cell
from retbench.statistics import Interval

COLUMNS = (
    Column("cell", "", justify="left"),
    Column("metric", "Metric", justify="left"),
    Column("a", "A"),
    Column("b", "B"),
    Column("ratio", "B / A"),
    Column("ratio_low", "from", detail="data"),
    Column("ratio_high", "to", detail="data"),
    Column("interval", "95 %", justify="left"),
)


def compare_table(comparison: Comparison, a: str, b: str) -> Table:
    """Timed metrics with the interval of their ratio; counted ones as they are."""
    notes = [*comparison.notes]
    if any(change.kind == "timed" for change in comparison.changes):
        notes.insert(0, "intervals are of the samples: records of one process do not show how processes differ")
    rows = tuple(_row(change) for change in comparison.changes)
    return Table("compare", f"A {a}, B {b}", COLUMNS, rows, tuple(notes), section=("cell",))


def cell_words(cell: Cell) -> str:
    """The cell in a few words."""
    return f"{cell.workload} {cell.label}, {cell.dtype}"


def amount(metric: str, value: float | None) -> str:
    """A value for people: counts in full, times to three digits."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if metric.endswith("_bytes") or metric in ("parameters", "flops") else significant(value)


def interval_words(ratio: Interval) -> str:
    """``0.980 to 1.030``, or that there is none."""
    if math.isnan(ratio.low):
        return "too few samples"
    return f"{ratio.low:.3f} to {ratio.high:.3f}"


def entries(values: Iterable[float], words: Iterable[str]) -> tuple[Entry, ...]:
    """Raw values with their words."""
    return tuple(Entry(value, text) for value, text in zip(values, words, strict=True))


def _row(change: Change) -> tuple[Entry, ...]:
    ratio, timed = change.ratio, change.kind == "timed"
    interval = interval_words(ratio) if timed else "the same" if ratio.value == 1 else "exact"
    values = (change.before, change.after, ratio.value, ratio.low, ratio.high)
    words = (*(amount(change.metric, value) for value in values[:2]), *(f"{value:.3f}" for value in values[2:]))
    label = cell_words(change.cell)
    return Entry(label, label), Entry(change.metric, change.metric), *entries(values, words), Entry(interval, interval)
