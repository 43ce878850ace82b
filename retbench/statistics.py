"""Medians with bootstrap intervals, and percentiles only where there are samples enough."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

MINIMUM_SAMPLES = {90: 64, 99: 662}
RESAMPLES = 1000
PAIRED = 3  # visits, from which on what differs between them can be told from what differs between positions


@dataclass(frozen=True)
class Interval:
    """A statistic with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def relative_half_width(self) -> float:
        return (self.high - self.low) / 2 / self.value


def median_interval(groups: Sequence[Sequence[float]]) -> Interval:
    """The median of all samples. The bootstrap draws groups, then samples in them: a group is a run of neighbours.

    Neighbouring timings resemble each other, so resampling them one by one would give an interval that is too narrow.
    """
    samples = np.concatenate([np.asarray(group, dtype=float) for group in groups])
    medians = np.median(_resampled(groups), axis=1)
    low, high = np.percentile(medians, _tails(len(groups) if len(groups) > 1 else len(samples)))
    return Interval(float(np.median(samples)), float(low), float(high))


def slope_interval(positions: Sequence[float], groups: Sequence[Sequence[Sequence[float]]]) -> Interval:
    """The least-squares slope over ``positions`` of a visit's medians, in the median over visits.

    ``groups`` holds each position's visits, a group of samples each. Positions are visited in turn, so that what slows
    the machine for a while slows all positions of a visit; the bootstrap draws visits, then samples in each. A visit
    that did not come to every position is left out; with fewer than ``PAIRED`` of them positions are drawn apart.
    """
    visits = min(map(len, groups))
    paired = visits >= PAIRED
    generator = np.random.default_rng(0)
    drawn = generator.integers(visits, size=(RESAMPLES, visits))
    resampled, measured = [], []
    for at in groups:
        kept = at[:visits] if paired else at
        which = drawn if paired else generator.integers(len(kept), size=(RESAMPLES, len(kept)))
        medians = np.median(_picked(kept, which, generator), axis=2)  # (RESAMPLES, visits)
        resampled.append(medians if paired else np.median(medians, axis=1, keepdims=True))
        found = np.array([np.median(group) for group in kept])
        measured.append(found if paired else np.median(found, keepdims=True))
    low, high = np.percentile(np.median(_slopes(positions, resampled), axis=1), _tails(visits))
    return Interval(float(np.median(_slopes(positions, measured))), float(low), float(high))


def _slopes(positions: Sequence[float], values: Sequence[np.ndarray]) -> np.ndarray:
    """The least-squares slopes of values (P, ...) over P positions -> (...)."""
    centred = np.asarray(positions, dtype=float) - np.mean(positions)
    # Not @: BLAS would take its buffers from the memory that the cell may allocate.
    return np.asarray(np.einsum("p,p...->...", centred, np.stack(values)) / np.square(centred).sum())


def ratio_interval(before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> Interval:
    """Median of ``after`` / median of ``before``, which share no moments; the bootstrap is that of median_interval."""
    ratios = np.median(_resampled(after, seed=1), axis=1) / np.median(_resampled(before), axis=1)
    draws = min(len(groups) if len(groups) > 1 else len(groups[0]) for groups in (before, after))
    low, high = np.percentile(ratios, _tails(draws))
    first, second = (np.median(np.concatenate([np.asarray(group) for group in groups])) for groups in (before, after))
    return Interval(float(second / first), float(low), float(high))


def mean_interval(samples: Sequence[float]) -> Interval:
    """The mean of independent samples, such as right and wrong answers or their differences between two models."""
    values = np.asarray(samples, dtype=float)
    means = [group.mean() for group in _resampled([samples])]
    low, high = np.percentile(means, _tails(len(values)))
    return Interval(float(values.mean()), float(low), float(high))


def crossed_interval(values: Sequence[Sequence[float]], weights: Sequence[float]) -> Interval:
    """Sums over documents, a row of ``values`` a run, as a mean per weight: nats over documents a token, say.

    Student's interval: documents are the same in every run, so that the variance has a part of the runs, one of the
    documents and, in both, one of each pair, which is taken off once (Cameron, Gelbach and Miller 2011, "Robust
    Inference With Multiway Clustering"). Its degrees of freedom (Satterthwaite) are few where runs differ more than
    documents: two that agree by chance say little. Of one run it says nothing about others.
    """
    table, of_document = np.asarray(values, dtype=float), np.asarray(weights, dtype=float)
    n_runs, n_documents = table.shape
    value = float(table.sum() / n_runs / of_document.sum())
    apart = (table - value * of_document) / of_document.sum()  # (runs, documents)
    runs, documents = apart.sum(axis=1), n_documents * apart.mean(axis=0)  # how far each alone would move the value
    parts = [(_square_error(one), one.size - 1) for one in (runs, documents) if one.size > 1]
    pairs = n_documents * apart - runs[:, None] - documents
    twice = float(np.square(pairs).sum()) / pairs.size / max(1, (n_runs - 1) * (n_documents - 1))
    variance = max(sum(one for one, _ in parts) - twice, *(one for one, _ in parts), 0.0)
    if not variance:
        return Interval(value, value, value)
    freedom = sum(one for one, _ in parts) ** 2 / sum(one**2 / free for one, free in parts)
    half = student(freedom, 0.95) * math.sqrt(variance)
    return Interval(value, value - half, value + half)


def _square_error(samples: np.ndarray) -> float:
    """Of their mean, where their true mean is 0."""
    return float(np.square(samples).sum()) / samples.size / (samples.size - 1)


def student(freedom: float, share: float) -> float:
    """How many standard errors to both sides hold ``share`` of Student's distribution: its density, integrated."""
    freedom = min(freedom, 10_000.0)  # from where on it is the normal one
    angles = np.linspace(0, math.pi / 2, 100_001)
    mass = np.cumsum(np.cos(angles) ** (freedom - 1))  # the tangent of an angle is t / sqrt(freedom)
    return math.sqrt(freedom) * math.tan(float(np.interp(share, mass / mass[-1], angles)))


def percentile(samples: Sequence[float], rank: int) -> float | None:
    """The percentile, or None when there are too few samples to see it."""
    return float(np.percentile(samples, rank)) if len(samples) >= MINIMUM_SAMPLES[rank] else None


def expanded_tail(draws: int, share: float) -> float:
    """What to cut off one end of a bootstrap of ``draws`` groups so that the truth lies beyond with odds of ``share``.

    A bootstrap of few groups is too narrow, so ``share`` itself would cut off more: expanded percentiles after
    Hesterberg 2015, "What Teachers Should Know About the Bootstrap", with Student's quantile from its Cornish-Fisher
    series.
    """
    if draws < 2:
        return 0.0
    freedom, z = draws - 1, NormalDist().inv_cdf(1 - share)
    student = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return NormalDist().cdf(-math.sqrt(draws / freedom) * student)


def _tails(draws: int) -> list[float]:
    """The percentiles of a bootstrap of ``draws`` groups that bound 95 %."""
    tail = 100 * expanded_tail(draws, 0.025)
    return [tail, 100 - tail]


def _resampled(groups: Sequence[Sequence[float]], seed: int = 0) -> np.ndarray:
    """(RESAMPLES, n) samples: groups drawn with replacement, then samples of each drawn with replacement."""
    if not len(groups):
        raise ValueError("an interval needs at least one sample in every group")
    generator = np.random.default_rng(seed)
    drawn = generator.integers(len(groups), size=(RESAMPLES, len(groups)))
    return _picked(groups, drawn, generator).reshape(RESAMPLES, -1)


def _picked(groups: Sequence[Sequence[float]], drawn: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Of each of the groups ``drawn`` (..., n) as many samples, drawn with replacement, as the largest group has."""
    lengths = np.array([len(group) for group in groups])
    if lengths.min() == 0:
        raise ValueError("an interval needs at least one sample in every group")
    offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    flat = np.concatenate([np.asarray(group, dtype=float) for group in groups])
    within = (generator.random((*drawn.shape, lengths.max())) * lengths[drawn][..., None]).astype(int)
    picked: np.ndarray = flat[offsets[drawn][..., None] + within]
    return picked
