"""``retbench plan``: its table and its bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from retbench import planner
from retbench.environment import ROOT
from retbench.errors import UsageError
from retbench.report.plan_tables import plan_rows, plan_tables
from retbench.report.tables import to_csv, to_json
from retbench.spec import Cell, Training
from retbench.specifications import find_specification

A100 = find_specification("a100-80gb")
ESTIMATE = {
    "parameters": 10**9,
    "flops": 312 * 10**9,
    "moved_bytes": 2039 * 10**6,
    "weights_bytes": 2 * 10**9,
    "state_bytes": 10**9,
    "gradients_bytes": 0,
    "optimizer_bytes": 0,
    "activations_bytes": 10**6,
    "peak_memory_bytes": 3 * 10**9 + 10**6,
    "longest_seq_len": 2**20,
    "largest_batch_size": 12,
}


def cell(workload: str = "decode", **other: Any) -> Cell:
    return Cell("retnet", "1.3b", workload, 8192, 1, "bf16", "cuda", 1, **other)


def planned(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "retbench", "plan", *words]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=240)


TRAINING = {"workload": "train_step", "size": "tiny"}
DEVICE = """
description = "a small device"
device = "cuda"
memory_bytes = 400_000_000
bytes_per_s = 1e12
source = "made up for a test"
flops_per_s = { bf16 = 1e14 }
"""


@pytest.mark.slow
def test_the_command_plans_several_workloads_for_a_device_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(DEVICE)
    words = "--workload decode,train_step --systems retnet --size tiny --seq-len 128 --batch-size 1 --format jsonl"
    done = planned(*words.split(), "--checkpointing", "all", "--device", str(tmp_path / "mine.toml"))

    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (0, "")
    assert [(row["workload"], row["training"]) for row in rows] == [
        ("decode", ""),
        ("train_step", "plain"),
        ("train_step", "checkpointed blocks"),
    ]
    assert {(row["how"], row["device"]) for row in rows} == {("model", "mine")}
    assert all(row["fits"] and row["largest_batch_size"] > 1 for row in rows)
    assert rows[1]["flops"] < rows[2]["flops"]


def test_a_chunk_is_that_of_a_retnets_checkpoint_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / model_type for model_type in ("torchscale-retnet", "llama")]
    for folder in folders:
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": folder.name}))
        (folder / "model.safetensors").write_bytes(b"x")
    planned: list[Cell] = []
    monkeypatch.setattr(planner, "show_plan", lambda cells, device, output_format: planned.extend(cells))

    planner.command(systems="none", checkpoint=list(map(str, folders)), chunk_size=512, batch_size="1")

    assert [(one.system.partition(":")[0], one.chunk_size) for one in planned] == [
        ("retnet", 512),
        ("transformer-flash", None),
    ]


def test_a_plan_of_several_devices_says_that_it_is_of_one_of_them_and_what_they_exchange() -> None:
    shared = cell("train_step", training=Training(tensor_parallel=2, data_parallel=4, fsdp=True))
    memory, work = plan_tables(plan_rows([shared], [{**ESTIMATE, "exchanged_bytes": 3 * 10**9}], A100), A100, [])

    text = to_csv(work)
    assert "tensor parallel 2, data parallel 4, fsdp" in text
    assert "3000000000" in text
    assert any(note.startswith("several devices: bytes, FLOPs") for note in memory.footnotes)
    assert any("exchanged" in note for note in work.footnotes)


def test_the_slower_of_memory_and_compute_binds() -> None:
    equal = ESTIMATE
    more_work = {**ESTIMATE, "flops": 2 * ESTIMATE["flops"]}
    rows = plan_rows([cell(), cell()], [equal, more_work], A100)

    assert [row["roofline_ms"] for row in rows] == [pytest.approx(1.0), pytest.approx(2.0)]
    assert [row["bound_by"] for row in rows] == ["memory", "compute"]


def test_what_is_larger_than_the_memory_does_not_fit() -> None:
    large = {**ESTIMATE, "peak_memory_bytes": A100.memory_bytes + 1}
    just = {**ESTIMATE, "peak_memory_bytes": A100.memory_bytes}

    assert [row["fits"] for row in plan_rows([cell(), cell()], [large, just], A100)] == [False, True]


def test_tables_say_model_and_csv_holds_every_number() -> None:
    rows = plan_rows([cell(), cell("train_step", training=Training("block"))], [ESTIMATE, {}], A100)
    memory, work = plan_tables(rows, A100, ["no prediction for that"])

    head, first, second = to_csv(memory).splitlines()
    assert "(model, not measured)" in memory.title
    assert "(model, not measured)" in work.title
    assert {*ESTIMATE, "roofline_ms", "bound_by", "fits", "device", "how"} <= set(head.split(","))
    assert "312000000000" in first
    assert second.count(",,") > 3
    assert "no prediction for that" in memory.footnotes
    assert json.loads(to_json([memory, work]))["plan"]["rows"][0]["peak_memory_bytes"] == 3_001_000_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workload": "decod"}, "unknown workload 'decod'; did you mean 'decode'"),
        ({"device": "a100"}, "unknown device 'a100'; did you mean 'a100-80gb'"),
        ({"size": "auto"}, "no default device: --size and --dtype must be named"),
        ({"size": "7b"}, "unknown size '7b'"),
        ({"systems": "retnt"}, "did you mean 'retnet'"),
        ({"dtype": "fp8"}, "unknown dtype 'fp8'"),
        ({"device": "cpu", "dtype": "fp16"}, "device cpu has no fp16"),
        ({"workload": "train_step", "dtype": "fp16"}, "fp16 would need scaled losses"),
        ({"checkpointing": "layer"}, "unknown checkpointing 'layer'"),
        ({"loss": "chunk"}, "did you mean 'chunked'"),
        ({"output_format": "xml"}, "unknown format 'xml'"),
        ({"seq_len": "0"}, "at least 1"),
        ({"tensor_parallel": 2}, "are of training: --workload must be train_step"),
        ({"data_parallel": 0, **TRAINING}, "--tensor-parallel and --data-parallel are 1 or more"),
        ({"fsdp": True, **TRAINING}, "--data-parallel must be 2 or more"),
        ({"tensor_parallel": 3, **TRAINING}, "does not divide n_heads = 2 of retnet; possible are 1, 2"),
    ],
)
def test_bad_input_is_one_line_that_says_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        planner.command(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_device_file_ends_the_command_with_status_2(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('description = "x"\ndevice = "cuda"\n')
    done = planned("--device", str(tmp_path / "mine.toml"))

    assert done.returncode == 2
    assert done.stderr.strip().endswith(
        f"mine.toml: memory_bytes is missing; it must be a whole number of bytes from 1 to {2**50}"
    )
    assert len(done.stderr.splitlines()) == 1
