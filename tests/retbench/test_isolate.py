"""Whatever a child does, the parent gets its messages and a status, sleeps meanwhile, and leaves nothing running."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retbench import isolate
from retbench.environment import ROOT, child_variables
from retbench.isolate import Outcome, run_child
from tests.retbench.conftest import is_running, wait_for_end

PRELUDE = """
import json, os, signal, subprocess, sys, time
request, pipe = json.loads(sys.stdin.readline()), int(sys.argv[1])
def send(**message): os.write(pipe, json.dumps(message).encode() + b"\\n")
def done(status="ok", reason=None): send(done={"status": status, "reason": reason})
"""


def run(code: str, timeout_s: float = 60.0, **request: Any) -> Outcome:
    """A child that loads next to nothing and then runs ``code``."""
    return run_child([sys.executable, "-S", "-c", PRELUDE + code], request, timeout_s)


def test_a_child_that_says_done_is_ok_and_its_messages_come_in_order() -> None:
    outcome = run("send(part=1); send(part=2); done()")

    assert outcome == Outcome("ok", None, [{"part": 1}, {"part": 2}])


def test_the_request_reaches_the_child() -> None:
    outcome = run("send(request=request); done()", task="measure", text="é\n" * 40_000)

    assert outcome.messages == [{"request": {"task": "measure", "text": "é\n" * 40_000}}]


def test_the_status_and_reason_that_a_child_gives_are_kept() -> None:
    outcome = run("send(part=1); done('unsupported', 'not on this device')")

    assert outcome == Outcome("unsupported", "not on this device", [{"part": 1}])


def test_a_message_larger_than_the_pipe_passes() -> None:
    outcome = run("send(numbers=list(range(200_000))); done()")

    assert outcome == Outcome("ok", None, [{"numbers": list(range(200_000))}])


def test_a_child_that_hangs_is_ended_and_timed_out_with_its_messages_kept() -> None:
    outcome = run("send(pid=os.getpid()); time.sleep(600)", timeout_s=2)

    assert outcome.status == "timeout"
    assert outcome.reason == "not done after 2 s"
    assert not is_running(outcome.messages[0]["pid"])


def test_a_child_that_closes_the_pipe_and_hangs_is_timed_out() -> None:
    outcome = run("send(part=1); os.close(pipe); time.sleep(600)", timeout_s=2)

    assert (outcome.status, outcome.messages) == ("timeout", [{"part": 1}])


def test_a_child_that_hangs_after_it_is_done_keeps_its_result() -> None:
    outcome = run("send(part=1); done(); time.sleep(600)", timeout_s=2)

    assert outcome == Outcome("ok", None, [{"part": 1}])


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGTERM"])
def test_a_child_that_a_signal_ends_is_killed_and_the_signal_is_named(name: str) -> None:
    outcome = run(f"send(part=1); os.kill(os.getpid(), signal.{name})")

    assert outcome == Outcome("killed", f"killed by {name}", [{"part": 1}])


def test_a_child_that_the_kernel_ends_for_memory_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    kills = iter([3, 4])
    monkeypatch.setattr(isolate, "_kernel_oom_kills", lambda: next(kills))

    outcome = run("os.kill(os.getpid(), signal.SIGKILL)")

    assert outcome.status == "oom"
    assert "run out of memory" in str(outcome.reason)


def test_a_child_that_leaves_without_a_word_is_an_error() -> None:
    outcome = run("send(part=1); os._exit(0)")

    assert outcome == Outcome("error", "exited with status 0 without a result: it wrote nothing", [{"part": 1}])


def test_a_child_that_fails_is_an_error_that_quotes_its_last_line() -> None:
    outcome = run("print('loading', flush=True); print('no such kernel', file=sys.stderr); sys.exit(3)")

    assert outcome == Outcome("error", "exited with status 3 without a result: no such kernel", [])


def test_a_long_log_is_quoted_from_its_end() -> None:
    outcome = run("print('x' * 100_000, file=sys.stderr); print('the end\\xff', file=sys.stderr); sys.exit(1)")

    assert str(outcome.reason).startswith("exited with status 1 without a result: the end")


@pytest.mark.parametrize(
    "code",
    [
        "raise MemoryError",
        "b'x' * 2**62",
        "raise OSError(12, os.strerror(12))",
        "sys.exit('DefaultCPUAllocator: can\\'t allocate memory: you tried to allocate 8 bytes')",
        "sys.exit('CUDA out of memory. Tried to allocate 8.00 GiB')",
        "print('what():  std::bad_alloc', file=sys.stderr, flush=True); os.abort()",
    ],
)
def test_a_child_that_dies_of_memory_is_out_of_memory(code: str) -> None:
    outcome = run("send(part=1)\n" + code)

    assert (outcome.status, outcome.messages) == ("oom", [{"part": 1}])
    assert outcome.reason


@pytest.mark.parametrize("garbage", [b"garbage", b"3", b"null", b"[1]", b"\xff\xfe", b"", b"[" * 100_000])
def test_a_line_that_is_no_message_is_an_error_whatever_follows(garbage: bytes) -> None:
    line = f"b'[' * {len(garbage)}" if garbage.startswith(b"[[") else repr(garbage)

    outcome = run(f"send(part=1); os.write(pipe, {line} + b'\\n'); send(part=2); done()")

    assert outcome.status == "error"
    assert "which is no message" in str(outcome.reason)
    assert len(str(outcome.reason)) < 300
    assert outcome.messages == [{"part": 1}, {"part": 2}]


def test_a_line_that_death_cut_off_is_dropped() -> None:
    outcome = run("send(part=1); os.write(pipe, b'{\"part\": '); os.kill(os.getpid(), signal.SIGKILL)")

    assert outcome == Outcome("killed", "killed by SIGKILL", [{"part": 1}])


def test_a_grandchild_that_holds_the_pipe_neither_hangs_the_parent_nor_survives() -> None:
    code = "send(pid=subprocess.Popen(['sleep', '600'], pass_fds=[pipe]).pid); sys.exit(3)"

    outcome = run(code, timeout_s=2)

    assert outcome.status == "timeout"
    wait_for_end(outcome.messages[0]["pid"])


def test_a_grandchild_in_the_background_does_not_survive() -> None:
    outcome = run("send(pid=subprocess.Popen(['sleep', '600']).pid); done()")

    assert outcome.status == "ok"
    wait_for_end(outcome.messages[0]["pid"])


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, even where a shell has told this process to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_of_the_parent_ends_the_child(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    code = f"open({str(path)!r}, 'w').write(str(os.getpid())); os.kill(os.getppid(), signal.SIGINT); time.sleep(600)"

    with pytest.raises(KeyboardInterrupt):
        run(code)

    assert not is_running(int(path.read_text()))


def test_an_interrupt_of_the_terminal_reaches_the_parent_alone() -> None:
    outcome = run("send(group=os.getpgrp(), session=os.getsid(0)); done()")

    assert outcome.messages[0]["group"] != os.getpgrp()
    assert outcome.messages[0]["session"] != os.getsid(0)


def test_the_parent_sleeps_while_the_child_runs() -> None:
    before = time.process_time()

    outcome = run("time.sleep(1); done()")

    assert outcome.status == "ok"
    assert time.process_time() - before < 0.2  # CPU seconds: a parent that polls would burn the whole second


def test_nothing_that_a_child_prints_reaches_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    outcome = run("print('out'); print('err', file=sys.stderr); os.system('echo deeper'); done()")

    assert outcome.status == "ok"
    assert capfd.readouterr() == ("", "")


def test_no_descriptor_is_left_open() -> None:
    run("done()")
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - iterdir holds one more descriptor

    for code in ("done()", "os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"):
        run(code)

    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_worker_starts_with_our_packages_first_and_the_recorded_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def spy(
        command: list[str], request: dict[str, Any], timeout_s: float, variables: dict[str, str], _: object
    ) -> Outcome:
        seen.update(command=command, request=request, timeout_s=timeout_s, variables=variables)
        return Outcome("ok", None, [])

    monkeypatch.setattr(isolate, "run_child", spy)
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    isolate.run_worker({"task": "measure"}, threads=3, timeout_s=7.0)

    assert seen["command"] == [sys.executable, "-m", "retbench.worker"]
    assert (seen["request"], seen["timeout_s"]) == ({"task": "measure"}, 7.0)
    assert seen["variables"]["PYTHONPATH"] == os.pathsep.join([str(ROOT), "/elsewhere"])
    assert seen["variables"]["PYTHONSAFEPATH"] == "1"
    assert child_variables(3).items() <= seen["variables"].items()
    assert seen["variables"]["OMP_NUM_THREADS"] == "3"
    assert seen["variables"]["HOME"] == os.environ["HOME"]


def test_the_python_of_a_peer_finds_its_own_packages_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(isolate, "run_child", lambda *arguments: seen.extend(arguments))
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")

    isolate.run_worker({"task": "measure"}, 1, 7.0, "/peer/bin/python")
    command, _, _, variables, _ = seen

    assert command == ["/peer/bin/python", "-m", "retbench.worker"]
    assert variables["PYTHONPATH"] == "/elsewhere"
    assert variables["PYTHONSAFEPATH"] == "1"


def test_a_foreign_models_folder_where_the_command_runs_does_not_reach_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise SystemExit('the wrong models')")
    monkeypatch.chdir(tmp_path)

    outcome = isolate.run_worker({"task": "predict", "cells": []}, threads=1, timeout_s=60)

    assert outcome == Outcome("ok", None, [])


def test_without_the_kernels_counter_no_kill_is_blamed_on_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Path) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", missing)

    assert isolate._kernel_oom_kills() == 0
