"""The claims command: measures that the forms agree, then judges by everything that is stored."""

import json
from pathlib import Path

import pytest
import torch

from models import build
from retbench.devices.cpu import DEVICE as CPU
from retbench.measure import Task, forms
from retbench.timing import Deadline
from tests.experiments.conftest import run, stored
from tests.report.factory import cell, sweep
from tests.report.test_draw import write


def errors(chunk_size: int, seq_len: int = 64) -> dict[str, float]:
    model = build("retnet", size="tiny", vocab_size=64, chunk_size=chunk_size)
    task = Task(cell("retnet", seq_len, 2), CPU, Deadline(10.0), {})
    found: dict[str, float] = {}
    for part in forms.measure(model, task):
        found |= part["metrics"]
    return found


def test_the_forms_of_retention_agree_within_the_rounding_of_float64() -> None:
    found = errors(chunk_size=24)

    assert set(found) == {"recurrent_error", "chunkwise_error"}
    assert all(0 < error < 1e-9 for error in found.values())


def test_forms_that_differ_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(net: torch.nn.Module, tokens: torch.Tensor, form: str) -> torch.Tensor:
        return torch.arange(4.0) + (0.5 if form == "chunkwise" else 0.0)

    monkeypatch.setattr(forms, "_logits", shifted)
    found = errors(chunk_size=24)

    assert found["recurrent_error"] == 0
    assert found["chunkwise_error"] == pytest.approx(0.5 / torch.arange(4.0).std().item())


@pytest.mark.slow
def test_the_command_judges_by_its_own_and_by_all_stored_records(tmp_path: Path) -> None:
    write(tmp_path / "results", sweep(batches=(1, 8)))
    done = run(tmp_path, "claims", "--format", "json")

    assert done.returncode == 0, done.stderr
    rows = {row["claim"]: row for row in json.loads(done.stdout)["claims"]["rows"]}
    assert rows["recurrent-form"]["verdict"] == rows["chunkwise-form"]["verdict"] == "supported"
    assert rows["latency"]["verdict"] == "not supported"
    assert rows["gate"]["verdict"] == "not run"
    assert [one.status for one in stored(tmp_path, "claims")] == ["ok"]
    assert run(tmp_path, "claims", "--fromat", "json").returncode == 2
