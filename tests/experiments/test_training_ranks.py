"""``retbench training`` on several ranks: one record of all, whatever becomes of one of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.experiments.conftest import run, started, stored, variables
from tests.retbench.conftest import wait_for_end

TINY = ("training", "--size", "tiny", "--seq-len", "32", "--dtype", "fp32", "--threads", "1")
TWO = ("--tensor-parallel", "2", "--nproc", "2")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def worker_of_rank(launcher: int, rank: int) -> int:
    """The process that measures a rank's part of a cell, as soon as there is one; the launcher started the ranks."""
    while True:
        for process in children(launcher):
            if f"RANK={rank}" in Path(f"/proc/{process}/environ").read_text().split("\0"):
                for worker in children(process):
                    return worker
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tensor-parallel", "2"), "needs 2 processes, not 1: give --nproc 2, or start it with torchrun"),
        (("--tensor-parallel", "4", "--nproc", "4"), "does not divide n_heads = 2 of retnet; possible are 1, 2"),
        ((*TWO, "--compile"), "--compile is for one process"),
    ],
)
def test_ranks_that_cannot_be_are_refused_in_one_line_before_anything_starts(
    words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = run(tmp_path, *TINY, *words)

    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_bad_input_that_only_the_ranks_find_is_one_line_too(tmp_path: Path) -> None:
    (tmp_path / "results").touch()
    done = run(tmp_path, *TINY, "--data-parallel", "2", "--nproc", "2")

    assert done.returncode == 2
    assert done.stderr.startswith("retbench: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_dry_run_predicts_one_of_the_ranks_without_starting_any(tmp_path: Path) -> None:
    done = run(tmp_path, *TINY, "--tensor-parallel", "2", "--systems", "retnet,lstm", "--dry-run", "--format", "csv")

    _, retnet, lstm = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert ",," not in retnet
    assert ",," in lstm  # it is not predicted, and its record would say why
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_ranks_make_one_record_of_a_cell_with_the_peak_of_each(tmp_path: Path) -> None:
    done = run(tmp_path, *TINY, *TWO, "--systems", "retnet,lstm", "--budget", "2s")

    lstm, retnet = stored(tmp_path, "training")  # what has no prediction comes first
    peaks = retnet.metrics["rank_peak_memory_bytes"]
    assert done.returncode == 0, done.stderr
    assert (retnet.status, lstm.status) == ("ok", "unsupported")
    assert retnet.cell.training is not None
    assert retnet.cell.training.tensor_parallel == 2
    assert len(peaks) == 2
    assert 0 <= retnet.metrics["residual_bytes"] <= 2**18  # gloo holds on to what it reduces
    assert retnet.metrics["activations_bytes"] > 0
    assert retnet.metrics["peak_memory_bytes"] == max(peaks)
    assert retnet.metrics["weights_bytes"] == 4 * (retnet.metrics["parameters"] + 5 * 2 * 128) / 2  # norms are whole
    assert str(lstm.reason).startswith("no tensor parallelism: every channel of an LSTM")
    assert "retnet" in done.stdout


@pytest.mark.slow
def test_torchrun_itself_starts_the_ranks_and_only_rank_0_shows_a_table(tmp_path: Path) -> None:
    words = [*TINY, "--dtype", "bf16", "--data-parallel", "2", "--fsdp", "--systems", "retnet", "--budget", "2s"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

    done = subprocess.run(
        [*command, "-m", "retbench", *words],
        cwd=tmp_path,
        env={**variables(), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    (record,) = stored(tmp_path, "training")
    assert done.returncode == 0, done.stderr
    assert record.status == "ok"
    assert record.metrics["weights_bytes"] == 2 * record.metrics["parameters"] / 2
    assert done.stdout.count("Training, an optimizer step") == 1


@on_linux
@pytest.mark.slow
def test_a_rank_that_is_killed_ends_its_cell_and_not_the_others(tmp_path: Path) -> None:
    # A rank that waited for the other until its own time is up would wait for longer than this test may take.
    with started(tmp_path, *TINY, *TWO, "--systems", "retnet,transformer", "--budget", "900s") as command:
        command.wait_for("[1/2]")
        os.kill(worker_of_rank(command.process.pid, 1), signal.SIGKILL)
        command.wait_for("[2/2]")

    (record,) = stored(tmp_path, "training")
    assert (record.status, record.reason) == ("killed", "rank 1: killed by SIGKILL")


@on_linux
@pytest.mark.slow
def test_an_interrupt_ends_all_ranks_and_keeps_what_is_stored(tmp_path: Path) -> None:
    with started(tmp_path, *TINY, *TWO, "--systems", "retnet,transformer", "--budget", "4s") as command:
        command.wait_for("[2/2]")
        workers = [worker_of_rank(command.process.pid, rank) for rank in range(2)]
        command.process.send_signal(signal.SIGINT)
        status = command.finish()
        for worker in workers:
            wait_for_end(worker)

    assert status == 130
    assert "interrupted: 1 of 2 cells are stored in results/" in command.heard
    assert "Traceback" not in command.heard
    assert len(stored(tmp_path, "training")) == 1


@on_linux
@pytest.mark.slow
def test_nothing_runs_on_when_the_launcher_is_killed(tmp_path: Path) -> None:
    with started(tmp_path, *TINY, *TWO, "--systems", "retnet", "--budget", "600s") as command:
        command.wait_for("[1/1]")
        workers = [worker_of_rank(command.process.pid, rank) for rank in range(2)]
        command.process.kill()

        for worker in workers:
            wait_for_end(worker)
