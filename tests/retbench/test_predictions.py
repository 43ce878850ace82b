"""Predictions are kept as records, and traced again where the code or torch is another."""

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from retbench import isolate
from retbench.isolate import Outcome
from retbench.predictions import predicted
from retbench.spec import Cell
from tests.retbench.conftest import PREDICTION

CELLS = [Cell(system, "tiny", "decode", 64, 1, "fp32", "cuda", threads=1) for system in ("retnet", "transformer")]


def test_a_prediction_is_traced_once_by_each_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[int] = []

    def run_worker(request: dict[str, Any], threads: int, timeout_s: float) -> Outcome:
        traced.append(len(request["cells"]))
        return Outcome("ok", None, [{"predicted": PREDICTION, "problem": None} for _ in request["cells"]])

    monkeypatch.setattr(isolate, "run_worker", run_worker)
    first, again = (predicted("inference", cells, tmp_path) for cells in (CELLS[:1], CELLS))
    monkeypatch.setattr(metadata, "version", lambda name: "another")
    other = predicted("inference", CELLS, tmp_path)

    assert traced == [1, 1, 2]
    assert again[0] == first[0]
    assert [record.predicted for record in other] == [PREDICTION] * 2
    assert [record.environment["torch"] for record in other] == ["another"] * 2
