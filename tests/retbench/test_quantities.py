"""What users type means what they think, and whatever cannot mean anything is refused in one line."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retbench.errors import UsageError
from retbench.quantities import (
    MAX_BYTES,
    MAX_COUNT,
    MAX_SECONDS,
    MAX_VALUES,
    format_bytes,
    format_duration,
    parse_bytes,
    parse_counts,
    parse_duration,
)

repeatable = settings(derandomize=True, deadline=None)
TYPED = (
    st.text("0123456789kKmMgGiIbBhs-*+,. ") | st.text() | st.text(st.characters(categories=["Nd", "Cs", "Zl", "Cc"]))
)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("8192", (8192,)),
        ("1k", (1024,)),
        ("1K,2M", (1024, 2 * 1024**2)),
        ("1k-8k*2", (1024, 2048, 4096, 8192)),
        ("1k-7k*2", (1024, 2048, 4096)),
        ("1-100*3", (1, 3, 9, 27, 81)),
        ("1k-4k+1k", (1024, 2048, 3072, 4096)),
        ("1-6+2", (1, 3, 5)),
        ("2-5", (2, 3, 4, 5)),
        ("4-4", (4,)),
        ("1-1*2", (1,)),
        ("8,1,8,2-4", (8, 1, 2, 3, 4)),
        (" 1k , 2k ", (1024, 2048)),
        ("0008", (8,)),
        ("0" * 5000 + "1", (1,)),
        ("1-64", tuple(range(1, 65))),
        ("1-1048576m*1048576", (1, 2**20, 2**40)),
        (str(MAX_COUNT), (MAX_COUNT,)),
    ],
)
def test_counts_expand(text: str, values: tuple[int, ...]) -> None:
    assert parse_counts(text, "--seq-len") == values


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "'' is not a count from 1 to 2\\^40 such as 8192 or 8k"),
        (" ", "'' is not a count"),
        ("1,,2", "'' is not a count"),
        ("1,", "'' is not a count"),
        ("0", "'0' is out of range: a count is at least 1 and at most 2\\^40"),
        ("0k", "'0k' is out of range"),
        ("-1", "'-1' is not a count from 1"),
        ("-4-8", "'-4-8' is not a count"),
        ("1.5k", "'1.5k' is not a count"),
        ("1e3", "'1e3' is not a count"),
        ("1_000", "'1_000' is not a count"),
        ("1 k", "'1 k' is not a count"),
        ("1 - 2", "'1 - 2' is not a count"),
        ("kk", "'kk' is not a count"),
        ("1kk", "'1kk' is not a count"),
        ("1g", "'1g' is not a count"),
        ("2*2", r"'2\*2' is not a count"),
        ("1-", "'1-' is not a count"),
        ("1-8*", r"'1-8\*' is not a count"),
        ("1-8*-2", r"'1-8\*-2' is not a count"),
        ("1-8*2*2", r"'1-8\*2\*2' is not a count"),
        ("٣", "'٣' is not a count"),
        ("²", "'²' is not a count"),
        ("1\N{KELVIN SIGN}", "is not a count"),  # lower() makes it a k
        ("8k-1k", "'8k-1k' runs backwards: a range goes from small to large"),
        ("2-1*2", "runs backwards"),
        ("1k-8k*1", r"'1k-8k\*1' has the factor 1: a factor is 2 or more"),
        ("1k-8k*0", "'0' is out of range"),
        ("1k-8k+0", "'0' is out of range"),
        ("0-4", "'0' is out of range"),
        ("1-2000000m", "'2000000m' is out of range"),
        (str(MAX_COUNT + 1), "is out of range"),
        ("9" * 5000, "is out of range"),
        ("1k-8k", "'1k-8k' makes 7169 values, at most 64 are allowed; a range takes a factor or a step"),
        ("1-1048576m", "makes 1099511627776 values, at most 64"),
        ("1-60,101-105", "makes 65 values, at most 64"),
    ],
)
def test_bad_counts_are_refused_with_what_is_allowed(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=f"^--seq-len .*{complaint}"):
        parse_counts(text, "--seq-len")


@repeatable
@given(TYPED)
def test_any_text_makes_counts_or_one_line_of_complaint(text: str) -> None:
    try:
        values = parse_counts(text, "--seq-len")
    except UsageError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 300
    else:
        assert 1 <= len(values) <= MAX_VALUES
        assert len(set(values)) == len(values)
        assert all(1 <= value <= MAX_COUNT for value in values)


@repeatable
@given(st.integers(1, MAX_COUNT), st.integers(1, MAX_COUNT), st.integers(2, MAX_COUNT))
def test_a_geometric_range_rises_by_its_factor_until_its_end(start: int, more: int, factor: int) -> None:
    stop = min(start + more, MAX_COUNT)

    values = parse_counts(f"{start}-{stop}*{factor}", "--seq-len")

    assert values[0] == start
    assert all(after == before * factor for before, after in pairwise(values))
    assert values[-1] <= stop < values[-1] * factor


@repeatable
@given(st.integers(1, 2**30), st.integers(1, 2**30), st.integers(1, MAX_VALUES - 1))
def test_an_arithmetic_range_rises_by_its_step_until_its_end(start: int, step: int, steps: int) -> None:
    stop = start + step * steps

    values = parse_counts(f"{start}-{stop}+{step}", "--seq-len")

    assert values == tuple(start + step * index for index in range(steps + 1))


@repeatable
@given(st.lists(st.integers(1, MAX_COUNT), min_size=1, max_size=MAX_VALUES))
def test_a_list_keeps_its_order_and_loses_its_duplicates(values: list[int]) -> None:
    parsed = parse_counts(" ,".join(map(str, values)), "--batch-size")

    assert parsed == tuple(dict.fromkeys(values))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4GiB", 4 * 2**30),
        ("512MiB", 512 * 2**20),
        ("2GB", 2 * 10**9),
        ("1073741824", 2**30),
        ("1073741824B", 2**30),
        ("64kb", 64_000),
        ("64KiB", 65_536),
        ("1.5 gib", 3 * 2**29),
        (" 1TB ", 10**12),
        ("1024TiB", MAX_BYTES),
    ],
)
def test_bytes_are_decimal_or_binary_as_said(text: str, count: int) -> None:
    assert parse_bytes(text, "--mem-limit") == count


@pytest.mark.parametrize("text", ["", "4G", "4 G iB", "GiB", "-1GiB", "1e9", "4GiB,", "٤GiB", "inf", "nan", "9" * 5000])
def test_bad_bytes_are_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--mem-limit .* is not a number of bytes such as 4GiB, 512MiB, 2GB or"):
        parse_bytes(text, "--mem-limit")


@pytest.mark.parametrize("text", ["0", "0GiB", "0.1B", "1025TiB"])
def test_bytes_out_of_range_are_refused_with_the_range(text: str) -> None:
    with pytest.raises(UsageError, match="at least 1 byte and at most 1024 TiB"):
        parse_bytes(text, "--mem-limit")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0.00 MiB"), (2**20, "1.00 MiB"), (2**29, "512.00 MiB"), (2**30, "1.00 GiB"), (13 * 2**40, "13312.00 GiB")],
)
def test_bytes_are_shown_with_the_unit_that_they_are_in(count: int, text: str) -> None:
    assert format_bytes(count) == text


@repeatable
@given(st.integers(2**13, MAX_BYTES))
def test_shown_bytes_parse_to_what_they_show(count: int) -> None:
    text = format_bytes(count)
    last_digit = 2**30 / 100 if text.endswith("GiB") else 2**20 / 100

    assert abs(parse_bytes(text) - count) <= last_digit / 2 + 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3m", 180),
        ("90s", 90),
        ("1h30m", 5400),
        ("150", 150),
        ("1H2M3.5S", 3723.5),
        ("0.5", 0.5),
        (" 168h ", MAX_SECONDS),
    ],
)
def test_durations_are_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text, "--budget") == seconds


@pytest.mark.parametrize("text", ["", "m", "3 m", "1m1h", "1h30", "-3m", "5d", "10ms", "1e3", "٣m", "inf", "9" * 5000])
def test_bad_durations_are_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--budget .* is not a duration such as 3m, 90s, 1h30m or 150"):
        parse_duration(text, "--budget")


@pytest.mark.parametrize("text", ["0", "0s", "0h0m", "169h", "604801"])
def test_durations_out_of_range_are_refused_with_the_range(text: str) -> None:
    with pytest.raises(UsageError, match="more than 0 and at most 168h are allowed"):
        parse_duration(text, "--budget")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.04, "0s"),
        (12.34, "12.3s"),
        (59.96, "1m"),
        (90, "1m30s"),
        (3600, "1h"),
        (5400.4, "1h30m"),
        (3605, "1h5s"),
    ],
)
def test_durations_are_shown_as_they_are_typed(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@repeatable
@given(st.floats(0.1, MAX_SECONDS))
def test_shown_durations_parse_to_what_they_show(seconds: float) -> None:
    last_digit = 0.1 if seconds < 59.9 else 1

    assert abs(parse_duration(format_duration(seconds)) - seconds) <= last_digit / 2 + 1e-9


@repeatable
@given(st.integers(1, MAX_SECONDS))
def test_whole_seconds_are_shown_exactly(seconds: int) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@repeatable
@given(TYPED)
def test_any_text_makes_a_quantity_or_one_line_of_complaint(text: str) -> None:
    for parse, most in ((parse_bytes, MAX_BYTES), (parse_duration, MAX_SECONDS)):
        try:
            value = parse(text)
        except UsageError as error:
            assert str(error).isprintable()
            assert len(str(error)) < 300
        else:
            assert 0 < value <= most
