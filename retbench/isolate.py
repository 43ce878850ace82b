"""Runs one request in an exec'd child of its own: whatever happens there, the parent gets messages and a status."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retbench.environment import ROOT, child_variables
from retbench.record import Status
from retbench.worker import OUT_OF_MEMORY

LOG_TAIL_BYTES = 4000

Listener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """How a child ended and every message it sent before; ``reason`` is set for every status but ok."""

    status: Status
    reason: str | None
    messages: list[dict[str, Any]]


def run_worker(
    request: dict[str, Any],
    threads: int,
    timeout_s: float,
    python: str = sys.executable,
    root: Path | None = None,
    listener: Listener = lambda message: None,
) -> Outcome:
    """Runs ``retbench.worker`` under the recorded variables; the listener is told every message as it comes."""
    command = [python, "-m", "retbench.worker"]
    return run_child(command, request, timeout_s, variables_of(threads, python, root), listener)


def variables_of(threads: int, python: str = sys.executable, root: Path | None = None) -> dict[str, str]:
    """The variables of a child: the recorded ones, and our own packages, or those of ``root``, first on its path.

    The Python of a peer finds them last, by itself: where ours lie beside others, those must not hide the peer's.
    """
    ours = [str(root or ROOT)] if root or python == sys.executable else []
    path = os.pathsep.join(filter(None, [*ours, os.environ.get("PYTHONPATH", "")]))
    variables = {**os.environ, **child_variables(threads), "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    variables["PYTHONUNBUFFERED"] = "1"  # what a dying child said must be in its log
    return variables


def run_child(
    command: Sequence[str],
    request: dict[str, Any],
    timeout_s: float,
    variables: dict[str, str] | None = None,
    listener: Listener = lambda message: None,
) -> Outcome:
    """Runs ``command FD``, gives it the request on standard input and reads JSON lines from FD until it ends.

    The parent sleeps on the pipe. A child that is still there after ``timeout_s``, and all that it started, is killed;
    so it is when the parent is interrupted.
    """
    read_end, write_end = os.pipe()
    oom_kills = _kernel_oom_kills()
    with tempfile.TemporaryFile() as log, tempfile.TemporaryFile() as standard_input:
        standard_input.write(json.dumps(request).encode() + b"\n")
        standard_input.seek(0)
        child = subprocess.Popen(
            [*command, str(write_end)],
            stdin=standard_input,
            stdout=log,
            stderr=log,
            pass_fds=[write_end],
            start_new_session=True,
            env=variables,
        )
        os.close(write_end)
        messages: list[dict[str, Any]] = []
        deadline = time.monotonic() + timeout_s
        try:
            for message in _messages(read_end, deadline):
                messages.append(message)
                listener(message)
            child.wait(timeout=max(deadline - time.monotonic(), 0.1))
            timed_out = False
        except (TimeoutError, subprocess.TimeoutExpired):
            timed_out = True
        finally:
            os.close(read_end)
            _kill_group(child)
        ends = [message["done"] for message in messages if "done" in message]
        if ends:
            status, reason = ends[0]["status"], ends[0]["reason"]
        elif timed_out:
            status, reason = "timeout", f"not done after {timeout_s:.0f} s"
        else:
            status, reason = _unexpected_end(child.returncode, _tail(log), _kernel_oom_kills() > oom_kills)
    return Outcome(status, reason, [message for message in messages if "done" not in message])


def _messages(descriptor: int, deadline: float) -> Iterator[dict[str, Any]]:
    """JSON lines until the pipe closes; a line that was cut off ends it. Raises TimeoutError at the deadline."""
    buffer = b""
    for data in pieces(descriptor, deadline):
        *lines, buffer = (buffer + data).split(b"\n")
        yield from map(_message, lines)


def pieces(descriptor: int, deadline: float) -> Iterator[bytes]:
    """What comes through a pipe until it closes. Raises TimeoutError at the deadline, of the monotonic clock."""
    while True:
        readable, _, _ = select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))
        if not readable:
            raise TimeoutError
        data = os.read(descriptor, 1 << 16)
        if not data:
            return
        yield data


def _message(line: bytes) -> dict[str, Any]:
    """The JSON object of a line; a line that is none ends the cell as an error."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if isinstance(message, dict):
        return message
    return {"done": {"status": "error", "reason": f"sent {line[:60]!r}, which is no message"}}


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """Kills what is left of the child's session and collects the child."""
    with suppress(ProcessLookupError):  # all gone
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _unexpected_end(returncode: int, log_tail: str, oom_killed: bool) -> tuple[Status, str]:
    """The status of a child that ended without saying so."""
    last_line = log_tail.strip().splitlines()[-1:] or ["it wrote nothing"]
    if returncode >= 0:
        status: Status = "oom" if _memory_failure(log_tail) else "error"
        return status, f"exited with status {returncode} without a result: {last_line[0]}"
    name = signal.Signals(-returncode).name
    if oom_killed and name == "SIGKILL":
        return "oom", "killed by the kernel, which had run out of memory"
    if _memory_failure(log_tail):
        return "oom", f"killed by {name}: {last_line[0]}"
    return "killed", f"killed by {name}"


def _memory_failure(log_tail: str) -> bool:
    return any(sign in log_tail.lower() for sign in OUT_OF_MEMORY)


def _kernel_oom_kills() -> int:
    """Processes that the kernel has killed for memory since boot; 0 where it does not tell."""
    try:
        counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    except OSError:
        return 0
    return int(counters.get("oom_kill", 0))


def _tail(log: Any) -> str:
    log.seek(0, os.SEEK_END)
    log.seek(max(log.tell() - LOG_TAIL_BYTES, 0))
    return str(log.read().decode(errors="replace"))
