"""How numbers are written."""

import pytest

from retbench.report.numbers import length, memory_unit, ratio, significant, with_interval


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.04123, "0.0412"), (0.9996, "1.00"), (3.891, "3.89"), (38.94, "38.9"), (389.4, "389"), (25342.0, "25,300"),
     (0, "0"), (-0.0123, "-0.0123"), (None, "-"), (float("nan"), "-")],
)  # fmt: skip
def test_numbers_keep_three_significant_digits_without_an_exponent(value: float | None, words: str) -> None:
    assert significant(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(15.62, "15.6"), (2.434, "2.43"), (0.996, "1.00"), (0.634, "0.63"), (0.0966, "0.10"), (0.0634, "0.06"),
     (0.0042, "0.004"), (None, "-"), (0, "-")],
)  # fmt: skip
def test_ratios_have_two_decimals_at_most(value: float | None, words: str) -> None:
    assert ratio(value) == words


def test_an_interval_is_shown_by_its_wider_side() -> None:
    assert with_interval(100.0, 99.5, 101.2) == "100 ±1.2%"
    assert with_interval(100.0, 80.0, 101.2) == "100 ±20%"
    assert with_interval(100.0, None, None) == "100"
    assert with_interval(None, 1.0, 2.0) == "-"


def test_memory_is_in_gib_only_when_every_value_is_above_one() -> None:
    assert memory_unit([2**30, 2**33]) == ("GiB", 2**30)
    assert memory_unit([2**29, 2**33, None]) == ("MiB", 2**20)
    assert memory_unit([]) == ("MiB", 2**20)


def test_lengths_are_written_in_k_where_they_are_multiples() -> None:
    assert [length(tokens) for tokens in (0, 1, 1000, 1024, 8192)] == ["0", "1", "1000", "1k", "8k"]
