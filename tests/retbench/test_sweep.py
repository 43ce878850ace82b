"""A sweep makes a record of every cell whatever becomes of it, stores it at once, and measures nothing twice."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest

from models.catalogue import peers
from retbench import isolate, plan, sweep, timing
from retbench.devices import Device
from retbench.isolate import Outcome
from retbench.quantities import format_bytes
from retbench.record import Record, Status
from retbench.session import plan_table
from retbench.spec import Cell, Training
from retbench.store import Store
from retbench.sweep import Execute, Sweep
from retbench.timing import Deadline
from retbench.venvs import Venv
from tests.retbench.conftest import MEASURED, PREDICTION

CELLS = [
    Cell(system, "tiny", "decode", seq_len=64, batch_size=1, dtype="fp32", device="cpu", threads=1)
    for system in ("retnet", "transformer", "transformer-flash")
]
ENVIRONMENT = {"fingerprint": "one machine", "code": "one version"}
OK = Outcome("ok", None, [MEASURED])


@dataclass
class Listener:
    """Notes what it is told."""

    told: list[str] = field(default_factory=list)

    def started(self, cell: Cell, left_s: float, others: int = 0) -> None:
        self.told.append(f"started {cell.system}{f' and {others}' if others else ''}")

    def finished(self, record: Record, reused: bool) -> None:
        self.told.append(f"finished {record.cell.system}{' again' if reused else ''}: {record.status}")

    def mended(self, problem: str) -> None:
        self.told.append(problem)


@dataclass
class FakeDevice:
    """A device of which a sweep asks its free memory and rough speed."""

    free: int = 10**12
    flops_per_s: float = 1e11
    bytes_per_s: float = 1e10

    def free_bytes(self) -> int:
        return self.free


def sweep_of(path: Path, free: int = 10**12, **environment: str) -> Sweep:
    store = Store(path / "inference.jsonl")
    return Sweep("inference", CELLS, cast(Device, FakeDevice(free)), {**ENVIRONMENT, **environment}, store)


def executing(*outcomes: Outcome, calls: list[Any] | None = None) -> Execute:
    """Answers with these outcomes, one a call."""
    left = iter(outcomes)

    def execute(request: dict[str, Any], threads: int, timeout_s: float, python: str) -> Outcome:
        if calls is not None:
            calls.append((request, threads, timeout_s, python))
        return next(left)

    return execute


@pytest.mark.parametrize("status", [status for status in get_args(Status) if status != "ok"])
def test_a_cell_that_fails_becomes_a_record_and_the_sweep_goes_on(status: Status, tmp_path: Path) -> None:
    one, listener = sweep_of(tmp_path), Listener()

    records = one.run({}, {}, Deadline(60.0), listener, executing(OK, Outcome(status, "in words", []), OK))

    assert [record.status for record in records] == ["ok", status, "ok"]
    assert [record.reason for record in records] == [None, "in words", None]
    assert one.store.read().records == tuple(records)
    assert listener.told[2:] == [
        "started transformer",
        f"finished transformer: {status}",
        "started transformer-flash",
        "finished transformer-flash: ok",
    ]


def test_a_record_is_on_disk_before_the_next_cell_starts(tmp_path: Path) -> None:
    one, stored = sweep_of(tmp_path), []

    def execute(request: dict[str, Any], threads: int, timeout_s: float, python: str) -> Outcome:
        stored.append(len(one.store.read().records))
        return OK

    one.run({}, {}, Deadline(60.0), Listener(), execute)

    assert stored == [0, 1, 2]


def test_a_torn_line_that_is_found_while_the_sweep_runs_is_told(tmp_path: Path) -> None:
    one, listener = sweep_of(tmp_path), Listener()

    def execute(request: dict[str, Any], threads: int, timeout_s: float, python: str) -> Outcome:
        if request["cell"]["system"] == "transformer":
            with one.store.path.open("a") as file:  # another process, killed while it wrote
                file.write('{"half":')
        return OK

    one.run({}, {}, Deadline(60.0), listener, execute)

    assert [told for told in listener.told if "torn last line of 8 bytes" in told] == [listener.told[3]]
    assert len(one.store.read().records) == 3


def test_an_interrupt_loses_the_cell_in_flight_alone(tmp_path: Path) -> None:
    one = sweep_of(tmp_path)

    def execute(request: dict[str, Any], threads: int, timeout_s: float, python: str) -> Outcome:
        if request["cell"]["system"] == "transformer":
            raise KeyboardInterrupt
        return OK

    with pytest.raises(KeyboardInterrupt):
        one.run({}, {}, Deadline(60.0), Listener(), execute)

    assert [record.cell.system for record in one.store.read().records] == ["retnet"]


def test_a_child_gets_its_cell_its_prediction_and_a_share_of_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(timing, "time", SimpleNamespace(monotonic=lambda: 0.0))  # a clock that stands still
    predictions = dict.fromkeys(CELLS, PREDICTION)

    sweep_of(tmp_path).run({}, predictions, Deadline(60.0), Listener(), executing(OK, OK, OK, calls=calls))

    (first, threads, timeout_s, _), (second, *_), (third, *_) = calls
    assert (first["task"], first["cell"], first["predicted"]) == ("measure", CELLS[0].to_dict(), PREDICTION)
    assert first["skip_prefill"] is None
    assert threads == CELLS[0].threads
    assert first["budget_s"] == pytest.approx(20)  # a third of the whole
    assert second["budget_s"] == pytest.approx(30)  # half of what the first, which ended at once, has left
    assert third["budget_s"] == pytest.approx(60)
    assert timeout_s > first["budget_s"]


def test_a_budget_that_is_used_up_leaves_no_time_but_every_cell_still_runs(tmp_path: Path) -> None:
    calls: list[Any] = []

    sweep_of(tmp_path).run({}, {}, Deadline(-1.0), Listener(), executing(OK, OK, OK, calls=calls))

    assert [request["budget_s"] for request, *_ in calls] == [0, 0, 0]
    assert all(timeout_s >= sweep.START_UP_S for _, _, timeout_s, _ in calls)


def test_a_training_cell_that_comes_after_the_budget_is_not_killed_before_its_fewest_steps(tmp_path: Path) -> None:
    cell, calls = replace(CELLS[0], workload="train_step"), list[Any]()
    work = {"peak_memory_bytes": 5000, "step_flops": 6 * 10**12, "step_moved_bytes": 0}  # 60 s a step

    replace(sweep_of(tmp_path), cells=[cell]).run(
        {}, {cell: work}, Deadline(-1.0), Listener(), executing(OK, calls=calls)
    )

    request, _, timeout_s, _ = calls[0]
    assert request["budget_s"] == 0
    assert timeout_s > 6 * 60


def test_a_cell_above_the_free_memory_is_skipped_with_its_predicted_bytes(tmp_path: Path) -> None:
    calls: list[Any] = []
    large = {**PREDICTION, "peak_memory_bytes": 3 * 2**30}
    one = sweep_of(tmp_path, free=2**30)

    records = one.run({}, {CELLS[1]: large}, Deadline(60.0), Listener(), executing(OK, OK, calls=calls))

    assert [record.status for record in records] == ["ok", "skipped", "ok"]
    assert records[1].reason == f"predicted to need {format_bytes(3 * 2**30)}, {format_bytes(2**30)} are free"
    assert records[1].predicted == large
    assert records[1].metrics == {"predicted_peak_memory_bytes": 3 * 2**30}
    assert [request["cell"]["system"] for request, *_ in calls] == ["retnet", "transformer-flash"]


def test_ranks_of_which_one_fits_and_not_all_are_skipped(tmp_path: Path) -> None:
    cell = replace(CELLS[0], workload="train_step", training=Training(data_parallel=2))
    work = {"peak_memory_bytes": 3 * 2**29, "step_flops": 1, "step_moved_bytes": 1}
    one = replace(sweep_of(tmp_path, free=2**31), cells=[cell])

    (record,) = one.run({}, {cell: work}, Deadline(60.0), Listener(), executing())

    needed = f"{format_bytes(3 * 2**30)} for 2 ranks"
    assert (record.status, record.reason) == ("skipped", f"predicted to need {needed}, {format_bytes(2**31)} are free")
    row = plan_table([cell], [{**PREDICTION, **work}], [], 2**31)
    assert row.rows[0][-1].value == "no"
    assert "bytes are those of one of 2 ranks; all of them must fit" in row.footnotes


def test_a_cell_that_just_fits_or_was_not_predicted_is_tried(tmp_path: Path) -> None:
    exact = {**PREDICTION, "peak_memory_bytes": 2**30}

    records = sweep_of(tmp_path, free=2**30).run(
        {}, {CELLS[1]: exact}, Deadline(60.0), Listener(), executing(OK, OK, OK)
    )

    assert [record.status for record in records] == ["ok", "ok", "ok"]


def test_a_record_holds_what_the_child_sent_and_under_what_conditions(tmp_path: Path) -> None:
    more = {
        "metrics": {"ttft_ms": 3.0},
        "contexts": [{"context": 64, "state_bytes": 7}],
        "notes": {"load_average": 0.5},
        "samples": {"prefill_ns": [3]},
    }

    record, *_ = sweep_of(tmp_path).run(
        {},
        dict.fromkeys(CELLS, PREDICTION),
        Deadline(60.0),
        Listener(),
        executing(Outcome("ok", None, [MEASURED, more]), OK, OK),
    )

    assert record.cell == replace(CELLS[0], backend="torch", form="recurrent")
    predicted = {"predicted_peak_memory_bytes": 5000, "residual_bytes": 0}
    assert record.metrics == {**MEASURED["metrics"], "ttft_ms": 3.0, **predicted}
    assert record.contexts == [{"context": 1, "tpot_ms": 1.8}, {"context": 64, "tpot_ms": 2.0, "state_bytes": 7}]
    assert record.samples == {**MEASURED["samples"], "prefill_ns": [3]}
    assert record.warmup == MEASURED["warmup"]
    assert record.notes == {"load_average": 0.5}
    assert (record.experiment, record.environment, record.predicted) == ("inference", ENVIRONMENT, PREDICTION)
    assert record.created_at.endswith("Z")


def test_what_a_child_measured_before_it_died_is_kept(tmp_path: Path) -> None:
    records = sweep_of(tmp_path).run(
        {}, {}, Deadline(60.0), Listener(), executing(Outcome("oom", "in prefill", [MEASURED]), OK, OK)
    )

    assert (records[0].status, records[0].metrics["tpot_ms"]) == ("oom", 2.0)


def test_a_cell_with_an_ok_record_is_not_measured_again(tmp_path: Path) -> None:
    sweep_of(tmp_path).run({}, {}, Deadline(60.0), Listener(), executing(OK, Outcome("timeout", "slow", []), OK))
    again, listener, calls = sweep_of(tmp_path), Listener(), list[Any]()
    known = again.measured(again.store.read().records)

    records = again.run(known, {}, Deadline(60.0), listener, executing(OK, calls=calls))

    assert [request["cell"]["system"] for request, *_ in calls] == ["transformer"]
    assert [record.status for record in records] == ["ok", "ok", "ok"]
    assert len(again.store.read().records) == 4
    assert listener.told[0] == "finished retnet again: ok"


def test_the_latest_record_of_a_cell_counts(tmp_path: Path) -> None:
    one = sweep_of(tmp_path)
    first = one.run({}, {}, Deadline(60.0), Listener(), executing(OK, OK, OK))

    broken = replace(first[0], status="error", reason="later")

    assert list(one.measured([*first, broken])) == CELLS[1:]
    assert list(one.measured([broken, *first])) == CELLS


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"threads": 2},
        {"dtype": "bf16"},
        {"seq_len": 65},
        {"batch_size": 2},
        {"size": "mini"},
        {"mem_limit_bytes": 2**30},
        {"workload": "train"},
    ],
)
def test_another_request_is_another_key(change: dict[str, Any], tmp_path: Path) -> None:
    one = sweep_of(tmp_path)

    assert one.key(replace(CELLS[0], **change)) != one.key(CELLS[0])


def test_other_code_another_environment_or_experiment_is_another_key(tmp_path: Path) -> None:
    one = sweep_of(tmp_path)
    others = [
        sweep_of(tmp_path, code="another version"),
        sweep_of(tmp_path, fingerprint="another machine"),
        replace(one, experiment="training"),
    ]

    assert len({other.key(CELLS[0]) for other in [one, *others]}) == 4
    assert sweep_of(tmp_path, commit="another").key(CELLS[0]) == one.key(CELLS[0])


def test_a_peer_is_planned_as_its_twin_and_its_record_holds_no_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    answer = Outcome("ok", None, [{"predicted": PREDICTION, "problem": None}])

    def run_worker(request: dict[str, Any], threads: int, timeout_s: float) -> Outcome:
        asked.append(request)
        return answer

    monkeypatch.setattr(isolate, "run_worker", run_worker)
    cell, calls = replace(CELLS[0], system="torchscale"), list[Any]()
    one = replace(sweep_of(tmp_path), cells=[cell])

    (prediction,), _ = plan.predict([cell])
    (record,) = one.run({}, {cell: prediction}, Deadline(60.0), Listener(), executing(OK, calls=calls))

    assert [asked_for["system"] for asked_for in asked[0]["cells"]] == ["retnet-torchscale"]
    assert calls[0][0]["predicted"] == PREDICTION
    assert record.predicted == {}
    assert "predicted_peak_memory_bytes" not in record.metrics


def test_a_peer_runs_under_its_own_python_and_our_systems_under_ours(tmp_path: Path) -> None:
    cell, calls = replace(CELLS[0], system="transformers-llama-static"), list[Any]()
    one = replace(sweep_of(tmp_path), cells=[CELLS[0], cell])

    one.run({}, {}, Deadline(60.0), Listener(), executing(OK, OK, calls=calls))

    theirs = Venv("transformers-llama", peers()["transformers-llama"].requirements).python
    assert [python for *_, python in calls] == [sys.executable, str(theirs)]


def test_a_plan_has_a_prediction_for_every_cell_and_says_what_it_could_not_predict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    messages: list[dict[str, Any]] = [
        {"predicted": PREDICTION, "problem": None},
        {"predicted": {}, "problem": "no prediction for it"},
    ]
    outcome = Outcome("killed", "killed by SIGKILL", messages)
    monkeypatch.setattr(isolate, "run_worker", lambda request, threads, timeout_s: outcome)

    predictions, problems = plan.predict(CELLS)

    assert predictions == [PREDICTION, {}, {}]
    assert problems == ["no prediction for it", "the prediction ended early (killed: killed by SIGKILL)"]


def test_cells_measured_together_get_their_own_parts_and_those_not_reached_the_end_of_the_child(tmp_path: Path) -> None:
    one, calls = sweep_of(tmp_path), list[Any]()
    parts = [{"at": at, "metrics": {"tpot_ms": 1.0 + at}, "samples": {"round_ns": [1]}} for at in (0, 1)]

    outcome = Outcome("oom", "bad_alloc", parts)

    records = one.run_together(CELLS, {}, 7.0, executing(outcome, calls=calls))

    assert [(record.status, record.reason) for record in records] == [("ok", None), ("ok", None), ("oom", "bad_alloc")]
    assert [record.metrics for record in records] == [{"tpot_ms": 1.0}, {"tpot_ms": 2.0}, {}]
    assert one.store.read().records == tuple(records)
    assert calls[0][0] == {"task": "rounds", "cells": [cell.to_dict() for cell in CELLS], "budget_s": 7.0}


def test_cells_measured_together_hold_their_predictions_and_residuals(tmp_path: Path) -> None:
    one = sweep_of(tmp_path)
    outcome = Outcome("ok", None, [{"at": at, "metrics": {"peak_memory_bytes": 5007}} for at in range(3)])

    records = one.run_together(CELLS, dict.fromkeys(CELLS[:2], PREDICTION), 7.0, executing(outcome))

    assert [record.metrics.get("residual_bytes") for record in records] == [7, 7, None]
    assert [record.predicted for record in records] == [PREDICTION, PREDICTION, {}]


# ---- optimizer steps in turn


STEPS = [replace(cell, workload="train_step", training=Training()) for cell in CELLS]
STEP_BYTES = {
    "weights_bytes": 10,
    "optimizer_bytes": 20,
    "peak_memory_bytes": 40,
    "step_flops": 0,
    "step_moved_bytes": 0,
}
TIMED: dict[str, Any] = {"metrics": {"step_ms": 1.0}, "samples": {"step_ns": [10**6]}, "notes": {"group": "a/0"}}
PREDICTED = {"predicted_peak_memory_bytes": 40, "residual_bytes": 0}
COUNTED: dict[str, Any] = {"metrics": {"peak_memory_bytes": 40}, "notes": {"group": "a/0"}}
ALONE = Outcome("ok", None, [{"metrics": {"step_ms": 2.0}, "samples": {"step_ns": [2 * 10**6]}}])


def in_turn(status: Status, timed: Sequence[int]) -> Outcome:
    """What a child sent that counted the bytes of all three cells, then timed some of them."""
    counts = [{"at": at, **COUNTED} for at in range(3)]
    return Outcome(status, None if status == "ok" else "in words", [*counts, *({"at": at, **TIMED} for at in timed)])


def trained(path: Path, *outcomes: Outcome, free: int = 10**12) -> tuple[list[Record], list[str], list[Any]]:
    """The records of a sweep over three systems, what the listener was told, and the requests."""
    one, listener, calls = replace(sweep_of(path, free), cells=STEPS), Listener(), list[Any]()
    predictions = dict.fromkeys(STEPS, STEP_BYTES)
    records = one.run({}, predictions, Deadline(60.0), listener, executing(*outcomes, calls=calls))

    assert sorted(record.cell.system for record in one.store.read().records) == sorted(cell.system for cell in STEPS)
    return records, listener.told, [request for request, *_ in calls]


def test_the_steps_of_one_setting_are_measured_in_turn_by_one_child(tmp_path: Path) -> None:
    records, told, (request,) = trained(tmp_path, in_turn("ok", [0, 1, 2]))

    assert request["task"] == "rounds"
    assert request["cells"] == [cell.to_dict() for cell in STEPS]
    assert request["budget_s"] == pytest.approx(60, rel=0.01)
    assert told == ["started retnet and 2", *(f"finished {cell.system}: ok" for cell in STEPS)]
    for record in records:
        assert record.metrics == {**COUNTED["metrics"], **TIMED["metrics"], **PREDICTED}
        assert record.notes["group"] == "a/0"


@pytest.mark.parametrize("status", ["unsupported", "oom", "killed"])
def test_a_cell_that_was_not_timed_in_turn_is_measured_alone_and_gets_its_own_status(
    status: Status, tmp_path: Path
) -> None:
    own = Outcome("error", "of its own", [])
    records, told, requests = trained(tmp_path, in_turn(status, [0, 2]), own)

    assert [(record.status, record.reason) for record in records] == [
        ("ok", None),
        ("error", "of its own"),
        ("ok", None),
    ]
    assert [request["task"] for request in requests] == ["rounds", "measure"]
    assert requests[1]["cell"] == STEPS[1].to_dict()
    assert "group" not in records[1].notes
    assert told[-2:] == ["started transformer", "finished transformer: error"]


def test_a_child_that_dies_before_its_times_leaves_every_cell_to_a_child_of_its_own(tmp_path: Path) -> None:
    records, _, requests = trained(tmp_path, in_turn("killed", []), ALONE, ALONE, ALONE)

    assert [(record.status, record.metrics["step_ms"]) for record in records] == [("ok", 2.0)] * 3
    assert [request["task"] for request in requests] == ["rounds", "measure", "measure", "measure"]


def test_cells_that_do_not_fit_together_are_measured_one_by_one(tmp_path: Path) -> None:
    records, _, requests = trained(tmp_path, ALONE, in_turn("ok", [0, 1]), free=2 * 30 + 10)

    assert [request["task"] for request in requests] == ["measure", "rounds"]  # two of them fit
    assert [record.metrics["step_ms"] for record in records] == [2.0, 1.0, 1.0]


def test_an_interrupt_loses_the_cells_in_turn_alone(tmp_path: Path) -> None:
    longer = [replace(cell, seq_len=128) for cell in STEPS]
    one = replace(sweep_of(tmp_path), cells=[*STEPS, *longer])

    def execute(request: dict[str, Any], threads: int, timeout_s: float, python: str) -> Outcome:
        if request["cells"][0]["seq_len"] == 128:
            raise KeyboardInterrupt
        return in_turn("ok", [0, 1, 2])

    with pytest.raises(KeyboardInterrupt):
        one.run({}, dict.fromkeys(one.cells, STEP_BYTES), Deadline(60.0), Listener(), execute)

    known = one.measured(one.store.read().records)
    assert list(known) == STEPS
    again = one.run(
        known, dict.fromkeys(longer, STEP_BYTES), Deadline(60.0), Listener(), executing(in_turn("ok", [0, 1, 2]))
    )
    assert [record.status for record in again] == ["ok"] * 6


def test_every_length_of_a_complexity_record_holds_its_predictions_and_residuals(tmp_path: Path) -> None:
    cell = replace(CELLS[0], workload="complexity")
    one = replace(
        sweep_of(tmp_path, free=4000), cells=[cell]
    )  # less than the longest needs: it runs at what lengths it can
    points = [{"context": n, "train_peak_memory_bytes": 10 * n, "state_bytes": 5} for n in (256, 512)]
    predicted = {**PREDICTION, "train_peak_memory_bytes_at_256": 2560, "train_peak_memory_bytes_at_512": 5000}

    (record,) = one.run(
        {}, {cell: predicted}, Deadline(60.0), Listener(), executing(Outcome("ok", None, [{"contexts": points}]))
    )

    predictions = [point["predicted_train_peak_memory_bytes"] for point in record.contexts]
    assert (predictions, [point["train_residual_bytes"] for point in record.contexts]) == ([2560, 5000], [0, 120])
    assert "predicted_state_bytes" not in record.contexts[0]
