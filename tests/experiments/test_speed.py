"""The speed experiment for real, at size tiny: its records and its tables. Never its times."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.speed import TRAINED, all_cases
from tests.experiments.conftest import run, stored, variables

QUICK = ["--quick", "--device", "cpu", "--threads", "1", "--budget", "2s"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speed")
    done = run(
        folder, "speed", *QUICK, "--cases", "limits-fp32-1,decode-fp32-1,train-2048,train-systems", "--format", "json"
    )

    assert done.returncode == 0, done.stderr
    (folder / "tables.json").write_text(done.stdout)
    return folder


def test_every_cell_of_the_cases_has_a_record_with_its_rounds(folder: Path) -> None:
    records = stored(folder, "speed")

    assert [record.status for record in records] == ["ok"] * (1 + 6 + 2 + len(TRAINED))
    assert all(record.notes["rounds"] >= 7 for record in records)
    assert {record.cell.workload for record in records} == {"limits", "decode", "train_step", "train_tokens"}


def test_every_record_of_a_model_holds_its_prediction_and_the_residual(folder: Path) -> None:
    records = [record for record in stored(folder, "speed") if record.cell.workload != "limits"]

    for record in records:
        residual, peak = record.metrics["residual_bytes"], record.metrics["peak_memory_bytes"]
        assert residual == peak - record.metrics["predicted_peak_memory_bytes"]
        assert residual == 0 or record.cell.workload != "decode"


def test_tables_are_those_of_what_was_measured(folder: Path) -> None:
    tables = json.loads((folder / "tables.json").read_text())

    assert list(tables) == ["limits", "decode", "train_step", "train_systems"]
    decode = tables["decode"]["rows"]
    assert [row["system"] for row in decode] == ["retnet", "transformer", "transformer-flash"] * 2
    assert all(row["fraction"] > 0 and row["tpot_ms"] > 0 for row in decode)
    ratios = {row["system"]: row["speedup"] for row in tables["train_systems"]["rows"]}
    assert ratios.keys() == set(TRAINED)
    assert ratios["transformer-flash"] == 1.0
    assert all(ratio > 0 for ratio in ratios.values())
    assert sum(row["speedup"] == 1.0 for row in decode) >= 2  # the fastest Transformer of each batch


def test_what_was_measured_together_is_not_measured_again_and_the_module_runs_too(folder: Path) -> None:
    command = [sys.executable, "-m", "experiments.speed", *QUICK, "--cases", "decode-fp32-1", "--format", "jsonl"]
    done = subprocess.run(
        command, cwd=folder, env=variables(), capture_output=True, text=True, check=False, timeout=120
    )

    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["decode-fp32-1: 6 cells, stored"]
    assert len(done.stdout.splitlines()) == 6
    assert len(stored(folder, "speed")) == 9 + len(TRAINED)


def test_an_unknown_case_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    done = run(tmp_path, "speed", "--cases", "decode-fp31-1")

    assert done.returncode == 2
    assert done.stderr.startswith(
        "retbench: unknown case 'decode-fp31-1'; did you mean 'decode-fp32-1'? cases are limits-"
    )


def test_no_two_cells_of_all_cases_are_the_same() -> None:
    cells = [cell for case in all_cases("cpu", 2, 0).values() for cell in case.cells(quick=False)]

    assert len(cells) == len(set(cells))
