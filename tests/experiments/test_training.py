"""The training experiment for real, at size tiny: records, tables, failures, and what it refuses."""

import json
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest

from retbench.record import Record
from retbench.spec import Training
from tests.experiments.conftest import run, started, stored
from tests.retbench.conftest import wait_for_end

SYSTEMS = ["--systems", "retnet,transformer,transformer-flash"]
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
    words = [*SYSTEMS, "--loss", "chunked", "--grad-accumulation", "2", "--budget", "4s"]
    done = run(folder, *TINY, *words, "--chunk-size", "16", "--format", "json")
    assert done.returncode == 0, done.stderr
    return Measured(folder, done, stored(folder, "training"))


def test_a_record_holds_what_was_asked_for_and_warm_samples(measured: Measured) -> None:
    by_system = {record.cell.system: record for record in measured.records}

    assert by_system.keys() == {"retnet", "transformer", "transformer-flash"}
    for record in measured.records:
        assert (record.status, record.cell.workload) == ("ok", "train_step")
        assert record.cell.training == Training(loss="chunked", grad_accumulation=2)
        assert len(record.samples["step_ns"]) == len(record.samples["optimizer_ns"]) >= 3
        assert record.warmup["discarded"] >= 2
        assert record.metrics["tokens_per_s"] == pytest.approx(2 * 64 / record.metrics["step_ms"] * 1e3)
    assert by_system["retnet"].cell.chunk_size == 16
    assert by_system["transformer"].cell.chunk_size is None
    assert by_system["retnet"].cell.form == "chunkwise"


def test_the_systems_of_one_setting_share_their_rounds(measured: Measured) -> None:
    times = {record.cell.system: record.samples["step_ns"] for record in measured.records}

    assert len({record.notes["group"] for record in measured.records}) == 1
    assert {record.notes["rounds"] for record in measured.records} == {len(one) for one in times.values()}
    retnet = json.loads(measured.done.stdout)["training"]["rows"][0]
    pairs = zip(times["transformer"], times["retnet"], strict=True)
    assert retnet["speedup_vs_transformer"] == pytest.approx(median(one / other for one, other in pairs))


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
    retnet, transformer, flash = found["training"]["rows"]
    assert transformer["speedup_vs_transformer"] == flash["speedup_vs_transformer-flash"] == 1.0
    for row, base in ((retnet, "transformer"), (retnet, "transformer-flash"), (transformer, "transformer-flash")):
        value, low, high = (row[f"speedup_vs_{base}{end}"] for end in ("", "_low", "_high"))
        assert 0 < low <= value <= high
    assert [row["size"] for row in found["paper"]["rows"]] == ["1.3b", "2.7b", "6.7b", "13b"]


def test_a_second_run_measures_nothing_again(measured: Measured) -> None:
    words = [*SYSTEMS, "--loss", "chunked", "--grad-accumulation", "2", "--chunk-size", "16"]
    again = run(measured.folder, *TINY, *words, "--format", "csv")

    assert again.stderr.count("(stored)") == 3
    assert len(stored(measured.folder, "training")) == 3


def test_a_cell_beyond_its_memory_is_a_row_with_its_reason(tmp_path: Path) -> None:
    done = run(tmp_path, *TINY, "--systems", "retnet", "--mem-limit", "32MiB", "--budget", "3s")

    assert done.returncode == 0, done.stderr
    (record,) = stored(tmp_path, "training")
    assert record.status == "oom"
    assert "allocate memory" in str(record.reason)
    assert "oom" in done.stdout


@pytest.mark.slow
def test_a_command_that_was_killed_goes_on_after_the_last_cells_in_turn(tmp_path: Path) -> None:
    words = [*TINY[:-1], "64,128", *SYSTEMS]
    with started(tmp_path, *words, "--budget", "10h") as command:  # an orphan would live too long for the test
        command.wait_for("[4/6]")
        worker = command.worker()
        os.kill(command.process.pid, signal.SIGKILL)
        command.process.wait()
        wait_for_end(worker)
    before = stored(tmp_path, "training")
    done = run(tmp_path, *words, "--budget", "4s")

    assert [(record.cell.seq_len, record.status) for record in before] == [(64, "ok")] * 3
    assert done.returncode == 0, done.stderr
    after = stored(tmp_path, "training")
    assert after[:3] == before
    assert [(record.cell.seq_len, record.status) for record in after[3:]] == [(128, "ok")] * 3
    assert [len({record.notes["group"] for record in some}) for some in (after[:3], after[3:])] == [1, 1]


@pytest.mark.slow
def test_cells_in_turn_whose_child_was_killed_are_measured_one_by_one(tmp_path: Path) -> None:
    with started(tmp_path, *TINY, *SYSTEMS, "--budget", "20s") as command:
        command.wait_for("and 2 more in turn")
        os.kill(command.worker(), signal.SIGKILL)
        status = command.finish()

    assert status == 0, command.heard
    records = stored(tmp_path, "training")
    assert [record.status for record in records] == ["ok"] * 3
    assert not any("group" in record.notes for record in records)
    again = run(tmp_path, *TINY, *SYSTEMS)
    assert "not paired" in again.stdout
