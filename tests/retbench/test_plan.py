"""The plan shares time out: every cell gets its decode steps, prefills are added from the cheapest on."""

from dataclasses import dataclass, replace
from typing import Any, cast

import pytest

from retbench import isolate
from retbench.devices import Device
from retbench.isolate import Outcome
from retbench.plan import (
    COMPARISON_S,
    START_UP_S,
    STEPS,
    TIMEOUT_S,
    TRAINING_STEPS,
    Prediction,
    budget_together,
    describe,
    estimate,
    in_order,
    needed_bytes,
    predict,
    share,
    together,
)
from retbench.spec import Cell, Training
from tests.retbench.conftest import PREDICTION

CELL = Cell("retnet", "tiny", "decode", seq_len=64, batch_size=1, dtype="fp32", device="cpu", threads=1)


@dataclass
class FakeDevice:
    """A device with a rough speed and a memory."""

    free: int = 2**30
    flops_per_s: float = 1e11
    bytes_per_s: float = 1e9

    def free_bytes(self) -> int:
        return self.free


DEVICE = cast(Device, FakeDevice())


def costing(step_bytes: int = 0, prefill_bytes: int = 0, peak: int = 0) -> Prediction:
    """The prediction of a cell whose step moves and whose prefill allocates these bytes."""
    moved = {"step_bytes": step_bytes, "step_allocated_bytes": 0, "prefill_allocated_bytes": prefill_bytes}
    return {**PREDICTION, "parameters": 0, **moved, "peak_memory_bytes": peak}


def cells(*systems: str) -> list[Cell]:
    return [replace(CELL, system=system) for system in systems]


def test_cells_that_cost_the_same_get_the_same() -> None:
    two = cells("a", "b")

    first = share(two, dict.fromkeys(two, costing()), DEVICE, left_s=60.0)

    assert first.budget_s == pytest.approx(30)
    assert first.skip_prefill is None


def test_a_dear_cell_gets_more_than_a_cheap_one() -> None:
    dear, cheap = cells("dear", "cheap")
    predictions = {dear: costing(step_bytes=10**9), cheap: costing()}

    to_dear = share([dear, cheap], predictions, DEVICE, left_s=60.0)
    to_cheap = share([cheap, dear], predictions, DEVICE, left_s=60.0)

    assert to_dear.budget_s > to_cheap.budget_s > START_UP_S
    assert to_dear.budget_s + to_cheap.budget_s == pytest.approx(60)


def test_a_peer_gets_time_to_be_compared_with_its_twin() -> None:
    peer, twin = cells("torchscale", "retnet-torchscale")
    predictions = {peer: costing(), twin: costing()}

    to_peer = share([peer, twin], predictions, DEVICE, left_s=60.0)
    to_twin = share([twin, peer], predictions, DEVICE, left_s=60.0)

    assert to_peer.budget_s == pytest.approx(to_twin.budget_s * (1 + COMPARISON_S / START_UP_S))


def test_a_training_cell_gets_time_for_its_operations_and_no_prefill() -> None:
    cell = replace(CELL, workload="train_step")
    work = {"peak_memory_bytes": 5000, "step_flops": 10**15, "step_moved_bytes": 10**9}

    shares = [share([one, CELL], {one: work, CELL: costing()}, DEVICE, left_s=60.0) for one in (cell, CELL)]

    assert shares[0].prefill_s == 0
    assert shares[0].budget_s > 50 > shares[1].budget_s


def test_the_last_cell_gets_all_that_is_left() -> None:
    assert share([CELL], {CELL: costing()}, DEVICE, left_s=17.0).budget_s == pytest.approx(17)


def test_a_prefill_that_there_is_no_time_for_is_skipped_in_words_and_a_cheaper_one_is_not() -> None:
    dear, cheap = cells("dear", "cheap")
    predictions = {dear: costing(prefill_bytes=10**12), cheap: costing(prefill_bytes=10**8)}

    to_dear = share([dear, cheap], predictions, DEVICE, left_s=60.0)
    to_cheap = share([cheap, dear], predictions, DEVICE, left_s=60.0)

    assert to_cheap.skip_prefill is None
    assert to_cheap.prefill_s > 0
    assert "would take about" in str(to_dear.skip_prefill)
    assert "(model)" in str(to_dear.skip_prefill)
    assert "--budget" in str(to_dear.skip_prefill)
    assert to_dear.prefill_s == 0


def test_a_prefill_that_takes_next_to_nothing_is_never_left_out() -> None:
    one, other = cells("one", "other")
    predictions = {one: costing(prefill_bytes=10**8), other: costing(prefill_bytes=10**6)}  # well below a second

    assert share([one, other], predictions, DEVICE, left_s=0.0).skip_prefill is None
    assert share([one, other], predictions, DEVICE, left_s=2 * START_UP_S + 0.01).skip_prefill is None


@pytest.mark.parametrize("left_s", [0.0, -5.0])
def test_when_the_time_is_over_there_is_no_prefill_and_no_negative_share(left_s: float) -> None:
    late = share([CELL], {CELL: costing(prefill_bytes=10**10)}, DEVICE, left_s)

    assert late.budget_s == 0
    assert late.skip_prefill


def test_what_a_cell_should_take_is_told_however_little_time_is_left() -> None:
    cell = replace(CELL, workload="train_step")
    work = {"peak_memory_bytes": 5000, "step_flops": 10**13, "step_moved_bytes": 10**9}  # 101 s a step

    late, early = (share([cell], {cell: work}, DEVICE, left_s) for left_s in (-1.0, 5000.0))

    assert late.budget_s == 0
    assert late.expected_s == early.expected_s == pytest.approx(START_UP_S + TRAINING_STEPS * 101)


def test_a_prefill_that_is_skipped_is_not_expected_to_take_time() -> None:
    predictions = {CELL: costing(step_bytes=10**9, prefill_bytes=10**12)}

    assert share([CELL], predictions, DEVICE, left_s=0.0).expected_s == pytest.approx(START_UP_S + STEPS)


def test_a_cell_without_a_prediction_still_gets_its_share() -> None:
    two = cells("a", "b")

    assert share(two, {}, DEVICE, left_s=60.0).budget_s == pytest.approx(30)


def test_a_cell_that_will_not_fit_takes_no_time_from_the_others() -> None:
    fits, too_large = cells("fits", "too large")
    predictions = {fits: costing(), too_large: costing(step_bytes=10**13, prefill_bytes=2**62, peak=2**62)}

    assert share([fits, too_large], predictions, DEVICE, left_s=60.0).budget_s == pytest.approx(60, rel=0.01)
    assert share([too_large], predictions, DEVICE, left_s=60.0).budget_s >= 0


def test_a_prefill_that_will_not_fit_takes_no_time_from_the_others() -> None:
    one, other = cells("one", "other")
    predictions = {one: costing(), other: {**costing(prefill_bytes=2**62), "prefill_peak_memory_bytes": 2**62}}

    assert share([one, other], predictions, DEVICE, left_s=60.0).budget_s == pytest.approx(30)
    assert share([other, one], predictions, DEVICE, left_s=60.0).skip_prefill is None  # memory is the reason given


def test_ranks_on_a_cpu_need_its_memory_together_and_on_gpus_each_its_own() -> None:
    cell = replace(CELL, workload="train_step", training=Training(tensor_parallel=2, data_parallel=2))

    assert needed_bytes(cell, costing(peak=1000)) == 4000
    assert needed_bytes(replace(cell, device="cuda"), costing(peak=1000)) == 1000
    assert needed_bytes(CELL, costing(peak=1000)) == 1000


def test_a_plan_of_many_cells_has_time_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    limits_s: list[float] = []

    def run_worker(request: dict[str, Any], threads: int, timeout_s: float) -> Outcome:
        limits_s.append(timeout_s)
        return Outcome("ok", None, [{"predicted": {}, "problem": None, "facts": {}} for _ in request["cells"]])

    monkeypatch.setattr(isolate, "run_worker", run_worker)
    predict([CELL])
    estimate([CELL] * 28, 2**30)
    describe([CELL] * 2)

    assert limits_s == [TIMEOUT_S, 28 * TIMEOUT_S, 2 * TIMEOUT_S]


def test_comparable_cells_stay_together_and_the_cheap_ones_come_first() -> None:
    some = [replace(cell, seq_len=seq_len) for seq_len in (128, 64) for cell in cells("dear", "cheap")]
    predictions = {cell: costing(step_bytes=10**9 if cell.system == "dear" else 0) for cell in some}

    ordered = in_order(some, predictions, DEVICE)

    assert [(cell.seq_len, cell.system) for cell in ordered] == [
        (128, "cheap"),
        (128, "dear"),
        (64, "cheap"),
        (64, "dear"),
    ]


def test_cells_that_cost_the_same_keep_their_order() -> None:
    three = cells("b", "c", "a")

    assert in_order(three, dict.fromkeys(three, costing()), DEVICE) == three
    assert in_order(three, {}, DEVICE) == three


# ---- cells that are measured in turn


STEP = replace(CELL, workload="train_step", training=Training())


def steps(*systems: str, **changes: Any) -> list[Cell]:
    return [replace(STEP, system=system, **changes) for system in systems]


def training(peak: int, flops: int = 0) -> Prediction:
    """The prediction of a cell whose model takes 10 bytes, its optimizer 20, and a step the rest of the peak."""
    work = {"step_flops": flops, "step_moved_bytes": 0}
    return {"weights_bytes": 10, "optimizer_bytes": 20, "peak_memory_bytes": peak, **work}


def test_the_systems_of_one_setting_stay_together_whatever_they_cost() -> None:
    blocks = Training("block")
    some = [*steps("dear", "retnet"), *steps("dear", "retnet", training=blocks)]
    some[1] = replace(some[1], chunk_size=512)  # which RetNet alone has
    predictions = {cell: training(40, flops=10**13 if cell.system == "dear" else 0) for cell in some}

    ordered = in_order(some, predictions, DEVICE)

    assert [(cell.system, cell.training) for cell in ordered] == [
        ("retnet", Training()),
        ("dear", Training()),
        ("retnet", blocks),
        ("dear", blocks),
    ]
    assert together(ordered, predictions, 10**9) == ordered[:2]


def test_cells_are_measured_in_turn_as_far_as_all_models_and_the_largest_step_fit() -> None:
    three, other = steps("a", "b", "c"), steps("d", seq_len=128)
    predictions = dict(zip([*three, *other], map(training, (50, 90, 70, 40)), strict=True))

    assert together([*three, *other], predictions, 3 * 30 + 60) == three
    assert together([*three, *other], predictions, 3 * 30 + 59) == three[:1]


@pytest.mark.parametrize(
    "change",
    [
        {"training": None},
        {"training": Training(data_parallel=2)},
        {"mem_limit_bytes": 2**30},
        {"compile": True},
    ],
)
def test_what_is_of_one_cell_is_measured_alone(change: dict[str, Any]) -> None:
    two = steps("a", "b", **change)

    assert together(two, dict.fromkeys(two, training(40)), 10**9) == two[:1]


def test_a_cell_whose_bytes_nobody_knows_is_measured_alone() -> None:
    two = steps("a", "b")

    assert together(two, {two[0]: training(40)}, 10**9) == two[:1]
    assert together(two, {}, 10**9) == two[:1]


def test_cells_in_turn_get_the_sum_of_their_shares() -> None:
    three = steps("a", "b", "c")
    predictions = dict(zip(three, (training(40, flops) for flops in (0, 10**12, 10**13)), strict=True))
    shares = [share([one, *(cell for cell in three if cell != one)], predictions, DEVICE, 60.0) for one in three]

    assert budget_together(2, three, predictions, DEVICE, 60.0) == pytest.approx(sum(s.budget_s for s in shares[:2]))
    assert budget_together(3, three, predictions, DEVICE, 60.0) == pytest.approx(60)
