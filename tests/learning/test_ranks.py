"""A training run on two ranks is that of one process, and a rank that dies ends it with a result."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.checkpoint import load_checkpoint
from retbench.learning.corpus import Corpus
from retbench.learning.run import checkpoints, read_metrics, read_result
from tests.experiments.conftest import arguments, started, variables
from tests.experiments.test_training_ranks import on_linux, worker_of_rank

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "retbench"]


def words(corpus: Corpus, folder: Path, *more: str) -> list[str]:
    """Forty steps of retbench train, saved every 20."""
    shape = "--size tiny --tokenizer bytes --tokens 2560 --seq-len 16 --batch-size 2 --grad-accumulation 2"
    rest = "--learning-rate 1e-4 --dtype fp32 --threads 2 --save-every 20"
    return ["train", *shape.split(), *rest.split(), "--corpus", corpus.name, "--out", str(folder), *more]


def make(command: list[str]) -> None:
    """Runs it to its good end."""
    done = subprocess.run(command, env=variables(), capture_output=True, text=True, check=False, timeout=400)

    assert done.returncode == 0, done.stderr
    assert "held-out perplexity" in done.stdout


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder)]


def assert_same(folder: Path, alone: Path) -> None:
    """The curves, the scores and the weights are equal but for rounding."""
    curves = [losses(each) for each in (folder, alone)]
    weights = [load_checkpoint(checkpoints(each)[-1]).state_dict() for each in (folder, alone)]
    scores = [read_result(each)["held_out"]["loss"] for each in (folder, alone)]

    assert len(curves[0]) == 40
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.allclose(weight, weights[1][name], atol=1e-4) for name, weight in weights[0].items())


@on_linux
@pytest.mark.slow
@pytest.mark.timeout(900)  # a dozen processes that load torch
def test_two_ranks_make_the_run_of_one_process_and_one_process_goes_on_where_a_rank_has_died(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    alone, shared, broken = (tmp_path / name for name in ("alone", "shared", "broken"))
    make(arguments(*words(corpus, alone)))
    make([*TORCHRUN, *words(corpus, shared, "--fsdp")])
    with started(tmp_path, *words(corpus, broken, "--data-parallel", "2")) as command:
        command.wait_for("step 1/40")
        os.kill(worker_of_rank(command.process.pid, 1), signal.SIGKILL)
        status = command.finish()
    killed, of_two = read_result(broken), losses(broken)
    make(arguments(*words(corpus, broken, "--resume")))

    assert status == 1
    assert "retbench: killed, rank 1: killed by SIGKILL" in command.heard
    assert (killed["status"], killed["reason"]) == ("killed", "rank 1: killed by SIGKILL")
    assert of_two
    assert of_two == pytest.approx(losses(alone)[: len(of_two)], abs=1e-5)
    assert read_result(shared)["run"]["data_parallel"] == 2
    assert_same(shared, alone)
    assert_same(broken, alone)


@on_linux
@pytest.mark.slow
def test_a_rank_whose_own_process_dies_ends_the_run_too(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = words(corpus, tmp_path / "run", "--data-parallel", "2", "--tokens", "10m")
    with started(tmp_path, *run) as command:
        command.wait_for("step 1/")
        worker = worker_of_rank(command.process.pid, 1)
        parent = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(parent, signal.SIGKILL)
        status = command.finish()

    assert status == 1
    assert read_result(tmp_path / "run")["status"] == "killed"
