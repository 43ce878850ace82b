"""retbench reproduce for real, at size tiny: after any end the same command goes on and measures nothing twice."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.experiments.conftest import Command, run, started, stored
from tests.retbench.conftest import wait_for_end

pytestmark = pytest.mark.slow

CELLS = "--systems retnet,transformer --size tiny --batch-size 1 --dtype fp32 --device cpu --threads 1"
PRESET = f"""
summary = "four cells, and what they show"
[[steps]]
name = "short"
command = "inference {CELLS} --seq-len 64"
takes = "20s"
budget = "4s"
[[steps]]
name = "wrong"
command = "inference {CELLS} --seq-len 64 --dtype fp8"
takes = "2s"
[[steps]]
name = "long"
command = "inference {CELLS} --seq-len 128"
takes = "20s"
budget = "4s"
[[steps]]
name = "report"
command = "report"
takes = "20s"
"""
REPRODUCE = ["reproduce", "--preset", "mine.toml"]


@contextmanager
def in_the_middle(folder: Path) -> Iterator[tuple[Command, list[int]]]:
    """The command while it measures the last cell, and the processes that do so."""
    (folder / "mine.toml").write_text(PRESET)
    with started(folder, *REPRODUCE) as command:
        command.wait_for("[3/4] long: ")
        command.wait_for("[1/2] ")
        command.wait_for("[2/2] ")
        verb = command.worker()
        yield command, [verb, *children(verb)]


def children(pid: int) -> list[int]:
    """The processes that a process has started, as soon as there are any."""
    while not (found := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        time.sleep(0.01)
    return list(map(int, found))


def continued(folder: Path) -> str:
    """What the same command says when it has gone on to the end."""
    done = run(folder, *REPRODUCE)

    assert done.returncode == 1  # one of the steps is wrong
    assert "- wrong: exit status 2: retbench: unknown dtype 'fp8'" in done.stdout
    records = stored(folder, "inference")
    assert {(record.cell.system, record.cell.seq_len) for record in records} == {
        (system, length) for system in ("retnet", "transformer") for length in (64, 128)
    }
    assert len(records) == 4
    assert (folder / "reports" / "report.md").read_text().startswith("# Results")
    assert (folder / "results" / "reproduce-mine.log").read_text().endswith(done.stderr)
    return done.stderr


def test_killed_it_leaves_nothing_running_and_goes_on(tmp_path: Path) -> None:
    with in_the_middle(tmp_path) as (command, processes):
        command.process.kill()
        for process in processes:
            wait_for_end(process)

    assert continued(tmp_path).count("(stored)") == 3


def test_interrupted_it_says_what_is_stored_and_goes_on(tmp_path: Path) -> None:
    with in_the_middle(tmp_path) as (command, processes):
        command.process.send_signal(signal.SIGINT)
        status = command.finish()
        for process in processes:
            wait_for_end(process)

    assert status == 130
    assert "interrupted: 1 of 2 cells are stored" in command.heard
    assert command.heard.endswith("interrupted in long; the same command continues\n")
    assert continued(tmp_path).count("(stored)") == 3


@pytest.mark.timeout(900)
def test_the_smoke_preset_runs_everything_and_a_second_time_measures_nothing(tmp_path: Path) -> None:
    started = time.monotonic()
    first = run(tmp_path, "reproduce", "--preset", "smoke", timeout_s=600)
    print(f"smoke: {time.monotonic() - started:.0f} s; 300 are promised on two cores")
    before = {path: path.read_bytes() for path in tmp_path.glob("results/*/*.jsonl")}
    report = (tmp_path / "reports" / "report.md").read_bytes()

    second = run(tmp_path, "reproduce", "--preset", "smoke", timeout_s=300)

    assert (first.returncode, second.returncode) == (0, 0), first.stdout + second.stdout
    assert {path: path.read_bytes() for path in tmp_path.glob("results/*/*.jsonl")} == before
    assert (tmp_path / "reports" / "report.md").read_bytes() == report
