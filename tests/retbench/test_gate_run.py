"""A run of the gate: pairs in random order, more of them while it is inconclusive, failures as rows."""

from dataclasses import replace
from pathlib import Path

import pytest

from retbench.compare import groups
from retbench.errors import UsageError
from retbench.gate_run import METRICS, Course, Gate, Row, Side, measure_alone
from retbench.isolate import Outcome
from retbench.record import Record
from retbench.revision import Version
from retbench.spec import Cell
from retbench.timing import Deadline
from tests.report.factory import ENVIRONMENT
from tests.retbench.conftest import Clock
from tests.retbench.gate_fixtures import COUNTS, Processes

CELL = Cell("retnet", "tiny", "decode", seq_len=16, batch_size=1, dtype="fp32", device="cpu", threads=1)
OTHER = replace(CELL, workload="prefill")
VERSIONS = [
    Version(name, Path(name), "python", {**ENVIRONMENT, "code": name, "fingerprint": "f"}) for name in ("base", "head")
]
BROKEN = Outcome("error", "it broke", [])


def gate(*cells: Cell, metrics: str = ",".join(METRICS), allowed: str = "", pairs: int = 8) -> Gate:
    courses = [Course(cell, Side(), Side()) for cell in cells or (CELL,)]
    return Gate(courses, VERSIONS, metrics.split(","), allowed.split(","), margin=0.05, pairs=pairs)


def run(of: Gate, processes: Processes, budget_s: float = 60.0) -> dict[str, Row]:
    """Rows by metric."""
    return {row.metric: row for row in of.run(Deadline(budget_s), lambda text: None, processes.execute)}


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "ok"), (1.2, "regressed"), (0.7, "improved")])
def test_a_change_of_the_time_is_judged(factor: float, verdict: str) -> None:
    row = run(gate(), Processes({"head": factor}))["time"]

    assert (row.verdict, row.pairs) == (verdict, 8)
    assert row.base == pytest.approx(1.0, rel=0.05)
    assert row.head == pytest.approx(factor, rel=0.05)


def test_every_pair_has_a_process_of_both_in_random_order() -> None:
    processes = Processes()

    run(gate(CELL, OTHER, pairs=16), processes)

    timed = [asked for asked in processes.asked if asked[1] == "timed"]
    couples = list(zip(timed[::2], timed[1::2], strict=True))
    assert all({one[0], two[0]} == {"base", "head"} and one[2] == two[2] for one, two in couples)
    assert {one[0] for one, _ in couples} == {"base", "head"}
    assert {one[2] for one, _ in couples[::2]} == {CELL, OTHER}


def test_an_inconclusive_cell_gets_more_pairs_and_a_clear_one_none() -> None:
    class Unsteady(Processes):
        def execute(self, version: Version, cell: Cell, part: str) -> Outcome:
            self.noise = 0.1 if cell == CELL else 0.01
            return super().execute(version, cell, part)

    unclear = gate(CELL, OTHER)

    unclear.run(Deadline(60.0), lambda text: None, Unsteady().execute)

    assert len(unclear.courses[0].head.processes) in (16, 32, 64, 128, 256)
    assert len(unclear.courses[1].head.processes) == 8


def test_the_budget_ends_it(clock: Clock) -> None:
    def pass_a_second() -> None:
        clock.now_ns += 10**9

    processes = Processes(noise=0.5, before=pass_a_second)

    row = run(gate(), processes, budget_s=30)["time"]

    assert row.verdict == "inconclusive"
    assert 10 <= row.pairs <= 14
    assert clock.now_ns <= 31 * 10**9


def test_without_time_for_a_pair_nothing_is_said_to_be_well(clock: Clock) -> None:
    def pass_a_minute() -> None:
        clock.now_ns += 60 * 10**9

    row = run(gate(), Processes(before=pass_a_minute), budget_s=30)["time"]

    assert (row.verdict, row.reason, row.judged) == ("inconclusive", "no time for a pair: raise --budget", None)


def test_a_byte_more_is_a_regression_unless_it_is_allowed() -> None:
    counts = {"head": {**COUNTS, "state_bytes": 65}}

    found = run(gate(), Processes(counts=counts))["state_bytes"]
    allowed = run(gate(allowed="state_bytes"), Processes(counts=counts))["state_bytes"]

    assert (found.verdict, found.base, found.head) == ("regressed", 64, 65)
    assert allowed.verdict == "allowed"


def test_a_difference_must_be_there_again() -> None:
    class Once(Processes):
        def execute(self, version: Version, cell: Cell, part: str) -> Outcome:
            self.counts = {} if ("head", "counted", cell) in self.asked else {"head": {**COUNTS, "state_bytes": 65}}
            return super().execute(version, cell, part)

    processes = Once()

    row = run(gate(metrics="state_bytes"), processes)["state_bytes"]

    assert row.verdict == "inconclusive"
    assert [part for _, part, _ in processes.asked] == ["counted"] * 4


def test_without_the_time_only_counts_are_taken_once() -> None:
    processes = Processes()

    rows = run(gate(metrics="state_bytes,parameters"), processes)

    assert [row.verdict for row in rows.values()] == ["ok", "ok"]
    assert len(processes.asked) == 2


@pytest.mark.parametrize(
    ("broken", "verdict", "reason"),
    [
        ({("head", "counted")}, "failed", "head error: it broke"),
        ({("base", "counted")}, "new", "base error: it broke"),
        ({("base", "counted"), ("head", "counted")}, "failed", "base error: it broke; head error: it broke"),
        ({("head", "timed")}, "failed", "head error: it broke"),
        ({("base", "timed")}, "failed", "base error: it broke"),
    ],
)
def test_a_process_that_fails_is_a_row(broken: set[tuple[str, str]], verdict: str, reason: str) -> None:
    rows = run(gate(CELL, OTHER), Processes(outcomes=dict.fromkeys(broken, BROKEN)))

    assert [(row.verdict, row.reason) for row in rows.values()] == [(verdict, reason)]


def test_records_keep_every_sample_by_process() -> None:
    of = gate()
    run(of, Processes())

    record = Record.from_json(of.courses[0].head.record("gate", CELL, VERSIONS[1]).to_json())

    assert record.cell == replace(CELL, backend="torch", form="recurrent")
    assert [len(group) for group in groups(record, "work_ns")] == [12] * 8
    assert [len(group) for group in groups(record, "reference_ns")] == [3] * 8
    assert record.metrics["reference_ms"] == 5
    assert record.metrics["work_ms_low"] <= record.metrics["work_ms"] <= record.metrics["work_ms_high"]
    assert record.metrics["state_bytes"] == COUNTS["state_bytes"]


def stored_baseline(processes: Processes, count: int = 32) -> Side:
    """A side that was measured alone, through its record."""
    of = gate()
    measure_alone(of.courses, VERSIONS[1], count, Deadline(60.0), processes.execute)
    return Side.of(of.courses[0].head.record("gate", CELL, VERSIONS[1]))


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "ok"), (1.3, "regressed")])
def test_a_stored_base_is_compared_relative_to_the_reference_workload(factor: float, verdict: str) -> None:
    base = stored_baseline(Processes())
    course = Course(CELL, base, Side(), stored=True)

    class SlowMachine(Processes):  # both the cell and the reference take twice as long as when the base was stored
        def execute(self, version: Version, cell: Cell, part: str) -> Outcome:
            outcome = super().execute(version, cell, part)
            for message in outcome.messages:
                for name, samples in message.get("samples", {}).items():
                    message["samples"][name] = [2 * ns for ns in samples]
            return outcome

    of = Gate([course], VERSIONS[1:], METRICS, (), 0.05, 8)
    rows = run(of, SlowMachine({"head": factor}))

    assert rows["time"].verdict == verdict
    assert rows["state_bytes"].verdict == "ok"


@pytest.mark.parametrize(
    "notes", [{}, {"process_samples": {"work_ns": [3], "reference_ns": [1]}}, {"process_samples": 3}], ids=repr
)
def test_a_record_that_is_none_of_a_gate_is_refused(notes: dict[str, object]) -> None:
    of = gate()
    run(of, Processes())
    record = replace(of.courses[0].head.record("gate", CELL, VERSIONS[1]), notes=notes)

    with pytest.raises(UsageError, match=r"the record of retnet tiny, .* is none of a gate"):
        Side.of(record)


def test_a_stored_base_has_no_more_pairs_than_processes() -> None:
    course = Course(CELL, stored_baseline(Processes(), 6), Side(), stored=True)

    rows = run(Gate([course], VERSIONS[1:], METRICS, (), 0.0, 4), Processes(noise=0.3))

    assert (rows["time"].verdict, rows["time"].pairs) == ("inconclusive", 6)
