"""The table of retbench history: every run of every cell relative to the reference workload, with its steps."""

from collections.abc import Sequence

from retbench.history import ERROR, SMALLEST_STEP, History
from retbench.report.compare_table import cell_words
from retbench.report.numbers import significant
from retbench.report.tables import Column, Entry, Table

COLUMNS = (
    Column("cell", "", justify="left"),
    Column("created_at", "Run", justify="left"),
    Column("commit", "Commit", justify="left"),
    Column("relative", "Time / reference"),
    Column("relative_low", "from"),
    Column("relative_high", "to"),
    Column("step", "Step", justify="left"),
)


def history_table(histories: Sequence[History], problems: Sequence[str] = ()) -> Table:
    """A row a run; steps are shown where they begin."""
    rows = tuple(row for history in histories for row in _rows(history))
    note = (
        f"a step is marked where medians differ by {SMALLEST_STEP:.0%} and of all orders of the runs only {ERROR:.0%} "
        "would show as clear a one by chance"
    )
    title = "Time of a call / time of the reference workload"
    return Table("history", title, COLUMNS, rows, (note, *problems), section=("cell",))


def _rows(history: History) -> list[tuple[Entry, ...]]:
    label = f"{cell_words(history.cell)}, {history.machine}"
    rows = []
    for at, run in enumerate(history.runs):
        values = (run.relative.value, run.relative.low, run.relative.high)
        change = history.change(at) if at in history.steps else None
        step = Entry(change, "" if change is None else f"{change - 1:+.0%}", failed=change is not None and change > 1)
        words = (label, run.created_at, run.commit)
        numbers = (Entry(value, significant(value)) for value in values)
        rows.append((*(Entry(word, word) for word in words), *numbers, step))
    return rows
