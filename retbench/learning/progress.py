"""Shows training runs on stderr: live lines on a terminal, a line now and then elsewhere."""

from collections import deque
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from retbench.learning.run import Run
from retbench.progress import LiveLine
from retbench.quantities import format_duration
from retbench.record import Record
from retbench.spec import Cell
from retbench.timing import Deadline, rate

RECENT = 20  # steps whose times give the speed
QUIET_S = 10.0  # between lines where there is no terminal


class TrainingProgress(LiveLine):
    """Told of every step; the speed is that of the last steps."""

    def __init__(self, run: Run, console: Console) -> None:
        super().__init__(console)
        self.run = run
        self._times_s: deque[float] = deque(maxlen=RECENT)
        self._quiet_s = QUIET_S  # so that the first step is shown

    def made(self, step: int, loss: float, seconds: float) -> None:
        """``step`` steps are made, the last of them with ``loss`` in ``seconds``."""
        self._times_s.append(seconds)
        self._quiet_s += seconds
        mean_s = sum(self._times_s) / len(self._times_s)
        speed = f"{rate(self.run.step_tokens, mean_s):.0f} tokens/s"
        left = f"about {format_duration((self.run.steps - step) * mean_s)} left"
        text = f"step {step}/{self.run.steps}, loss {loss:.3f}, {speed}, {left}"
        if self.live:
            self.live.update(Text(text, style="cyan"), refresh=True)
        elif self._quiet_s >= QUIET_S or step == self.run.steps:
            self.line(text)
            self._quiet_s = 0.0


class SuiteProgress(LiveLine):
    """Told of the cells that are trained side by side; the time left is that of as many steps as were made so far."""

    def __init__(self, cells: Sequence[Cell], console: Console) -> None:
        super().__init__(console)
        self.total = len(cells)
        self.done = 0
        self._left = dict.fromkeys(cells, 1.0)  # the share of each cell's steps that is to be made
        self._at_start: float | None = None  # of all that, when the first step was told of
        self._clock = Deadline(0.0)
        self._running: dict[Cell, str] = {}

    def made(self, cell: Cell, step: int, steps: int, loss: float) -> None:
        """A running cell has made ``step`` of its ``steps``."""
        self._left[cell] = 1 - step / steps
        if self._at_start is None:
            self._at_start, self._clock = sum(self._left.values()), Deadline(0.0)
        self._running[cell] = f"{cell.label}: step {step}/{steps}, loss {loss:.3f}"
        if self.live:
            state = f"{self.done}/{self.total} cells done{self._time_left()}"
            self.live.update(Text("\n".join([*self._running.values(), state]), style="cyan"), refresh=True)

    def finished(self, record: Record, reused: bool) -> None:
        self.done += 1
        self._left.pop(record.cell, None)
        self._running.pop(record.cell, None)
        note = " (stored)" if reused else self._time_left()
        self.line(f"[{self.done}/{self.total}] {record.cell.label}: {summary(record)}{note}")

    def _time_left(self) -> str:
        left, start = sum(self._left.values()), self._at_start
        if not start or left >= start or not left:
            return ""
        return f", about {format_duration(-self._clock.left_s * left / (start - left))} left"


def summary(record: Record) -> str:
    """What came of a learning cell, in words."""
    if record.status != "ok":
        return f"{record.status}, {record.reason}"
    metrics = record.metrics
    if record.cell.recall:
        shares = ", ".join(f"{metrics[f'accuracy_at_{pairs}']:.2f} of {pairs}" for pairs in record.cell.recall.pairs)
        return f"recalls {shares} pairs"
    return f"perplexity {metrics['perplexity']:.2f}, {metrics['bits_per_byte']:.3f} bits a byte"
