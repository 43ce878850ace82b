"""Exponents of known growth, with and without noise, constants and lower terms."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench.report.growth import added_time_growth, byte_growth, time_growth
from tests.models.helpers import repeatable

LENGTHS = [256 * 2**n for n in range(7)]


def noisy(value: float, seed: int, noise: float = 0.05) -> list[list[float]]:
    """Five visits of four samples; a visit shares most of its noise."""
    generator = np.random.default_rng(seed)
    return [[value * math.exp(shared + noise / 4 * generator.normal()) for _ in range(4)]
            for shared in noise * generator.normal(size=5)]  # fmt: skip


@given(exponent=st.floats(0.0, 2.0), factor=st.floats(1e-3, 1e3))
@repeatable
def test_a_power_law_of_times_gives_its_exponent(exponent: float, factor: float) -> None:
    found = time_growth({length: [[factor * length**exponent]] * 2 for length in LENGTHS})

    assert found is not None
    assert found.value == pytest.approx(exponent, abs=1e-9)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_the_interval_of_noisy_times_holds_the_exponent(exponent: float) -> None:
    found = time_growth({length: noisy(length**exponent, seed) for seed, length in enumerate(LENGTHS)})

    assert found is not None
    assert found.low < exponent < found.high
    assert found.high - found.low < 0.3


@pytest.mark.parametrize(("added_ms", "expected"), [(0.0, 0.0), (1e-3, 1.0)])
def test_what_the_context_adds_to_a_step_is_seen_beside_a_large_constant(added_ms: float, expected: float) -> None:
    points = {length: noisy(5.0 + added_ms * length, seed, 0.01) for seed, length in enumerate(LENGTHS)}

    found = added_time_growth(points)

    assert found is not None
    assert found.value == pytest.approx(expected, abs=0.1)


def test_times_too_noisy_to_say_whether_they_grow_have_no_exponent() -> None:
    points = {length: noisy(5.0, seed, noise=0.6) for seed, length in enumerate(LENGTHS)}

    assert added_time_growth(points) is None


def test_noise_that_all_lengths_of_a_visit_share_does_not_hide_what_grows_or_stays() -> None:
    slow = [1.0, 1.8, 1.2, 1.6]
    constant = added_time_growth({length: [[5.0 * factor] * 4 for factor in slow] for length in LENGTHS})
    growing = added_time_growth({length: [[(5.0 + 1e-3 * length) * f] * 4 for f in slow] for length in LENGTHS})

    assert constant is not None
    assert constant.value == 0
    assert growing is not None
    assert growing.value == pytest.approx(1.0, abs=0.01)


@given(
    constant=st.integers(0, 10**9),
    linear=st.integers(1, 10**6),
    quadratic=st.one_of(st.just(0), st.integers(100, 10**4)),
)
@repeatable
def test_exact_bytes_give_the_exponent_of_their_fastest_growing_term(
    constant: int, linear: int, quadratic: int
) -> None:
    linear *= bool(quadratic == 0) or 1
    found = byte_growth({length: constant + linear * length + quadratic * length**2 for length in LENGTHS})

    assert found is not None
    dominant = quadratic * 1.5 * LENGTHS[-1] > 0.03 * (linear + quadratic * 1.5 * LENGTHS[-1])
    assert found.value == pytest.approx(2.0 if quadratic and dominant else 1.0, abs=0.02)


def test_constant_bytes_have_the_exponent_zero_and_n_log_n_lies_between() -> None:
    constant = byte_growth(dict.fromkeys(LENGTHS, 4096))
    mixed = byte_growth({length: 8 * length * int(math.log2(length)) for length in LENGTHS})

    assert constant is not None
    assert (constant.low, constant.value, constant.high) == (0, 0, 0)
    assert mixed is not None
    assert 1.05 < mixed.value < 1.2


def test_bytes_whose_fastest_term_is_not_to_be_seen_yet_have_no_exponent() -> None:
    saturating = {length: 10**6 * min(length, 2048) + length for length in LENGTHS[:5]}

    assert byte_growth(saturating) is None


def test_bytes_that_jump_at_one_length_have_no_exponent() -> None:
    linear = {length: 6_848_768 + 63_528 * length + length**2 // 2**14 for length in LENGTHS}
    jumping = {**linear, LENGTHS[-1]: linear[LENGTHS[-1]] + 2**26}
    found = byte_growth(linear)

    assert found is not None
    assert found.value == pytest.approx(1, abs=0.01)
    assert byte_growth(jumping) is None


def test_too_few_lengths_have_no_exponent() -> None:
    two = {256: 1, 512: 2}

    assert byte_growth(two) is None
    assert time_growth({length: [[1.0]] for length in two}) is None
    assert added_time_growth({length: [[1.0]] for length in two}) is None
