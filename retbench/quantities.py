"""What users type and read: counts and ranges of counts, bytes, durations."""

import re
from collections.abc import Sequence
from itertools import chain
from reprlib import repr as shown  # cuts long input short and keeps it on one line

from retbench.errors import UsageError

MAX_COUNT = 2**40
MAX_VALUES = 64
MAX_BYTES = 2**50
MAX_SECONDS = 7 * 24 * 3600

_COUNT = r"([0-9]+[km]?)"
_COUNTS = re.compile(rf"{_COUNT}(?:-{_COUNT}(?:([*+]){_COUNT})?)?", re.ASCII | re.IGNORECASE)
_NUMBER = r"([0-9]{1,15}(?:\.[0-9]{1,15})?)"
_DECIMAL_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_BINARY_UNITS = {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_BYTE_UNITS = {"": 1, "b": 1, **_DECIMAL_UNITS, **_BINARY_UNITS}
_BYTES = re.compile(rf"{_NUMBER} ?({'|'.join(_BYTE_UNITS)})", re.ASCII | re.IGNORECASE)
_DURATION = re.compile(
    rf"(?=.)(?:{_NUMBER}h)?(?:{_NUMBER}m)?(?:{_NUMBER}s)?|{_NUMBER}",
    re.ASCII | re.IGNORECASE,
)


def parse_counts(text: str, what: str) -> tuple[int, ...]:
    """``1k,2k``, ``1k-8k*2`` (times 2), ``1k-4k+1k`` (plus 1k), ``2-5`` (plus 1) -> distinct counts in that order.

    k is 1024 and m is 1024 k. Raises UsageError, which calls the input ``what``.
    """
    parts = [_expand(part.strip(), what) for part in text.split(",")]
    total = sum(len(part) for part in parts)
    if total > MAX_VALUES:
        raise UsageError(
            f"{what} {shown(text)} makes {total} values, at most {MAX_VALUES} are allowed;"
            " a range takes a factor or a step, as in 1k-8k*2 or 1k-4k+1k"
        )
    return tuple(dict.fromkeys(chain.from_iterable(parts)))


def _expand(part: str, what: str) -> Sequence[int]:
    """One count or one range."""
    match = _COUNTS.fullmatch(part)
    if match is None:
        raise UsageError(
            f"{what} {shown(part)} is not a count from 1 to 2^40 such as 8192 or 8k (k = 1024, m = 1024 k),"
            " nor a range such as 1k-8k*2, 1k-4k+1k or 2-5"
        )
    first, last, sign, by = match.groups()
    start = _count(first, what)
    stop = _count(last or first, what)
    step = _count(by or "1", what)
    if start > stop:
        raise UsageError(f"{what} {shown(part)} runs backwards: a range goes from small to large, as in 1k-8k*2")
    if sign != "*":
        return range(start, stop + 1, step)
    if step < 2:
        raise UsageError(f"{what} {shown(part)} has the factor {step}: a factor is 2 or more, as in 1k-8k*2")
    return [value for power in range(41) if (value := start * step**power) <= stop]  # 2^40 at most


def _count(text: str, what: str) -> int:
    digits = text.rstrip("kKmM").lstrip("0")
    unit = {"k": 1024, "m": 1024**2}.get(text[-1].lower(), 1)
    count = int(digits[:20] or "0") * unit  # 20 digits are too large already, and int() refuses thousands of them
    if not 1 <= count <= MAX_COUNT:
        raise UsageError(f"{what} {shown(text)} is out of range: a count is at least 1 and at most 2^40")
    return count


def parse_bytes(text: str, what: str = "size") -> int:
    """``4GiB``, ``512MiB``, ``2GB`` or ``1073741824`` -> bytes. Raises UsageError, which calls the input ``what``."""
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{what} {shown(text)} is not a number of bytes such as 4GiB, 512MiB, 2GB or 1073741824")
    count = round(float(match[1]) * _BYTE_UNITS[match[2].lower()])
    if not 1 <= count <= MAX_BYTES:
        raise UsageError(f"{what} {shown(text)} is out of range: at least 1 byte and at most 1024 TiB are allowed")
    return count


def format_bytes(count: int) -> str:
    """Bytes -> ``512.00 MiB`` or, from 1 GiB on, ``4.00 GiB``."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.2f} MiB"


def parse_duration(text: str, what: str = "duration") -> float:
    """``3m``, ``90s``, ``1h30m`` or ``150`` -> seconds. Raises UsageError, which calls the input ``what``."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{what} {shown(text)} is not a duration such as 3m, 90s, 1h30m or 150 (seconds)")
    hours, minutes, seconds, bare = (float(group or 0) for group in match.groups())
    total = hours * 3600 + minutes * 60 + seconds + bare
    if not 0 < total <= MAX_SECONDS:
        raise UsageError(f"{what} {shown(text)} is out of range: more than 0 and at most 168h are allowed")
    return total


def format_duration(seconds: float) -> str:
    """Seconds -> ``12.3s`` or, from a minute on, whole seconds as in ``1h30m`` or ``2m5s``."""
    if round(seconds, 1) < 60:
        return f"{round(seconds, 1):g}s"
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return "".join(f"{number}{unit}" for number, unit in ((hour, "h"), (minute, "m"), (second, "s")) if number)
