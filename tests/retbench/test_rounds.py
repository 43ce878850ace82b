"""Rounds: limits and cells in turn, ratios paired by round, parts that make whole records."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
import torch

from models import build
from retbench.devices.cpu import DEVICE as CPU
from retbench.measure import Part, Task, rounds, train_step
from retbench.measure.limits import Limit
from retbench.measure.rounds import ROUNDS, Course, measure
from retbench.measure.train_step import LEAST_STEPS, Steps
from retbench.spec import Cell, Training
from retbench.timing import Deadline
from tests.retbench.conftest import Clock

CELL = Cell("retnet", "tiny", "decode", 16, 1, "fp32", "cpu", 1, n_layers=1, vocab_size=11)
MS = 10**6


@dataclass
class FakeWorkload:
    """Takes the next of ``times_ms`` at each call, its limit half of that: a machine that changes its speed."""

    clock: Clock
    times_ms: list[float]
    called: list[str] = field(default_factory=list)
    metric: str = "tpot_ms"
    amount: int = 30

    def __post_init__(self) -> None:
        self.limits = [Limit("read", self._taking("read", 0.5), 20)]
        self.run = self._taking("cell", 1.0)

    def speed(self, seconds: float) -> dict[str, float | int]:
        return {"tokens_per_s": 1 / seconds}

    def memory(self) -> dict[str, int]:
        return {"state_bytes": 5}

    def _taking(self, name: str, share: float) -> Callable[[], None]:
        def run() -> None:
            self.called.append(name)
            self.clock.now_ns += round(share * self.times_ms[(len(self.called) - 1) // (2 * visit()) % 3] * MS)

        return run


def visit() -> int:
    return 1 + rounds.CALLS


def course(workload: FakeWorkload) -> Course:
    device = cast(Any, workload.clock)
    return Course(0, Task(CELL, device, Deadline(60.0), {}), workload)


def test_a_visit_times_the_limit_and_then_the_cell_after_a_discarded_call(clock: Clock) -> None:
    one = course(FakeWorkload(clock, [10]))
    one.visit()

    assert cast(FakeWorkload, one.workload).called == ["read"] * visit() + ["cell"] * visit()
    assert one.times_s == [0.010]
    assert one.limit_times_s == {"read": [0.005]}


def test_a_fraction_does_not_change_when_the_machine_does(clock: Clock) -> None:
    one = course(FakeWorkload(clock, [10, 100, 37]))
    for _ in range(3):
        one.visit()

    fraction = one.fraction(one.workload.limits[0])
    assert len(set(one.times_s)) == 3
    assert (fraction.low, fraction.value, fraction.high) == pytest.approx((0.75,) * 3)  # (30 / 1) / (20 / 0.5)
    assert one.precise()


def test_a_call_that_is_long_is_timed_once(clock: Clock) -> None:
    one = course(FakeWorkload(clock, [2000]))
    one.visit()

    assert cast(FakeWorkload, one.workload).called == ["read", "cell"]
    assert one.times_s == [2.0]


def test_a_part_holds_raw_times_and_what_they_say(clock: Clock) -> None:
    one = course(FakeWorkload(clock, [10]))
    one.visit()
    part = one.part()

    assert part["metrics"]["tpot_ms"] == 10
    assert part["metrics"]["tokens_per_s"] == 100
    assert part["metrics"]["state_bytes"] == 5
    assert part["samples"] == {"round_ns": [10 * MS], "read_ns": [5 * MS]}
    (limit,) = part["notes"]["limits"]
    assert (limit["name"], limit["per_s"], limit["fraction"]) == ("read", 20 / 0.005, pytest.approx(0.75))


def parts(*cells: Cell) -> list[Part]:
    """All parts, each cell's in its place; torch as it was."""
    found = list(measure(cells, Deadline(0.0)))

    assert [part["at"] for part in found] == list(range(len(cells)))
    return found


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("workload", "metric"), [("decode", "tpot_ms"), ("prefill", "ttft_ms")])
def test_every_cell_gets_rounds_and_shares_those_of_its_length_and_batch(workload: str, metric: str) -> None:
    cells = [
        replace(CELL, workload=workload, system=system, batch_size=batch)
        for batch in (1, 2)
        for system in ("retnet", "transformer-flash")
    ]
    found = parts(*cells)

    assert all(part["metrics"][metric] > 0 and len(part["samples"]["round_ns"]) == ROUNDS for part in found)
    groups = [part["notes"]["group"] for part in found]
    assert groups[0] == groups[1] != groups[2] == groups[3]
    assert len({part["notes"]["child"] for part in found}) == 1


@pytest.mark.usefixtures("one_thread")
def test_a_training_step_makes_gradients_and_counts_their_bytes() -> None:
    (part,) = parts(replace(CELL, workload="train_step"))

    assert part["metrics"]["train_step_ms"] > 0
    assert part["metrics"]["activations_bytes"] >= part["metrics"]["weights_bytes"]


@pytest.mark.usefixtures("one_thread")
def test_training_forms_of_systems_without_a_formula_are_compared_in_tokens() -> None:
    found = parts(*(replace(CELL, workload="train_tokens", system=name) for name in ("transformer-flash", "hyena")))

    assert [part["cell"]["form"] for part in found] == ["parallel", "fft-convolution"]
    for part in found:
        assert part["metrics"]["tokens_per_s"] == pytest.approx(16e3 / part["metrics"]["train_step_ms"])
        assert part["notes"]["limits"] == []
        assert part["metrics"]["activations_bytes"] > 0


@pytest.mark.usefixtures("one_thread")
def test_int8_weights_stand_beside_the_same_weights_as_they_are() -> None:
    plain, quantized = parts(CELL, replace(CELL, quantize="int8"))

    assert quantized["metrics"]["step_bytes"] < plain["metrics"]["step_bytes"]
    assert 0 < quantized["metrics"]["logit_error"] < 0.05
    assert plain["notes"]["group"] == quantized["notes"]["group"]


@pytest.mark.usefixtures("one_thread")
def test_compiled_cells_stand_beside_the_same_cells_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = list[object]()
    monkeypatch.setattr("retbench.measure.compile.compile_blocks", lambda model, *_: compiled.append(model))
    cell = replace(CELL, workload="train_step")

    plain, fast = parts(cell, replace(cell, compile=True))

    assert len(compiled) == 1
    assert fast["notes"]["compile_s"] >= 0
    assert "compile_s" not in plain["notes"]
    assert plain["notes"]["group"] == fast["notes"]["group"]


@pytest.mark.usefixtures("one_thread")
def test_the_machine_alone_gets_every_limit() -> None:
    (part,) = parts(replace(CELL, system="machine", workload="limits"))

    names = {limit["name"] for limit in part["notes"]["limits"]}
    assert {"torch.mm", "F.linear", "torch.mv fp32", "torch.sum bf16"} <= names
    assert all(limit["per_s_low"] <= limit["per_s"] <= limit["per_s_high"] for limit in part["notes"]["limits"])


def test_the_bytes_of_a_step_are_weights_and_state() -> None:
    torch.set_num_threads(1)
    model = rounds.Models().of(Task(CELL, CPU, Deadline(1.0), {}))[0]
    workload = rounds.Decode(model, Task(CELL, CPU, Deadline(1.0), {}))

    state = model.init_state(1, 16).nbytes
    assert workload.amount == model.weights_bytes() - model.embedding.weight.nbytes + 2 * state


# ---- optimizer steps in turn


TRAINED = [
    replace(CELL, system=system, workload="train_step", training=Training())
    for system in ("retnet", "transformer", "transformer-flash")
]


def of_cell(found: list[Part], at: int) -> dict[str, dict[str, Any]]:
    """All parts of the cell in that place, joined by field."""
    joined: dict[str, dict[str, Any]] = {}
    for part in found:
        if part["at"] == at:
            for name in part.keys() - {"at"}:
                joined.setdefault(name, {}).update(part[name])
    return joined


def alone(cell: Cell) -> dict[str, dict[str, Any]]:
    """What a child of its own would send of the cell."""
    model = build(cell.system, cell.size, seed=cell.seed, **cell.overrides)
    return of_cell([{**part, "at": 0} for part in train_step.measure(model, Task(cell, CPU, Deadline(0.0), {}))], 0)


@pytest.mark.usefixtures("one_thread")
def test_optimizer_steps_in_turn_have_the_records_of_each_cell_alone() -> None:
    found = list(measure(TRAINED, Deadline(0.0)))

    together = [of_cell(found, at) for at in range(3)]
    for turned, apart in zip(together, map(alone, TRAINED), strict=True):
        assert turned["cell"] == apart["cell"]
        assert turned["samples"].keys() == apart["samples"].keys()
        assert turned["warmup"].keys() == apart["warmup"].keys()
        assert apart["metrics"].keys() - turned["metrics"].keys() == {"vm_hwm_bytes"}  # which the others would change
        counted = [name for name in turned["metrics"] if name.endswith("_bytes")]
        assert [turned["metrics"][name] for name in counted] == [apart["metrics"][name] for name in counted]
        assert turned["notes"]["first_loss"] == pytest.approx(apart["notes"]["first_loss"])
    assert len({turned["notes"]["group"] for turned in together}) == 1
    assert {turned["notes"]["rounds"] for turned in together} == {LEAST_STEPS}
    assert {len(turned["samples"]["step_ns"]) for turned in together} == {LEAST_STEPS}


@pytest.mark.usefixtures("one_thread")
def test_bytes_are_sent_before_anything_is_timed() -> None:
    found = list(measure(TRAINED, Deadline(0.0)))

    kinds = ["samples" if "samples" in part else "bytes" for part in found if part.get("metrics")]
    assert kinds == ["bytes"] * 3 + ["samples"] * 3


@pytest.mark.usefixtures("one_thread")
def test_rounds_go_to_and_fro(monkeypatch: pytest.MonkeyPatch) -> None:
    visited, visit = list[str](), Steps.visit

    def noted(steps: Steps) -> None:
        visited.append(steps.task.cell.system)
        visit(steps)

    monkeypatch.setattr(Steps, "visit", noted)
    list(measure(TRAINED[:2], Deadline(0.0)))

    assert visited == ["retnet", "transformer", "transformer", "retnet", "retnet", "transformer"]


@pytest.mark.usefixtures("one_thread")
def test_a_cell_that_fails_before_the_rounds_is_left_out_of_them_and_raised_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(model: Any, task: Task) -> Steps:
        if task.cell.system == "transformer":
            raise NotImplementedError("no training form")
        return Steps(model, task)

    monkeypatch.setattr(train_step, "Steps", fail)
    found = list[Part]()
    with pytest.raises(NotImplementedError, match="no training form"):
        found.extend(measure(TRAINED, Deadline(0.0)))  # keeps what came before

    assert [part["at"] for part in found if "samples" in part] == [0, 2]
    assert {part["notes"]["rounds"] for part in found if "samples" in part} == {LEAST_STEPS}
