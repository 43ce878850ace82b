"""The training experiment for real, at size tiny: records, tables, failures, and what it refuses."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from retbench.record import Record
from retbench.spec import Training
from tests.experiments.conftest import run, stored

TINY = ["training", "--size", "tiny", "--dtype", "bf16", "--device", "cpu", "--threads", "1", "--seq-len", "64"]


@dataclass(frozen=True)
class Measured:
    """A finished sweep."""

    folder: Path
    done: subprocess.CompletedProcess[str]
    records: tuple[Record, ...]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp("training")
    words = ["--systems", "retnet,transformer", "--loss", "chunked", "--grad-accumulation", "2", "--budget", "4s"]
    done = run(folder, *TINY, *words, "--chunk-size", "16", "--format", "json")
    assert done.returncode == 0, done.stderr
    return Measured(folder, done, stored(folder, "training"))


def test_a_record_holds_what_was_asked_for_and_warm_samples(measured: Measured) -> None:
    by_system = {record.cell.system: record for record in measured.records}

    assert by_system.keys() == {"retnet", "transformer"}
    for record in measured.records:
        assert (record.status, record.cell.workload) == ("ok", "train_step")
        assert record.cell.training == Training(loss="chunked", grad_accumulation=2)
        assert len(record.samples["step_ns"]) == len(record.samples["optimizer_ns"]) >= 3
        assert record.warmup["discarded"] >= 2
        assert record.metrics["tokens_per_s"] == pytest.approx(2 * 64 / record.metrics["step_ms"] * 1e3)
    assert by_system["retnet"].cell.chunk_size == 16
    assert by_system["transformer"].cell.chunk_size is None
    assert by_system["retnet"].cell.form == "chunkwise"


def test_the_parts_of_the_peak_add_up_to_it(measured: Measured) -> None:
    names = ("weights", "gradients", "optimizer", "activations", "logits", "rest")
    for record in measured.records:
        metrics = record.metrics

        assert metrics["peak_memory_bytes"] == sum(metrics[f"{name}_bytes"] for name in names)
        assert metrics["optimizer_bytes"] >= 12 * metrics["parameters"]  # bf16: a master weight and two moments
        assert metrics["weights_bytes"] == 2 * metrics["parameters"]


def test_the_tables_show_speed_memory_and_the_paper(measured: Measured) -> None:
    found = json.loads(measured.done.stdout)

    assert list(found) == ["training", "training_memory", "paper"]
    (retnet, transformer) = found["training"]["rows"]
    assert transformer["speedup_vs_transformer"] == 1.0
    assert retnet["speedup_vs_transformer"] == pytest.approx(retnet["tokens_per_s"] / transformer["tokens_per_s"])
    assert [row["size"] for row in found["paper"]["rows"]] == ["1.3b", "2.7b", "6.7b", "13b"]


def test_a_second_run_measures_nothing_again(measured: Measured) -> None:
    words = ["--systems", "retnet,transformer", "--loss", "chunked", "--grad-accumulation", "2", "--chunk-size", "16"]
    again = run(measured.folder, *TINY, *words, "--format", "csv")

    assert again.stderr.count("(stored)") == 2
    assert len(stored(measured.folder, "training")) == 2


def test_a_cell_beyond_its_memory_is_a_row_with_its_reason(tmp_path: Path) -> None:
    done = run(tmp_path, *TINY, "--systems", "retnet", "--mem-limit", "32MiB", "--budget", "3s")

    assert done.returncode == 0, done.stderr
    (record,) = stored(tmp_path, "training")
    assert record.status == "oom"
    assert "allocate memory" in str(record.reason)
    assert "oom" in done.stdout
