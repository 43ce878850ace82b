"""What the tests of the experiments share: commands that run for real, in a folder and processes of their own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from retbench.environment import ROOT
from retbench.record import Record
from retbench.store import Store


@dataclass
class Command:
    """``retbench`` in a folder, started and not waited for; ``heard`` is what it has said on stderr."""

    process: subprocess.Popen[str]
    heard: str = ""

    def wait_for(self, words: str) -> None:
        """Reads stderr until a line holds the words."""
        for line in cast(IO[str], self.process.stderr):
            self.heard += line
            if words in line:
                return
        raise AssertionError(f"{words!r} never came:\n{self.heard}")

    def worker(self) -> int:
        """The process that measures a cell, as soon as there is one."""
        parent = self.process.pid
        while not (found := Path(f"/proc/{parent}/task/{parent}/children").read_text().split()):
            time.sleep(0.01)
        return int(found[0])

    def finish(self) -> int:
        """Reads to the end and returns the exit status."""
        self.heard += cast(IO[str], self.process.stderr).read()
        return self.process.wait()


def arguments(*words: str) -> list[str]:
    return [sys.executable, "-m", "retbench", *words]


def variables() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(folder: Path, *words: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    """The command, run to its end."""
    return subprocess.run(
        arguments(*words), cwd=folder, env=variables(), capture_output=True, text=True, check=False, timeout=timeout_s
    )


@contextmanager
def started(folder: Path, *words: str) -> Iterator[Command]:
    """The command while it runs; nothing of it is left at the end."""
    process = subprocess.Popen(
        arguments(*words),
        cwd=folder,
        env=variables(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may have told us to ignore it
    )
    try:
        yield Command(process)
    finally:
        process.kill()
        process.wait()
        cast(IO[str], process.stderr).close()


def stored(folder: Path, experiment: str) -> tuple[Record, ...]:
    """The records on disk; every line must be one."""
    (path,) = folder.glob(f"results/*/{experiment}.jsonl")
    contents = Store(path).read()
    assert contents.problems == ()
    return contents.records
