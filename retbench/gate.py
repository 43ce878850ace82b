"""The verdict of the regression gate: pairs of processes by a hierarchical bootstrap, counted metrics to the byte.

Pure functions of numbers. Times are compared as log-ratios head / base of pairs of processes that ran side by side: the
bootstrap draws pairs, then samples within both processes; its statistic is the median over pairs of ratios of medians.
"""

from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from retbench.statistics import Interval, expanded_tail

ERROR = 0.025  # odds of calling anything a regression that is none, all cells and looks together
DRAWS = 4000
BANK = 200  # resampled log-ratios of a pair, from which the draws pick
FEWEST_PAIRS = 6  # a verdict needs

OK, REGRESSED, USAGE, INCONCLUSIVE, NOTHING, FAILED = range(6)  # exit statuses

Verdict = Literal["ok", "improved", "allowed", "regressed", "inconclusive", "new", "failed"]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Pair:
    """Times of calls, of any unit, in a process of the base and in one of head that ran beside it."""

    base: Sequence[float]
    head: Sequence[float]


@dataclass(frozen=True)
class Judged:
    """A verdict with the ratio head / base that it rests on; the interval is the usual one of 95 %."""

    verdict: Verdict
    ratio: Interval


def judge_times(
    courses: Mapping[Key, Sequence[Pair]], margin: float, look: int = 1, seed: int = 0
) -> dict[Key, Judged]:
    """A verdict for every cell. Regressed: the ratio surely lies above 1 + margin, by Holm's correction over the cells.

    The k-th look at growing data spends ERROR / 2^k, so that any number of looks spends ERROR at most.
    """
    courses = {key: pairs for key, pairs in courses.items() if pairs}
    draws = {key: median_draws(log_ratios(pairs, seed), seed) for key, pairs in courses.items()}
    slower = _slower(draws, {key: len(pairs) for key, pairs in courses.items()}, np.log1p(margin), ERROR / 2**look)
    judged = {}
    for key, pairs in courses.items():
        ratio = _ratio(pairs, draws[key])
        verdict: Verdict = "regressed" if key in slower else _unless_slower(ratio, margin)
        judged[key] = Judged(verdict if len(pairs) >= FEWEST_PAIRS else "inconclusive", ratio)
    return judged


def log_ratios(pairs: Sequence[Pair], seed: int = 0) -> np.ndarray:
    """(P, BANK) log-ratios of the medians of resampled calls."""
    generator = np.random.default_rng(seed)

    def medians(samples: Sequence[float]) -> np.ndarray:
        picked = generator.integers(len(samples), size=(BANK, len(samples)))
        return np.asarray(np.median(np.asarray(samples, dtype=float)[picked], axis=1))  # (BANK,)

    return np.stack([np.log(medians(pair.head) / medians(pair.base)) for pair in pairs])


def median_draws(ratios: np.ndarray, seed: int = 0, draws: int = DRAWS) -> np.ndarray:
    """(P, BANK) -> (draws,): medians over pairs that are drawn with replacement, each by one of its log-ratios."""
    generator, (pairs, bank) = np.random.default_rng(seed), ratios.shape
    rows = generator.integers(pairs, size=(draws, pairs))
    return np.asarray(np.median(ratios[rows, generator.integers(bank, size=rows.shape)], axis=1))


def judge_count(base: Sequence[int], head: Sequence[int], allowed: bool) -> Judged:
    """Of what is counted, in one run of each or more; a difference counts where all runs of both agree on its sign."""
    first, second = base[0], head[0]
    value = 1.0 if first == second else second / first if first else float("inf")
    ratio = Interval(value, value, value)
    if min(head) > max(base):
        return Judged("allowed" if allowed else "regressed", ratio)
    if max(head) < min(base):
        return Judged("improved", ratio)
    return Judged("ok" if base == head else "inconclusive", ratio)


def exit_status(verdicts: Sequence[Verdict], inconclusive_passes: bool) -> int:
    """REGRESSED for a regression and nothing else; OK only where something was compared and all of it is well."""
    found: Set[Verdict] = set(verdicts)
    if "regressed" in found:
        return REGRESSED
    if "failed" in found:
        return FAILED
    if found <= {"new"}:
        return NOTHING
    if "inconclusive" in found:
        return OK if inconclusive_passes else INCONCLUSIVE
    return OK


def share_flagged(
    ratios: np.ndarray, pairs: int, margin: float, gates: int, factor: float = 1.0, swapped: bool = False
) -> float:
    """How many of ``gates`` first looks at ``pairs`` pairs, drawn from recorded (P, BANK) log-ratios, see a regression.

    ``factor`` slows head down; ``swapped`` exchanges base and head of each drawn pair or not, by the toss of a coin, as
    may be done where both are the same code.
    """
    generator = np.random.default_rng(0)
    tail, flagged = expanded_tail(pairs, ERROR / 2), 0
    for gate in range(gates):
        drawn = ratios[generator.integers(len(ratios), size=pairs)]  # (P, BANK)
        signs = generator.choice([-1.0, 1.0], size=(pairs, 1)) if swapped else 1.0
        draws = median_draws(signs * drawn + np.log(factor), gate, DRAWS // 4)
        flagged += int(np.quantile(draws, tail) > np.log1p(margin))
    return flagged / gates


def _slower(draws: Mapping[Key, np.ndarray], pairs: Mapping[Key, int], log_margin: float, error: float) -> Set[Key]:
    """The cells above the margin: from the surest on, each at its share of the error, until one is not sure enough."""
    surest = sorted(draws, key=lambda key: (float(np.mean(draws[key] <= log_margin)), -float(np.median(draws[key]))))
    slower = set[Key]()
    for rank, key in enumerate(surest):
        tail = expanded_tail(pairs[key], error / (len(surest) - rank))
        if pairs[key] < FEWEST_PAIRS or np.quantile(draws[key], tail) <= log_margin:
            break
        slower.add(key)
    return slower


def _unless_slower(ratio: Interval, margin: float) -> Verdict:
    if ratio.high < 1 / (1 + margin):
        return "improved"
    return "ok" if ratio.high < 1 + margin else "inconclusive"


def _ratio(pairs: Sequence[Pair], draws: np.ndarray) -> Interval:
    tail = expanded_tail(len(pairs), 0.025)
    low, high = np.exp(np.quantile(draws, [tail, 1 - tail]))
    middle = np.exp(np.median([np.log(np.median(pair.head) / np.median(pair.base)) for pair in pairs]))
    return Interval(float(middle), float(low), float(high))
