"""The options of retbench training: the cells that they ask for, and what they refuse. Children are stand-ins."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import training
from retbench import cli
from retbench.devices import cuda
from retbench.devices.cpu import DEVICE as CPU
from tests.retbench.conftest import Children

Run = Callable[..., tuple[int, str, str]]  # exit status, standard output and error


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments: str) -> tuple[int, str, str]:
        words = ["--size", "tiny", "--device", "cpu", "--threads", "1", "--seq-len", "64", *arguments]
        monkeypatch.setattr(sys, "argv", ["retbench", "training", *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return int(caught.value.code or 0), *capsys.readouterr()

    return run_command


def asked_for(children: Children) -> list[dict[str, Any]]:
    """The cells of the last prediction."""
    cells: list[dict[str, Any]] = [r for r in children.requests if r["task"] == "predict"][-1]["cells"]
    return cells


def test_each_combination_of_lists_is_a_cell(run: Run, children: Children) -> None:
    run("--systems", "lstm", "--checkpointing", "none,block", "--loss", "all", "--grad-accumulation", "1,2")

    found = [cell["training"] for cell in asked_for(children)]
    assert len(found) == 2 * 2 * 2
    assert {(one["checkpointing"], one["loss"], one["grad_accumulation"]) for one in found} == {
        (blocks, loss, count) for blocks in ("none", "block") for loss in ("plain", "chunked") for count in (1, 2)
    }


def test_the_systems_of_the_paper_run_by_default_and_retnet_with_its_chunk(run: Run, children: Children) -> None:
    status, out, err = run()

    assert status == 0, err
    assert {cell["system"]: cell.get("chunk_size") for cell in asked_for(children)} == {
        "retnet": 512, "transformer": None, "transformer-flash": None
    }  # fmt: skip
    assert {cell["workload"] for cell in asked_for(children)} == {"train_step"}
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(("option", "field", "value"), [("--compile", "compile", True), ("--seed=3", "seed", 3)])
def test_other_options_reach_the_cells(option: str, field: str, value: object, run: Run, children: Children) -> None:
    run(option, "--systems", "retnet")

    assert [cell[field] for cell in asked_for(children)] == [value]


def test_a_dry_run_measures_and_stores_nothing(run: Run, children: Children, tmp_path: Path) -> None:
    status, out, err = run("--dry-run", "--format", "json")

    assert status == 0, err
    assert [row["system"] for row in json.loads(out)["plan"]["rows"]] == training.SYSTEMS.split(",")
    assert children.measured == list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--checkpointing", "blocks"], ["unknown checkpointing 'blocks'", "did you mean 'block'?", "none, block"]),
        (["--loss", "huge"], ["unknown loss 'huge'", "plain, chunked"]),
        (["--dtype", "fp16"], ["--dtype fp16", "auto, fp32, bf16"]),
        (["--dtype", "fp8"], ["unknown dtype 'fp8'"]),
        (["--grad-accumulation", "0"], ["--grad-accumulation", "'0'"]),
        (["--grad-accumulation", "4096"], ["--grad-accumulation 4096", "at most 1024"]),
        (["--chunk-size", "0"], ["'--chunk-size'", "greater than or equal to 1"]),
        (["--systems", "retnt"], ["unknown system 'retnt'", "did you mean 'retnet'?"]),
        (["--systems", "torchscale"], ["unknown system 'torchscale'"]),
        (["--seq-len", "much"], ["--seq-len 'much'", "8k"]),
        (["--batch-size", "0"], ["--batch-size", "'0'"]),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments: list[str], words: list[str], run: Run, tmp_path: Path) -> None:
    status, out, err = run(*arguments)

    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert all(word in err for word in words), err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("gigabytes", "size"), [(80, "1.3b"), (24, "200m"), (6, "small"), (0, "tiny")])
def test_the_default_size_of_a_gpu_leaves_half_of_its_memory_to_activations(
    gigabytes: int, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda.Cuda, "free_bytes", lambda self: gigabytes * 10**9)

    assert training._default_size(cuda.DEVICE) == size


def test_the_default_length_is_the_papers_on_a_gpu_alone() -> None:
    assert training._default_seq_len(cuda.DEVICE, "auto") == "8192"
    assert training._default_seq_len(CPU, "auto") == training.CPU_SEQ_LEN
    assert training._default_seq_len(cuda.DEVICE, "1k") == "1k"
