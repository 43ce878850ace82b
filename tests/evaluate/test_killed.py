"""An evaluation that is killed: what was done is there, and the same command runs what is missing."""

import sys
from pathlib import Path

import pytest

from models import build
from models.checkpoint import save_checkpoint
from tests.evaluate.test_evaluate import write
from tests.experiments.conftest import run, started, stored
from tests.retbench.conftest import wait_for_end

pytest.importorskip("lm_eval")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_a_kill_in_the_second_task_costs_that_task_alone(tmp_path: Path) -> None:
    save_checkpoint(build("retnet", "tiny", vocab_size=256), tmp_path / "tiny")
    for name, count in (("first", 3), ("second", 1500)):
        documents = [{"query": f"{n} + {n} =", "choices": [str(2 * n), str(n)], "label": 0} for n in range(count)]
        write(tmp_path, name, "validation", *documents)
    words = ["evaluate", "--checkpoint", str(tmp_path / "tiny"), "--tasks", "first,second", "--threads", "1"]
    words += ["--data-dir", str(tmp_path), "--num-fewshot", "0", "--dtype", "fp32"]
    with started(tmp_path, *words) as command:
        command.wait_for("[1/2]")
        child = command.worker()
        command.process.kill()
        wait_for_end(child)
    before = stored(tmp_path, "evaluate")
    again = run(tmp_path, *words)
    first, second = stored(tmp_path, "evaluate")

    assert before == (first,)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("(stored)") == 1
    assert (first.cell.task, first.status, first.metrics["documents"]) == ("first", "ok", 3)
    assert (second.cell.task, second.status, second.metrics["documents"]) == ("second", "ok", 1500)
