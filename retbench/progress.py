"""Shows a sweep on stderr while it runs: a live table on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from retbench.quantities import format_bytes, format_duration
from retbench.record import Record
from retbench.spec import Cell

Show = Callable[[Sequence[Record], int], RenderableType]


class LiveLine(AbstractContextManager["LiveLine"]):
    """What stands below a running command: redrawn in place on a terminal, lines of its own elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def line(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, markup=False, highlight=False)


class Progress(LiveLine):
    """Counts cells, tells the time left and what came of each; ``show`` draws the records so far for a width."""

    def __init__(self, total: int, show: Show, console: Console) -> None:
        super().__init__(console)
        self.total = total
        self.show = show
        self.records: list[Record] = []

    def started(self, cell: Cell, left_s: float, others: int = 0) -> None:
        left = f"about {format_duration(left_s)} left" if left_s > 1 else "over its budget, ending soon"
        more = f" and {others} more in turn" if others else ""
        text = f"[{len(self.records) + 1}/{self.total}] {cell.label}{more} ... {left}"
        if self.live:
            table = [self.show(self.records, self.console.width)] if self.records else []
            self.live.update(Group(*table, Text(text, style="cyan")), refresh=True)
        else:
            self.line(text)

    def finished(self, record: Record, reused: bool) -> None:
        self.records.append(record)
        if not self.live:
            stored = " (stored)" if reused else ""
            self.line(f"[{len(self.records)}/{self.total}] {record.cell.label}: {summary(record)}{stored}")

    def mended(self, problem: str) -> None:
        self.line(problem)


def summary(record: Record) -> str:
    """What came of a cell, in words."""
    metrics = record.metrics
    if record.status != "ok":
        return f"{record.status}, {record.reason}"
    if "step_ms" in metrics:
        step = f"{metrics['step_ms']:.0f} ms a step ({metrics['step_ms_low']:.0f} to {metrics['step_ms_high']:.0f})"
        return f"{step}, {metrics['tokens_per_s']:.0f} tokens/s, {format_bytes(metrics['peak_memory_bytes'])}"
    if "longest_seq_len" in metrics:
        return f"batch {metrics['largest_batch_size']}, length {metrics['longest_seq_len']} fit at the most"
    if "tpot_ms" not in metrics:
        return "done"
    tpot = f"{metrics['tpot_ms']:.1f} ms a token ({metrics['tpot_ms_low']:.1f} to {metrics['tpot_ms_high']:.1f})"
    return f"{tpot}, {metrics['tokens_per_s']:.1f} tokens/s, {format_bytes(metrics['peak_memory_bytes'])}"
