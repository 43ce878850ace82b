"""Shows a training run on stderr: one live line on a terminal, a line now and then elsewhere."""

from collections import deque

from rich.console import Console
from rich.text import Text

from retbench.learning.run import Run
from retbench.progress import LiveLine
from retbench.quantities import format_duration
from retbench.timing import rate

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
