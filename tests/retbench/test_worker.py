"""The child's side: requests become messages, and whatever goes wrong becomes a status in words."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from models import build
from retbench import isolate, worker
from retbench.environment import ROOT
from retbench.measure import predict
from retbench.spec import Cell
from tests.retbench.conftest import wait_for_end

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal on a parent's death is Linux's")
CELL = Cell("retnet", "tiny", "decode", seq_len=16, batch_size=2, dtype="fp32", device="cpu", threads=1)


def asking_for(cell: dict[str, Any], budget_s: float) -> dict[str, Any]:
    """The request of a sweep that has predicted nothing."""
    share = {"budget_s": budget_s, "prefill_s": 0.0, "skip_prefill": None}
    return {"task": "measure", "cell": cell, "predicted": {}, **share}


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the worker's main function run here without tying the test to the life of its parent."""
    monkeypatch.setattr(worker, "_die_with_reader", lambda descriptor: None)


def run_here(request: dict[str, Any]) -> list[dict[str, Any]]:
    """All that the worker's main function writes to its pipe, which holds it all."""
    read_end, write_end = os.pipe()
    with pytest.MonkeyPatch.context() as patch, os.fdopen(read_end) as pipe:
        patch.setattr(sys, "stdin", io.StringIO(json.dumps(request) + "\n"))
        worker.main(write_end)
        os.close(write_end)
        return [json.loads(line) for line in pipe]


def task_that_raises(error: Exception) -> Any:
    def task(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield {"metrics": {"tpot_ms": 1.0}}
        raise error

    return task


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (MemoryError(), "oom", "MemoryError"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: no\nstack"), "oom", "[enforce fail]"),
        (RuntimeError("CUDA out of memory. Tried to allocate 8.00 GiB"), "oom", "CUDA out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), "oom", "CUDA error"),
        (RuntimeError("could not create a memory object"), "oom", "could not create"),
        (OSError(12, os.strerror(12)), "oom", "[Errno 12]"),
        (NotImplementedError("no kernel for fp16\nstack"), "unsupported", "no kernel for fp16"),
        (NotImplementedError(), "unsupported", "NotImplementedError"),
        (ValueError("n_heads must divide d_model\nstack"), "error", "ValueError: n_heads must divide d_model"),
        (KeyError(), "error", "KeyError: KeyError"),
    ],
)
@pytest.mark.usefixtures("in_this_process")
def test_an_exception_becomes_a_status_and_one_line_after_what_was_sent_before(
    error: Exception, status: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(worker._TASKS, "measure", task_that_raises(error))

    part, last = run_here({"task": "measure"})

    assert part == {"metrics": {"tpot_ms": 1.0}}
    assert last["done"]["status"] == status
    assert last["done"]["reason"].startswith(reason)
    assert "\n" not in last["done"]["reason"]


@pytest.mark.usefixtures("in_this_process")
def test_a_grandchild_does_not_inherit_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    monkeypatch.setitem(worker._TASKS, "measure", lambda request: iter(()))
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"task": "measure"}\n'))

    worker.main(write_end)
    inheritable = os.get_inheritable(write_end)
    os.close(read_end)
    os.close(write_end)

    assert not inheritable


@pytest.mark.usefixtures("in_this_process", "one_thread")
def test_a_measured_cell_says_how_it_was_computed_and_under_what_load() -> None:
    messages = run_here(asking_for(CELL.to_dict(), budget_s=0.5))

    model = build(CELL.system, CELL.size)
    backend = "native+torch" if model.decode_backend == "native" else "torch"
    assert messages[0]["cell"] == {"backend": backend, "form": "recurrent"}
    assert messages[0]["notes"] == model.notes
    assert messages[-1] == {"done": {"status": "ok", "reason": None}}
    assert messages[-2]["notes"].keys() == {"load_average", "stolen_share", "involuntary_context_switches"}
    assert {"metrics", "contexts", "samples"} <= {name for message in messages for name in message}


@pytest.mark.usefixtures("in_this_process", "one_thread")
def test_a_quantized_cell_says_the_error_of_its_logits_and_what_computes_its_step() -> None:
    error, how, *measured, _ = run_here(asking_for({**CELL.to_dict(), "quantize": "int8"}, budget_s=0.5))

    assert error.keys() == {"metrics"}
    assert 0 < error["metrics"]["logit_error"] < 0.05
    backend = "torch" if "no_native_step" in how["notes"] else "native+torch"
    assert how["cell"]["backend"] == backend == run_here(asking_for(CELL.to_dict(), budget_s=0.5))[0]["cell"]["backend"]
    assert "tpot_ms" in measured[0]["metrics"]


@pytest.mark.usefixtures("in_this_process", "one_thread")
def test_a_cell_that_cannot_be_predicted_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def predict_some(cell: Cell) -> dict[str, int]:
        if cell.seq_len == 17:
            raise RuntimeError("no such kernel\nand more")
        return really(cell)

    really = predict.predict
    monkeypatch.setattr(predict, "predict", predict_some)
    cells = [CELL, replace(CELL, seq_len=17), CELL]

    first, unknown, last, done = run_here({"task": "predict", "cells": [cell.to_dict() for cell in cells]})

    assert done["done"]["status"] == "ok"
    assert first["problem"] is last["problem"] is None
    assert first["predicted"] == last["predicted"] != {}
    assert unknown == {"predicted": {}, "problem": "no prediction for retnet tiny, batch 2, length 17: no such kernel"}


@pytest.mark.usefixtures("in_this_process", "one_thread")
@pytest.mark.parametrize("task", ["predict", "describe"])
def test_a_model_that_cannot_be_is_told_as_bad_input(task: str) -> None:
    cells = [CELL, replace(CELL, system="hyena", seq_len=2**16)]

    good, bad, _ = run_here({"task": task, "cells": [cell.to_dict() for cell in cells]})

    assert "bad_input" not in good
    assert bad["bad_input"].startswith("hyena tiny, batch 2, length 65536: hyena reads at most l_max = 32768 tokens")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"system": "retnt"}, "ValueError: unknown system 'retnt'"),
        ({"workload": "sleep"}, "ModuleNotFoundError: No module named 'retbench.measure.sleep'"),
    ],
)
@pytest.mark.usefixtures("in_this_process", "one_thread")
def test_a_cell_that_cannot_run_says_why(change: dict[str, Any], reason: str) -> None:
    (done,) = run_here(asking_for({**CELL.to_dict(), **change}, budget_s=1.0))

    assert done["done"]["status"] == "error"
    assert reason in done["done"]["reason"]


def test_a_cell_beyond_its_limit_is_out_of_memory() -> None:
    cell = {**CELL.to_dict(), "mem_limit_bytes": 2**23}

    outcome = isolate.run_worker(asking_for(cell, budget_s=1.0), threads=1, timeout_s=120)

    assert (outcome.status, outcome.messages) == ("oom", [])
    assert "can't allocate memory" in str(outcome.reason)


@on_linux
def test_a_worker_whose_parent_died_before_it_could_ask_ends_at_once() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)

    done = subprocess.run(
        [sys.executable, "-m", "retbench.worker", str(write_end)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=[write_end],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        check=False,
        timeout=60,
    )
    os.close(write_end)

    assert (done.returncode, done.stderr) == (1, "the parent is gone\n")


@on_linux
def test_a_worker_dies_with_its_parent() -> None:
    # The parent kills itself once its child, which would sleep for ten minutes, has asked to die with it.
    child = "from retbench.worker import _die_with_reader; _die_with_reader(1); print('ready', flush=True); "
    child += "import time; time.sleep(600)"
    parent = (
        "import os, signal, subprocess, sys; "
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE); "
        "child.stdout.readline(); print(child.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )

    done = subprocess.run(
        [sys.executable, "-c", parent],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=60,
    )

    assert done.returncode == -9
    wait_for_end(int(done.stdout))
