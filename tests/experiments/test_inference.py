"""The inference experiment for real, at size tiny: its records, its figures, and what it survives."""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import inference
from models.catalogue import paper_systems, systems
from retbench.devices.cpu import DEVICE as CPU
from retbench.environment import capture
from retbench.record import Record
from tests.experiments.conftest import run, started, stored, variables
from tests.retbench.conftest import wait_for_end

TINY = ["inference", "--size", "tiny", "--dtype", "fp32", "--device", "cpu", "--threads", "1", "--batch-size", "2"]
TWO = [*TINY, "--systems", "retnet,transformer", "--seq-len", "64"]

FLOAT = 4  # bytes
PARAMETERS = 2 * (12 * 128**2 + 4 * 128) + 2 * 32000 * 128 + 2 * 128  # layers with two norms, embedding and head, norm
STATE_BYTES = {
    "retnet": 2 * 2 * 2 * 64 * 128 * FLOAT,  # layers, batch, heads, d_k, d_v
    "transformer": 2 * 2 * 2 * 64 * 128 * FLOAT,  # layers, keys and values, batch, length, d_model
}


@dataclass(frozen=True)
class Measured:
    """A finished sweep."""

    folder: Path
    done: subprocess.CompletedProcess[str]
    records: tuple[Record, ...]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Two cells with time enough for everything."""
    folder = tmp_path_factory.mktemp("measured")
    done = run(folder, *TWO, "--budget", "8s", "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    return Measured(folder, done, stored(folder, "inference"))


@pytest.fixture(params=["retnet", "transformer"])
def record(request: pytest.FixtureRequest, measured: Measured) -> dict[str, Any]:
    """One of the records as the JSON that other tools read."""
    found: dict[str, Any] = next(
        data for data in map(json.loads, measured.done.stdout.splitlines()) if data["cell"]["system"] == request.param
    )
    return found


# ---- a record ----


def test_stdout_holds_the_records_alone_and_they_are_those_on_disk(measured: Measured) -> None:
    lines = measured.done.stdout.splitlines()

    printed = {Record.from_json(line).key: line for line in lines}
    assert printed == {record.key: record.to_json() for record in measured.records}
    assert [Record.from_json(line).cell.system for line in lines] == ["retnet", "transformer"]


def test_progress_is_on_stderr_in_plain_lines(measured: Measured) -> None:
    lines = measured.done.stderr.splitlines()

    assert lines[0] == "2 cells: size tiny, length 64, batch 2; fp32 on cpu, 1 thread, budget 8s"
    assert re.fullmatch(r"\[1/2\] \w+ tiny, batch 2, length 64 \.\.\. about [\d.]+s left", lines[1])
    assert re.match(r"\[2/2\] \w+ tiny, batch 2, length 64: [\d.]+ ms a token", lines[4])
    assert "\x1b" not in measured.done.stderr


def test_a_record_has_the_fields_that_other_tools_read(record: dict[str, Any]) -> None:
    assert (record["schema_version"], record["experiment"]) == (1, "inference")
    assert (record["status"], record["reason"]) == ("ok", None)
    assert re.fullmatch(r"[0-9a-f]{64}", record["key"])
    assert record["created_at"].endswith("Z")
    datetime.fromisoformat(record["created_at"])


def test_a_record_says_what_was_measured_and_how(record: dict[str, Any]) -> None:
    cell = record["cell"]

    how = {"retnet": ("torch", "recurrent"), "transformer": ("eager", "kv-cache")}
    assert (cell["backend"].removeprefix("native+"), cell["form"]) == how[cell["system"]]
    assert cell["backend"].startswith("native+") == ("no_native_step" not in record["notes"])
    asked = {"size": "tiny", "workload": "decode", "seq_len": 64, "batch_size": 2, "dtype": "fp32", "device": "cpu"}
    assert {**asked, "threads": 1, "seed": 0, "mem_limit_bytes": None}.items() <= cell.items()


def test_the_time_of_a_token_has_its_interval_and_follows_from_the_raw_samples(record: dict[str, Any]) -> None:
    metrics, samples = record["metrics"], record["samples"]

    assert 0 < metrics["tpot_ms_low"] <= metrics["tpot_ms"] <= metrics["tpot_ms_high"]
    assert len(samples["step_ns"]) == len(samples["cpu_ns"]) >= 2
    assert all(isinstance(ns, int) and ns > 0 for ns in samples["step_ns"])
    assert metrics["tpot_ms"] == pytest.approx(statistics.median(samples["step_ns"]) / 1e6)
    assert (metrics["tpot_ms_p90"] is None) == (len(samples["step_ns"]) < 64)
    assert (metrics["tpot_ms_p99"] is None) == (len(samples["step_ns"]) < 662)


def test_the_first_token_is_timed_with_raw_samples(record: dict[str, Any]) -> None:
    metrics, samples = record["metrics"], record["samples"]

    assert (metrics["ttft_status"], metrics.get("ttft_reason")) == ("ok", None)
    assert metrics["ttft_ms"] == pytest.approx(statistics.median(samples["prefill_ns"]) / 1e6)
    assert len(samples["prefill_ns"]) == len(samples["prefill_cpu_ns"])
    assert (metrics["ttft_ms_low"] is None) == (len(samples["prefill_ns"]) < 3)


def test_warm_up_is_told_with_its_first_call(record: dict[str, Any]) -> None:
    assert record["warmup"]["discarded"] >= 1
    assert record["warmup"]["first_ns"] > 0


def test_throughput_is_of_the_whole_batch_at_the_last_position_and_averaged(record: dict[str, Any]) -> None:
    metrics, contexts = record["metrics"], record["contexts"]

    tpots = np.interp(range(1, 65), [c["context"] for c in contexts], [c["tpot_ms"] for c in contexts])
    assert metrics["tokens_per_s"] == pytest.approx(2 / metrics["tpot_ms"] * 1e3)
    assert metrics["tokens_per_s_mean"] == pytest.approx(2 * 64 / tpots.sum() * 1e3)


def test_every_depth_has_its_own_samples_and_memory(record: dict[str, Any]) -> None:
    contexts, metrics = record["contexts"], record["metrics"]

    assert [context["context"] for context in contexts] == [1, 16, 32, 64]
    for context in contexts:
        assert context["tpot_ms_low"] <= context["tpot_ms"] <= context["tpot_ms_high"]
        assert len(context["step_ns"]) == len(context["cpu_ns"]) == len(record["samples"]["step_ns"])
    assert contexts[-1]["step_ns"] == record["samples"]["step_ns"]
    assert contexts[-1]["peak_memory_bytes"] == metrics["peak_memory_bytes"]
    assert contexts[-1]["state_bytes"] == metrics["state_bytes"]


def test_the_slope_over_the_context_has_its_interval(record: dict[str, Any]) -> None:
    metrics = record["metrics"]

    assert metrics["tpot_slope_ms_per_1k_tokens_low"] <= metrics["tpot_slope_ms_per_1k_tokens"]
    assert metrics["tpot_slope_ms_per_1k_tokens"] <= metrics["tpot_slope_ms_per_1k_tokens_high"]


def test_memory_is_weights_state_and_activations_to_the_byte_and_was_predicted_to_the_byte(
    record: dict[str, Any],
) -> None:
    metrics, predicted = record["metrics"], record["predicted"]

    assert metrics["parameters"] == pytest.approx(PARAMETERS, rel=0.01)
    assert metrics["weights_bytes"] == metrics["parameters"] * FLOAT
    assert metrics["state_bytes"] == STATE_BYTES[record["cell"]["system"]]
    assert metrics["activations_bytes"] > 2 * 32000 * FLOAT  # the logits
    parts = metrics["weights_bytes"] + metrics["state_bytes"] + metrics["activations_bytes"]
    assert metrics["peak_memory_bytes"] == parts == metrics["predicted_peak_memory_bytes"]
    assert metrics["prefill_peak_memory_bytes"] == predicted["prefill_peak_memory_bytes"]
    assert metrics["residual_bytes"] == metrics["prefill_residual_bytes"] == 0
    assert all(metrics[f"{name}_bytes"] == predicted[f"{name}_bytes"] for name in ("weights", "state", "step"))
    assert predicted["peak_memory_bytes"] == metrics["peak_memory_bytes"]
    assert metrics["vm_hwm_bytes"] > metrics["peak_memory_bytes"]
    assert metrics["energy_mj_per_token"] is None


def test_the_state_of_retnet_does_not_grow_and_a_cache_does(measured: Measured) -> None:
    states = {record.cell.system: [c["state_bytes"] for c in record.contexts] for record in measured.records}

    assert states["retnet"] == [STATE_BYTES["retnet"]] * 4
    assert states["transformer"] == [STATE_BYTES["transformer"] * depth // 64 for depth in (1, 16, 32, 64)]


def test_the_conditions_stand_in_the_record(record: dict[str, Any]) -> None:
    environment, now = record["environment"], capture(CPU, threads=1)

    assert environment.keys() == now.keys()
    assert {name for name in now if environment[name] != now[name]} <= {"commit", "dirty"}  # one may work meanwhile
    assert environment["variables"]["OMP_WAIT_POLICY"] == "PASSIVE"
    assert {"load_average", "stolen_share", "involuntary_context_switches"} <= record["notes"].keys()
    assert record["notes"]["state_fill"].startswith("synthetic")


def test_figures_lie_beside_the_records(measured: Measured) -> None:
    folder = measured.folder / "reports" / "inference"

    assert sorted(path.name for path in folder.iterdir()) == [
        *[f"{stem}.{suffix}" for stem in ("figure1", "figure6") for suffix in ("pdf", "png", "svg")],
    ]
    assert all(path.stat().st_size > 1000 for path in folder.iterdir())
    assert str(Path("reports", "inference", "figure6.png")) in measured.done.stderr


def test_the_same_command_shows_the_stored_records_and_measures_nothing(measured: Measured) -> None:
    done = run(measured.folder, *TWO, "--budget", "8s")

    assert done.returncode == 0
    assert stored(measured.folder, "inference") == measured.records
    assert done.stderr.count("(stored)") == 2
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert {"retnet", "transformer"} <= set(done.stdout.split())


# ---- what it survives ----


@dataclass(frozen=True)
class Chapter:
    """What a command said, how it ended, and the records that were on disk then: system, status and reason."""

    heard: str
    status: int
    records: list[tuple[str, str, str | None]]


def chapter(heard: str, status: int, folder: Path) -> Chapter:
    records = stored(folder, "inference")
    return Chapter(heard, status, [(record.cell.system, record.status, record.reason) for record in records])


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> list[Chapter]:
    """First the child of cell 1 is killed, then the command in cell 2; then Ctrl-C in cell 2; then all is well."""
    folder, words, chapters = tmp_path_factory.mktemp("story"), [*TWO, "--budget", "2s"], []
    with started(folder, *TWO, "--budget", "10h") as command:  # an orphan would live too long for the test
        command.wait_for("[1/2]")
        os.kill(command.worker(), signal.SIGKILL)
        command.wait_for("[2/2]")
        worker = command.worker()
        os.kill(command.process.pid, signal.SIGKILL)
        chapters.append(chapter(command.heard, command.process.wait(), folder))
        wait_for_end(worker)
    with started(folder, *words) as command:
        command.wait_for("[2/2]")
        worker = command.worker()
        os.kill(command.process.pid, signal.SIGINT)
        status = command.finish()
        chapters.append(chapter(command.heard, status, folder))
        wait_for_end(worker)
    done = run(folder, *words)
    return [*chapters, chapter(done.stderr, done.returncode, folder)]


def test_a_killed_child_becomes_a_record_and_the_sweep_goes_on(story: list[Chapter]) -> None:
    heard = story[0].heard.splitlines()

    assert heard[-2].startswith("[1/2] ")
    assert heard[-2].endswith(" tiny, batch 2, length 64: killed, killed by SIGKILL")
    assert heard[-1].startswith("[2/2] ")


def test_kill_9_of_the_command_ends_its_child_and_loses_the_cell_in_flight_alone(story: list[Chapter]) -> None:
    ((_, status, reason),) = story[0].records

    assert story[0].status == -signal.SIGKILL
    assert (status, reason) == ("killed", "killed by SIGKILL")


def test_ctrl_c_ends_with_130_and_keeps_what_is_measured(story: list[Chapter]) -> None:
    killed, measured = story[1].records

    assert story[1].status == 130
    assert killed == story[0].records[0]
    assert measured == (killed[0], "ok", None)
    assert "interrupted: 1 of 2 cells are stored in results/" in story[1].heard
    assert "Traceback" not in story[1].heard


def test_the_same_command_continues_where_it_was_ended(story: list[Chapter]) -> None:
    *before, last = story[2].records

    assert story[2].status == 0
    assert before == story[1].records
    assert {before[0][0], last[0]} == {"retnet", "transformer"}
    assert last[1:] == ("ok", None)
    assert story[2].heard.count("(stored)") == 1


def test_a_cell_beyond_all_memory_is_skipped_with_its_predicted_bytes(tmp_path: Path) -> None:
    words = [*TINY, "--systems", "transformer", "--size", "13b", "--batch-size", "65536", "--seq-len", "64k"]

    done = run(tmp_path, *words)

    (record,) = stored(tmp_path, "inference")
    assert done.returncode == 0
    assert record.status == "skipped"
    assert re.fullmatch(r"predicted to need \d{7}\.\d\d GiB, \d+\.\d\d GiB are free", str(record.reason))
    assert record.metrics == {"predicted_peak_memory_bytes": record.predicted["peak_memory_bytes"]}
    assert (record.samples, record.contexts) == ({}, [])


def test_a_dry_run_loads_no_torch_in_its_own_process_and_writes_nothing(tmp_path: Path) -> None:
    code = f"""
import sys
sys.argv = ["retbench", *{[*TWO, "--dry-run"]!r}]
from retbench.cli import main
try:
    main()
except SystemExit as end:
    print("torch" in sys.modules, end.code or 0, file=sys.stderr)
"""

    command, environment = [sys.executable, "-c", code], variables()
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=120
    )

    assert done.stderr.splitlines()[-1] == "False 0"
    assert "32.75 MiB" in done.stdout  # the weights
    assert list(tmp_path.iterdir()) == []


# ---- slow ----


@pytest.mark.slow
def test_fresh_and_another_seed_are_measured_again(tmp_path: Path) -> None:
    words = [*TINY, "--systems", "retnet", "--seq-len", "64", "--budget", "2s"]

    for more in ([], [], ["--fresh"], ["--seed", "1"], []):
        assert run(tmp_path, *words, *more).returncode == 0
    records = stored(tmp_path, "inference")

    assert [record.cell.seed for record in records] == [0, 0, 1]
    assert records[0].key == records[1].key != records[2].key


@pytest.mark.slow
def test_a_cell_beyond_the_memory_limit_is_out_of_memory_and_the_sweep_goes_on(tmp_path: Path) -> None:
    words = [*TINY, "--systems", "transformer,retnet", "--seq-len", "64k", "--mem-limit", "128MiB", "--budget", "2s"]

    done = run(tmp_path, *words)

    found = {record.cell.system: record for record in stored(tmp_path, "inference")}
    retnet, transformer = found["retnet"], found["transformer"]
    assert done.returncode == 0
    assert (transformer.status, retnet.status) == ("oom", "ok")
    assert "can't allocate memory" in str(transformer.reason)
    assert transformer.predicted["state_bytes"] > transformer.cell.mem_limit_bytes == 2**27  # type: ignore[operator]
    assert "oom" in done.stdout


@pytest.mark.slow
def test_a_cell_that_dies_in_prefill_keeps_what_decode_measured(tmp_path: Path) -> None:
    words = [*TINY, "--batch-size", "1", "--seq-len", "2k", "--mem-limit", "96MiB", "--budget", "30s"]

    done = run(tmp_path, *words, "--systems", "transformer,retnet")

    found = {record.cell.system: record for record in stored(tmp_path, "inference")}
    retnet, transformer = found["retnet"], found["transformer"]
    assert done.returncode == 0
    assert (transformer.status, retnet.status) == ("oom", "ok")
    assert transformer.metrics["tpot_ms"] > 0
    assert transformer.metrics["peak_memory_bytes"] == transformer.predicted["peak_memory_bytes"]
    assert transformer.predicted["prefill_peak_memory_bytes"] > transformer.metrics["weights_bytes"] + 2**26


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_every_system_is_measured_at_odd_lengths_and_in_bf16(tmp_path: Path) -> None:
    words = [*TINY, "--dtype", "bf16", "--systems", "all", "--seq-len", "1,3,77", "--budget", "20s"]

    done = run(tmp_path, *words, timeout_s=900)

    records = stored(tmp_path, "inference")
    assert done.returncode == 0
    assert len(records) == 3 * len(paper_systems())
    assert {(record.status, record.reason) for record in records} == {("ok", None)}
    assert {record.contexts[-1]["context"] for record in records} == {1, 3, 77}


# ---- the experiment's own file ----


def test_the_defaults_compare_retnet_with_every_transformer_that_there_is() -> None:
    assert set(inference.SYSTEMS.split(",")) <= set(systems())
    assert {"retnet", "transformer", "transformer-flash", "transformer-concat-cache"} == set(
        inference.SYSTEMS.split(",")
    )


def test_tables_and_figures_are_made_of_records(measured: Measured) -> None:
    first, *others = inference.tables(measured.records)

    assert first.rows
    assert len(others) >= 1
    assert set(inference.figures(measured.records)) == {"figure1", "figure6"}
