"""Runs a command of ours in a process group of its own: what it says is passed on, and nothing of it outlives us."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

from retbench.environment import ROOT
from retbench.isolate import pieces
from retbench.worker import die_with_parent

GRACE_S = 10.0  # for last words and the removal of temporary files, once a step is told to end
TAIL_BYTES = 4000

Hear = Callable[[bytes], None]


@dataclass(frozen=True)
class Ended:
    """How a command ended and after how many seconds; ``reason`` is set unless it is done."""

    outcome: Literal["done", "failed", "timeout"]
    reason: str | None
    seconds: float


def run_verb(arguments: Sequence[str], folder: Path, hear: Hear, timeout_s: float) -> Ended:
    """``retbench`` with these arguments in ``folder``; ``hear`` gets all that it writes, as it comes.

    The parent sleeps meanwhile. When it is interrupted or the time is over, the command is interrupted, then killed.
    """
    started = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "retbench", *arguments],
        cwd=folder,
        env=_variables(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    heard = _Tail(hear)
    try:
        _listen(child, heard, started + timeout_s)
    except TimeoutError:
        return Ended("timeout", f"not done after {timeout_s:.0f} s", time.monotonic() - started)
    finally:
        _end(child, heard)
    seconds = time.monotonic() - started
    if child.returncode == 0:
        return Ended("done", None, seconds)
    said = heard.last_line() or "it said nothing"
    how = f"exit status {child.returncode}" if child.returncode > 0 else signal.Signals(-child.returncode).name
    return Ended("failed", f"{how}: {said}", seconds)


class _Tail:
    """Passes on what is heard and keeps the end of it."""

    def __init__(self, hear: Hear) -> None:
        self.hear = hear
        self.kept = b""

    def __call__(self, data: bytes) -> None:
        self.kept = (self.kept + data)[-TAIL_BYTES:]
        self.hear(data)

    def last_line(self) -> str:
        lines = self.kept.decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""


def _listen(child: subprocess.Popen[bytes], hear: Hear, deadline: float) -> None:
    """Until the command has closed its output and ended; raises TimeoutError at the deadline."""
    for data in pieces(cast(IO[bytes], child.stdout).fileno(), deadline):
        hear(data)
    try:
        child.wait(timeout=max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired as error:
        raise TimeoutError from error


def _end(child: subprocess.Popen[bytes], hear: Hear) -> None:
    """Interrupts what is still running, hears its last words, and kills what is left of it."""
    try:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGINT)
            with suppress(TimeoutError):
                _listen(child, hear, time.monotonic() + GRACE_S)
    finally:
        with suppress(ProcessLookupError):  # all gone
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        cast(IO[bytes], child.stdout).close()


def _variables() -> dict[str, str]:
    """Ours, with our packages first: the folder of the results may hold others of the same names."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
