"""Intervals hold what they promise on data whose truth is known, and percentiles wait for enough samples."""

import numpy as np
import pytest

from retbench.statistics import (
    Interval,
    crossed_interval,
    mean_interval,
    median_interval,
    percentile,
    slope_interval,
    student,
)


def groups_of(seed: int, count: int, size: int, shared: float = 0.0) -> list[list[float]]:
    """Lognormal samples of median 10; ``shared`` is the spread of what all samples of a group have in common."""
    generator = np.random.default_rng(seed)
    noise = 0.1 * generator.standard_normal((count, size)) + shared * generator.standard_normal((count, 1))
    samples: list[list[float]] = (10 * np.exp(noise)).tolist()
    return samples


def coverage(count: int, size: int, shared: float = 0.0, trials: int = 200) -> float:
    """How often the interval holds the true median."""
    intervals = (median_interval(groups_of(seed, count, size, shared)) for seed in range(trials))
    return sum(interval.low <= 10 <= interval.high for interval in intervals) / trials


@pytest.mark.parametrize(("count", "size"), [(1, 40), (5, 8), (10, 16)])
def test_the_interval_of_the_median_holds_the_truth_as_often_as_it_says(count: int, size: int) -> None:
    assert 0.9 <= coverage(count, size) <= 1


def test_the_interval_holds_the_truth_of_neighbours_that_resemble_each_other() -> None:
    naive = sum(
        low <= 10 <= high
        for seed in range(200)
        for low, high in [interval_of_one_group(groups_of(seed, 10, 16, shared=0.2))]
    )

    assert coverage(10, 16, shared=0.2) >= 0.85
    assert naive / 200 < 0.6


def interval_of_one_group(groups: list[list[float]]) -> tuple[float, float]:
    """What a bootstrap that takes all samples for independent says."""
    interval = median_interval([[sample for group in groups for sample in group]])
    return interval.low, interval.high


def test_the_interval_is_wider_where_a_group_shares_its_noise() -> None:
    alike, independent = groups_of(0, 10, 16, shared=0.2), groups_of(0, 10, 16)
    low, high = interval_of_one_group(alike)

    assert median_interval(alike).relative_half_width > 2 * (high - low) / 2 / 10
    assert median_interval(alike).relative_half_width > 2 * median_interval(independent).relative_half_width


def test_the_median_is_that_of_all_samples_whatever_the_size_of_their_groups() -> None:
    interval = median_interval([[1.0], [2.0, 3.0], [10.0, 11.0, 12.0, 13.0]])

    assert interval.value == 10.0
    assert 1.0 <= interval.low <= interval.value <= interval.high <= 13.0


def test_equal_samples_have_an_interval_without_width() -> None:
    assert median_interval([[5.0, 5.0], [5.0]]) == Interval(5.0, 5.0, 5.0)
    assert median_interval([[5.0]]).relative_half_width == 0


def test_the_same_samples_give_the_same_interval() -> None:
    groups = groups_of(0, 5, 8)

    assert median_interval(groups) == median_interval(groups)


def test_an_outlier_moves_neither_the_median_nor_its_interval_far() -> None:
    groups = groups_of(0, 5, 8)
    groups[0][0] = 1e6

    assert median_interval(groups).high < 11


@pytest.mark.parametrize("groups", [[], [[]], [[1.0], []]])
def test_an_interval_of_nothing_is_refused(groups: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        median_interval(groups)


def test_the_slope_of_a_line_is_recovered_exactly_where_there_is_no_noise() -> None:
    positions = [1, 16, 32, 64]

    rising = slope_interval(positions, [[[3.0 + 0.25 * at] * 4] * 2 for at in positions])
    flat = slope_interval(positions, [[[3.0] * 4] * 2 for _ in positions])

    assert (rising.value, rising.low, rising.high) == pytest.approx((0.25, 0.25, 0.25), rel=1e-12)
    assert (flat.value, flat.low, flat.high) == pytest.approx((0, 0, 0), abs=1e-12)


def test_the_interval_of_the_slope_holds_the_truth_as_often_as_it_says() -> None:
    positions, hits, zero = [1, 2048, 4096, 8192], 0, 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        groups = [(10 + 1e-3 * at + generator.standard_normal((4, 8))).tolist() for at in positions]
        slope = slope_interval(positions, groups)
        hits += slope.low <= 1e-3 <= slope.high
        zero += slope.low <= 0

    assert hits / 200 >= 0.9
    assert zero == 0  # a slope this far from the noise is told from none


def test_what_slows_all_positions_of_a_visit_does_not_widen_the_slope() -> None:
    visits = np.exp(np.random.default_rng(0).normal(size=8))  # the machine's speed, visit by visit
    noise = np.random.default_rng(1).normal(size=(2, 8, 16))

    slope = slope_interval([0, 1], [(10 * visits[:, None] + 0.1 * noise[at] + at).tolist() for at in (0, 1)])

    assert slope.low < 1 < slope.high
    assert slope.high - slope.low < 0.2


def test_a_visit_that_did_not_come_to_every_position_is_left_out_of_the_slope() -> None:
    slope = slope_interval([0, 1], [[[1.0], [1.0], [1.0], [9.0]], [[2.0], [2.0], [2.0]]])

    assert (slope.value, slope.low, slope.high) == (1, 1, 1)


@pytest.mark.parametrize(("rank", "enough"), [(90, 64), (99, 662)])
def test_a_percentile_is_given_only_when_there_are_samples_enough(rank: int, enough: int) -> None:
    samples = [float(sample) for sample in range(enough)]

    assert percentile(samples[:-1], rank) is None
    assert percentile(samples, rank) == pytest.approx((enough - 1) * rank / 100)
    assert percentile([], rank) is None


def test_a_percentile_that_has_no_rule_is_refused() -> None:
    with pytest.raises(KeyError):
        percentile([1.0] * 1000, 95)


@pytest.mark.parametrize("visits", [5, 10])
def test_the_interval_covers_the_truth_when_the_steps_of_a_visit_share_their_noise(visits: int) -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        shared = 0.05 * generator.standard_normal((visits, 1))
        interval = median_interval((1 + shared + 0.02 * generator.standard_normal((visits, 8))).tolist())
        covered += interval.low <= 1 <= interval.high

    assert covered >= 0.9 * 200


def test_the_interval_of_a_mean_holds_it_and_narrows_with_more_samples() -> None:
    few, many = (mean_interval([0.0, 1.0, 1.0, 1.0] * times) for times in (5, 500))

    assert few.value == many.value == 0.75
    assert few.low < many.low < 0.75 < many.high < few.high
    assert many.high - many.low == pytest.approx(2 * 1.96 * (0.75 * 0.25 / 2000) ** 0.5, rel=0.1)


def crossed(seed: int, n_runs: int, n_documents: int, truth: float, of_document: float = 0.2) -> Interval:
    """Documents of unequal lengths, whose difference has a part of the run, one of the document and one of both."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(50, 500, n_documents)
    noise = (
        0.1 * generator.standard_normal((n_runs, 1))
        + of_document * generator.standard_normal((1, n_documents))
        + of_document / 2 * generator.standard_normal((n_runs, n_documents))
    )
    return crossed_interval(((truth + noise) * lengths).tolist(), lengths.tolist())


@pytest.mark.parametrize(("n_runs", "n_documents", "of_document"),
                         [(2, 25, 0.02), (3, 25, 0.02), (3, 25, 0.2), (8, 8, 0.2), (20, 40, 0.2)])  # fmt: skip
def test_the_interval_over_runs_and_documents_holds_the_truth_as_often_as_it_says(
    n_runs: int, n_documents: int, of_document: float
) -> None:
    intervals = [crossed(seed, n_runs, n_documents, 1.0, of_document) for seed in range(200)]
    held = sum(interval.low <= 1.0 <= interval.high for interval in intervals) / 200

    assert held >= 0.9


def test_the_mean_over_runs_and_documents_weighs_every_token_the_same() -> None:
    interval = crossed_interval([[10.0, 60.0], [30.0, 100.0]], [10.0, 20.0])

    assert interval.value == pytest.approx((10 + 60 + 30 + 100) / 2 / 30)
    assert interval.low < interval.value < interval.high


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.706), (2, 4.303), (5, 2.571), (30, 2.042), (1e9, 1.960)])
def test_students_quantiles_are_those_of_the_tables(freedom: float, expected: float) -> None:
    assert student(freedom, 0.95) == pytest.approx(expected, abs=1e-3)


def test_runs_that_agree_in_every_document_have_an_interval_without_width() -> None:
    assert crossed_interval([[2.0, 6.0]] * 3, [1.0, 3.0]) == Interval(2.0, 2.0, 2.0)


def test_one_run_gives_the_interval_of_its_documents() -> None:
    wide = crossed(3, 1, 40, 1.0)

    assert 0.02 < wide.high - wide.low < 0.3
