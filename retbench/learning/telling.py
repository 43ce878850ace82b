"""What the child of a learning cell tells: how far it is, now and then, and at the end its losses in stretches."""

from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

TOLD_S = 1.0  # between two messages on how far it is
STRETCHES = 64  # of a run, whose mean losses are kept

Send = Callable[[dict[str, Any]], None]


class Teller:
    """Sends how far a run of so many steps is; told of every step, its loss and its seconds."""

    def __init__(self, steps: int, send: Send) -> None:
        self._steps, self._send, self._quiet_s = steps, send, TOLD_S

    def __call__(self, step: int, loss: float, seconds: float) -> None:
        self._quiet_s += seconds
        if self._quiet_s >= TOLD_S or step == self._steps:
            self._send({"made": {"step": step, "steps": self._steps, "loss": loss}})
            self._quiet_s = 0.0


def curve(losses: Sequence[float], step_tokens: int) -> list[list[float]]:
    """The tokens read until the end of each stretch of the run, and its mean loss."""
    per = max(1, len(losses) // STRETCHES)
    stretches = [losses[at : at + per] for at in range(0, len(losses), per)]
    ends = (min(at + per, len(losses)) for at in range(0, len(losses), per))
    return [[end * step_tokens, mean(stretch)] for end, stretch in zip(ends, stretches, strict=True)]
