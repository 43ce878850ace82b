"""The table of the gate: base, head, ratio with interval, verdict and pairs of every metric that matters."""

from collections.abc import Sequence

from retbench.gate import Verdict
from retbench.gate_run import TIME, Course, Row
from retbench.report.compare_table import amount, cell_words, entries, interval_words
from retbench.report.tables import Column, Entry, Table

ORDER: Sequence[Verdict] = ("failed", "regressed", "inconclusive", "new", "improved", "allowed", "ok")
COLUMNS = (
    Column("cell", "", justify="left"),
    Column("metric", "Metric", justify="left"),
    Column("base", "Base"),
    Column("head", "Head"),
    Column("ratio", "Head / base"),
    Column("ratio_low", "from", detail="data"),
    Column("ratio_high", "to", detail="data"),
    Column("interval", "95 %", justify="left"),
    Column("verdict", "Verdict", justify="left"),
    Column("pairs", "Pairs"),
)


def gate_table(rows: Sequence[Row], title: str, notes: Sequence[str] = ()) -> Table:
    """All of the times; of what is counted, what differs. Times are in ms."""
    shown = [row for row in rows if row.metric in ("", TIME) or row.verdict != "ok"]
    same = len(rows) - len(shown)
    counted = [f"{same} counted metrics are the same to the byte"] if same else []
    reasons = [f"{cell_words(row.cell)}: {row.reason}" for row in shown if row.reason]
    return Table("gate", title, COLUMNS, tuple(map(_row, shown)), (*reasons, *counted, *notes), section=("cell",))


def worst(rows: Sequence[Row]) -> Verdict:
    """The verdict that decides."""
    return min((row.verdict for row in rows), key=ORDER.index, default="new")


def change_words(row: Row) -> str:
    """The change of a metric in a line: ``time 1.20 (1.10 to 1.31) of base, 30 pairs``."""
    if row.judged is None:
        return row.reason
    if row.metric != TIME:
        return f"{row.metric} {amount(row.metric, row.base)} -> {amount(row.metric, row.head)}"
    return f"time {row.judged.ratio.value:.3f} ({interval_words(row.judged.ratio)}) of the base, {row.pairs} pairs"


def backend_notes(courses: Sequence[Course]) -> list[str]:
    """Where the two versions chose another backend."""
    notes = []
    for course in courses:
        one, two = (side.resolved.get("backend") for side in (course.base, course.head))
        if one and two and one != two:
            notes.append(f"{cell_words(course.cell)}: backend {one} in the base, {two} in head")
    return notes


def _row(row: Row) -> tuple[Entry, ...]:
    label, bad = cell_words(row.cell), row.verdict in ("failed", "regressed")
    verdict = Entry(row.verdict, row.verdict, failed=bad)
    values = tuple(Entry(value, amount(row.metric, value)) for value in (row.base, row.head))
    if row.judged is None:
        ratios = tuple(Entry(None, "-") for _ in range(4))
    else:
        ratio = row.judged.ratio
        numbers = (ratio.value, ratio.low, ratio.high)
        interval = interval_words(ratio) if row.metric == TIME else "exact"
        ratios = (*entries(numbers, [f"{number:.3f}" for number in numbers]), Entry(interval, interval))
    pairs = Entry(row.pairs, str(row.pairs) if row.metric == TIME else "-")
    return Entry(label, label), Entry(row.metric, row.metric or "-"), *values, *ratios, verdict, pairs
