"""The verdict: false alarms are rare, real slowdowns are seen, counts are exact, exit statuses keep their word."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench import gate
from retbench.gate import FEWEST_PAIRS, Pair, Verdict, exit_status, judge_count, judge_times, log_ratios, share_flagged
from tests.models.helpers import repeatable

MARGIN = 0.05


def pairs(count: int, factor: float = 1.0, noise: float = 0.04, seed: int = 0) -> list[Pair]:
    """Processes of 15 calls around 1 ms; processes differ by ``noise``, calls by half of it."""
    generator = np.random.default_rng(seed)
    level = 1e6 * generator.lognormal(0, noise, size=(2, count, 1)) * np.array([1.0, factor])[:, None, None]
    calls = (level * generator.lognormal(0, noise / 2, size=(2, count, 15))).astype(int).tolist()
    return [Pair(*both) for both in zip(*calls, strict=True)]


def verdict(course: Sequence[Pair], look: int = 1) -> Verdict:
    return judge_times({"cell": course}, MARGIN, look)["cell"].verdict


@pytest.mark.parametrize(
    ("factor", "expected"), [(1.0, "ok"), (1.3, "regressed"), (0.8, "improved"), (1.05, "inconclusive")]
)
def test_the_verdict_follows_where_the_interval_lies(factor: float, expected: Verdict) -> None:
    assert verdict(pairs(30, factor, noise=0.02)) == expected


def test_the_ratio_is_that_of_head_to_base_within_its_interval() -> None:
    ratio = judge_times({"cell": pairs(40, 1.2)}, MARGIN)["cell"].ratio

    assert ratio.low < 1.2 < ratio.high
    assert ratio.low < ratio.value < ratio.high
    assert ratio.high - ratio.low < 0.1


def test_noise_makes_it_inconclusive_and_more_pairs_conclude() -> None:
    assert verdict(pairs(8, 1.2, noise=0.2)) == "inconclusive"
    assert verdict(pairs(120, 1.2, noise=0.2)) == "regressed"


def test_too_few_pairs_make_no_verdict() -> None:
    assert verdict(pairs(FEWEST_PAIRS - 1, 2.0, noise=0.001)) == "inconclusive"
    assert verdict(pairs(FEWEST_PAIRS, 2.0, noise=0.001)) == "regressed"


def test_a_cell_without_pairs_is_left_out() -> None:
    assert judge_times({"measured": pairs(8), "not": []}, MARGIN).keys() == {"measured"}


def test_false_alarms_over_many_cells_are_rare() -> None:
    courses = {seed: pairs(10, noise=0.1, seed=seed) for seed in range(60)}

    judged = judge_times(courses, margin=0.0)

    assert sum(one.verdict == "regressed" for one in judged.values()) <= 1


def test_holms_correction_asks_more_of_a_cell_among_many() -> None:
    courses = {seed: pairs(10, 1.12, noise=0.05, seed=seed) for seed in range(20)}

    alone = sum(verdict(course) == "regressed" for course in courses.values())
    together = sum(judged.verdict == "regressed" for judged in judge_times(courses, MARGIN).values())

    assert 0 < together < alone


def test_later_looks_ask_more() -> None:
    tails = [gate.expanded_tail(10, gate.ERROR / 2**look) for look in (1, 2, 3)]

    assert tails == sorted(tails, reverse=True)
    assert sum(gate.ERROR / 2**look for look in range(1, 50)) <= gate.ERROR


@repeatable
@given(st.integers(6, 20), st.sampled_from([0.7, 1.0, 1.1, 1.5]), st.floats(1e-3, 1e3))
def test_the_unit_of_time_does_not_matter(count: int, factor: float, unit: float) -> None:
    course = pairs(count, factor, seed=count)
    scaled = [Pair([unit * ns for ns in pair.base], [unit * ns for ns in pair.head]) for pair in course]

    assert np.allclose(log_ratios(course), log_ratios(scaled))
    assert verdict(course) == verdict(scaled)


@repeatable
@given(st.integers(6, 12), st.integers(0, 99))
def test_slower_is_never_judged_better(count: int, seed: int) -> None:
    order: list[Verdict] = ["improved", "ok", "inconclusive", "regressed"]

    verdicts = [verdict(pairs(count, factor, seed=seed)) for factor in (0.5, 0.9, 1.0, 1.1, 1.6)]

    assert verdicts == sorted(verdicts, key=order.index)


def test_the_same_data_give_the_same_verdict() -> None:
    assert judge_times({1: pairs(9)}, MARGIN) == judge_times({1: pairs(9)}, MARGIN)


@pytest.mark.parametrize(
    ("base", "head", "allowed", "expected"),
    [
        ([8], [8], False, "ok"),
        ([8], [9], False, "regressed"),
        ([8], [9], True, "allowed"),
        ([9], [8], False, "improved"),
        ([0], [1], False, "regressed"),
        ([8, 8], [9, 9], False, "regressed"),
        ([8, 9], [9, 9], False, "inconclusive"),
    ],
)
def test_counts_are_judged_to_the_byte(base: list[int], head: list[int], allowed: bool, expected: Verdict) -> None:
    assert judge_count(base, head, allowed).verdict == expected


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        (["ok"], 0),
        (["ok", "improved", "allowed", "new"], 0),
        (["ok", "regressed", "failed", "inconclusive"], 1),
        (["ok", "inconclusive"], 3),
        ([], 4),
        (["new", "new"], 4),
        (["ok", "failed", "inconclusive"], 5),
    ],
)
def test_exit_statuses_say_what_happened(verdicts: list[Verdict], status: int) -> None:
    assert exit_status(verdicts, inconclusive_passes=False) == status


def test_only_a_regression_exits_with_1_and_nothing_measured_never_passes() -> None:
    known: list[Verdict] = ["ok", "improved", "allowed", "inconclusive", "new", "failed"]

    statuses = {
        (one, two, passes): exit_status([one, two], passes) for one, two, passes in product(known, known, [0, 1])
    }

    assert 1 not in statuses.values()
    assert all(status for (one, two, _), status in statuses.items() if {one, two} <= {"new", "failed"})


def test_inconclusive_passes_where_that_was_asked_for() -> None:
    assert exit_status(["ok", "inconclusive"], inconclusive_passes=True) == 0


def test_power_grows_with_the_slowdown_and_false_alarms_are_rare() -> None:
    recorded = log_ratios(pairs(60))

    alarms = share_flagged(recorded, 10, MARGIN, 60, swapped=True)
    power = [share_flagged(recorded, 10, MARGIN, 60, factor) for factor in (1.0, 1.1, 1.3)]

    assert alarms <= 0.02
    assert power[0] <= power[1] <= power[2] == 1
