"""retbench scaling: which sizes it trains, by device, and that it leaves n-grams out."""

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from retbench.spec import Cell
from tests.learning.test_train import retbench

SIZES = {"cpu": ["nano", "tiny", "micro", "mini"], "cuda": ["1.3b", "2.7b", "6.7b"]}


@pytest.mark.parametrize("device", SIZES)
def test_every_size_of_the_devices_preset_is_trained_and_no_n_gram(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Cell] = []

    def train(experiment: str, cells: Sequence[Cell], *rest: Any) -> None:
        trained.extend(cells)

    monkeypatch.setattr("experiments.scaling.find_device", lambda name: SimpleNamespace(name=device))
    monkeypatch.setattr("retbench.learning.experiment.train", train)
    status = retbench(monkeypatch, "scaling", "--seeds", "2")

    assert status in (0, None)
    assert list(dict.fromkeys(cell.size for cell in trained)) == SIZES[device]
    assert {cell.system for cell in trained} == {"retnet", "transformer-flash"}
    assert {cell.seed for cell in trained} == {0, 1}
    assert {cell.device for cell in trained} == {device}


def test_a_dry_run_plans_a_step_of_every_size(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("retbench.plan.predict", lambda cells: ([{"peak_memory_bytes": 2**30} for _ in cells], []))
    status = retbench(monkeypatch, "scaling", "--preset", "scaling-cpu", "--dry-run", "--format", "json")
    out, err = capsys.readouterr()
    rows = json.loads(out)["plan"]["rows"]

    assert status in (0, None)
    assert "16 runs: retnet, transformer-flash; size nano, tiny, micro, mini; seed 0, 1; each 1024 steps" in err
    assert [(row["system"], row["size"]) for row in rows] == [
        (system, size) for size in SIZES["cpu"] for system in ("retnet", "transformer-flash")
    ]
