"""How numbers are written for people: significant digits, intervals, units of memory and lengths."""

import math
from collections.abc import Iterable

ABSENT = "-"


def significant(value: float | None, digits: int = 3) -> str:
    """A number of ``digits`` significant digits, without an exponent: 0.0412, 3.89, 38.9, 25,300."""
    if value is None or not math.isfinite(value):
        return ABSENT
    if value == 0:
        return "0"
    rounded = f"{value:.{digits - 1}e}"
    decimals = digits - 1 - int(rounded.split("e")[1])  # of the rounded number: 0.9996 is 1.00
    return f"{float(rounded):,.{max(decimals, 0)}f}"


def ratio(value: float | None) -> str:
    """A ratio with two decimals at most: 15.6, 2.43, 0.06; what is smaller keeps one significant digit."""
    if value is None or not math.isfinite(value) or value == 0:
        return ABSENT
    if 0.01 <= abs(value) < 1:
        return f"{value:.2f}"
    return significant(value, 1 if abs(value) < 0.01 else 3)


def with_interval(value: float | None, low: float | None, high: float | None) -> str:
    """A median and the wider side of its 95 % interval in percent: 38.9 ±1.2%."""
    if value is None or low is None or high is None or not value:
        return significant(value)
    percent = 100 * max(high - value, value - low) / value
    return f"{significant(value)} ±{percent:.1f}%" if percent < 9.95 else f"{significant(value)} ±{percent:.0f}%"


def memory_unit(values: Iterable[float | None]) -> tuple[str, int]:
    """The unit for a column of bytes, and its size: GiB when even the smallest is above one, else MiB."""
    known = [value for value in values if value]
    return ("GiB", 2**30) if known and min(known) >= 2**30 else ("MiB", 2**20)


def length(tokens: int) -> str:
    """A sequence length as people write it: 8k for 8192, 1000 for 1000."""
    return f"{tokens // 1024}k" if tokens and tokens % 1024 == 0 else str(tokens)
