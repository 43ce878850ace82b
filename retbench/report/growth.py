"""How a quantity grows over the length: the exponent of its fastest-growing term, with an interval."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median

from retbench.statistics import Interval, slope_interval

TAIL = 4  # lengths that an exponent is fitted to, the longest ones
NEGLIGIBLE = 0.01  # of the growth: a quadratic term below it is none
BEYOND_LINEAR = 1.5  # exponent from which what is not linear is quadratic; N log N leaves a linear rest
STEEPEST = 2.5  # exponent of bytes from which on they jump rather than grow: no part of a model is that steep
CONSTANT = 0.25  # of the value at the shortest length: what changes less over all lengths is called constant

Groups = Sequence[Sequence[float]]


def time_growth(points: Mapping[int, Groups]) -> Interval | None:
    """Slope of log time over log length at the tail; ``points`` holds the samples of every visit by length.

    None with fewer than three lengths.
    """
    if len(points) < 3:
        return None
    tail = sorted(points)[-TAIL:]
    logs = [[[math.log2(value) for value in group] for group in points[length]] for length in tail]
    return slope_interval([math.log2(length) for length in tail], logs)


def added_time_growth(points: Mapping[int, Groups]) -> Interval | None:
    """The exponent of what a length adds to the time at the shortest one: 0 where all add less than CONSTANT of it.

    That 0 is a word for it, and so are its ends: nothing was fitted. A decode step has a large constant part, the
    weights. None where the samples do not say whether anything is added.
    """
    if len(points) < TAIL:
        return None
    shortest, *longer = sorted(points)
    floor = min(value for group in points[shortest] for value in group)
    slope = slope_interval([0, 1], [points[shortest], points[longer[-1]]])
    if slope.high < CONSTANT * floor:
        return Interval(0.0, 0.0, 0.0)
    if slope.low < CONSTANT * floor:
        return None
    # The base holds what its own length adds, so that what is left grows with the distance from it.
    distances = [length - shortest for length in longer[-TAIL:]]
    visits = zip(*(map(median, points[length]) for length in (shortest, *longer[-TAIL:])), strict=False)
    added = [[time - base for time in times] for base, *times in visits if min(times) > base]
    if not added:
        return None
    return time_growth(
        {distance: [[time] for time in times] for distance, *times in zip(distances, *added, strict=True)}
    )


def byte_growth(points: Mapping[int, int]) -> Interval | None:
    """The exponent of the fastest-growing term of exact bytes at lengths that double, between its last two estimates.

    Differences between neighbours remove the constant term and differences of these the linear one, so the weights and
    the linear part of a quadratic total do not blur the result. None with fewer than four lengths, or too short ones,
    and where a length takes another way than those before it.
    """
    lengths = sorted(points)[-TAIL - 1 :]
    if len(lengths) < TAIL:
        return None
    steps = [points[longer] - points[shorter] for shorter, longer in pairwise(lengths)]
    if steps[-1] == 0:
        return Interval(0.0, 0.0, 0.0)
    beyond_linear = [after - 2 * before for before, after in pairwise(steps)]
    quadratic = _exponents(beyond_linear)
    if quadratic and quadratic[-1] > BEYOND_LINEAR and beyond_linear[-1] > NEGLIGIBLE * steps[-1]:
        return _last_two(quadratic) if quadratic[-1] < STEEPEST else None
    found = _last_two(_exponents(steps))
    return found if found and found.low >= 0 else None  # steps that shrink: what grows fastest is not to be seen yet


def _exponents(terms: Sequence[int]) -> list[float]:
    """Of each term over the one before, at lengths that double."""
    return [math.log2(after / before) for before, after in pairwise(terms) if min(before, after) > 0]


def _last_two(exponents: list[float]) -> Interval | None:
    last = exponents[-2:]
    return Interval(last[-1], min(last), max(last)) if last else None
