"""What is computed of a claim from the records of a setting: a number with its interval, of or over each baseline."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from functools import partial
from typing import Any

from retbench.record import Record
from retbench.report.claims import Claim, Measure
from retbench.report.claims_settings import kind, tasks_of
from retbench.report.frame import mean_over_positions
from retbench.report.growth import byte_growth
from retbench.report.learning_scores import Pairs, difference, in_domain
from retbench.report.pairs import time_ratio
from retbench.statistics import Interval, mean_interval

MORE_IS_BETTER = ("tokens_per_s", "tokens_per_s_mean")

Found = tuple[Interval | None, dict[str, Interval]]  # of the system itself, and of or over each baseline


def _advantage(claim: Claim, group: Sequence[Record]) -> Found:
    """Over each baseline: of optimizer steps in turn the ratio in pairs, else between the far ends of both sides."""
    mine, theirs = _by_system(claim, group, lambda record: _positive(record, claim.metric))
    if mine is None:
        return None, {}
    records = {record.cell.system: record for record in group}

    def over(name: str, other: Interval) -> Interval:
        if claim.metric not in MORE_IS_BETTER:
            return ratio(other, mine)
        in_turn = time_ratio(records[name], records[claim.system], "step_ns")  # of the same tokens
        return in_turn or ratio(mine, other)

    return None, {name: over(name, other) for name, other in theirs.items()}


def _saving(claim: Claim, group: Sequence[Record]) -> Found:
    _, found = _advantage(claim, group)
    return None, {name: Interval(*(1 - 1 / end for end in astuple(one))) for name, one in found.items()}


def _over_length(claim: Claim, group: Sequence[Record]) -> Found:
    return _by_system(claim, group, lambda record: _growth(record, claim.metric))


def _over_batch(claim: Claim, group: Sequence[Record]) -> Found:
    found: dict[str, Interval] = {}
    for system in dict.fromkeys(record.cell.system for record in group):
        own = sorted((one for one in group if one.cell.system == system), key=lambda one: one.cell.batch_size)
        ends = [_positive(one, claim.metric) for one in (own[0], own[-1])]
        if own[0].cell.batch_size < own[-1].cell.batch_size and ends[0] and ends[1]:
            found[system] = ratio(ends[1], ends[0])
    return found.pop(claim.system, None), found


def _exponent(claim: Claim, group: Sequence[Record]) -> Found:
    def of(record: Record) -> Interval | None:
        return byte_growth({one["context"]: one[claim.metric] for one in record.contexts if claim.metric in one})

    return _by_system(claim, group, of)


def _value(claim: Claim, group: Sequence[Record]) -> Found:
    return _by_system(claim, group, lambda record: metric_interval(record, claim.metric))


def _loss(claim: Claim, group: Sequence[Record]) -> Found:
    """Nats a token by which each baseline is worse: over the same documents and seeds."""
    of = partial(document_losses, metric=claim.metric)
    seeds: dict[str, dict[int, Record]] = {}
    for record in sorted(filter(of, group), key=lambda one: one.cell.seed):
        seeds.setdefault(record.cell.system, {})[record.cell.seed] = record
    runs = {system: list(found.values()) for system, found in seeds.items()}
    mine = runs.pop(claim.system, [])
    against = {name: difference(theirs, mine, of) for name, theirs in runs.items()}
    return None, {name: found for name, found in against.items() if found}


def seeds_of(claim: Claim, group: Sequence[Record], baseline: str | None) -> set[int]:
    """Those that both the system and the baseline were trained with, of a claim about losses."""
    read = [record.cell for record in group if document_losses(record, claim.metric)]
    own, theirs = ({cell.seed for cell in read if cell.system == name} for name in (claim.system, baseline))
    return own & theirs


def _accuracy(claim: Claim, group: Sequence[Record]) -> Found:
    """Points between the mean accuracies over the tasks that both did, their documents in pairs."""
    answers: dict[str, dict[str, dict[Any, float]]] = {}
    counted = tasks_of(group)
    for record in (one for one in group if str(one.cell.task) in counted):
        found = {one["doc"]: 100.0 * one["acc"] for one in record.notes.get("documents", [])}
        answers.setdefault(kind(claim, record), {})[str(record.cell.task)] = found
    mine, others = answers.pop(claim.system, {}), {}
    for name, theirs in answers.items():
        tasks = [
            [mine[task][one] - theirs[task][one] for one in sorted(mine[task].keys() & theirs[task].keys(), key=str)]
            for task in sorted(mine.keys() & theirs.keys())
        ]
        if all(tasks) and tasks:
            # The mean over tasks weighs each alike, however many documents it has.
            share = sum(map(len, tasks)) / len(tasks)
            others[name] = mean_interval([one * share / len(task) for task in tasks for one in task])
    return None, others


MEASURES: Mapping[Measure, Callable[[Claim, Sequence[Record]], Found]] = {
    "advantage": _advantage,
    "saving": _saving,
    "over_length": _over_length,
    "over_batch": _over_batch,
    "exponent": _exponent,
    "value": _value,
    "loss": _loss,
    "accuracy": _accuracy,
}


def metric_interval(record: Record, name: str) -> Interval | None:
    """A metric with the ends that the record has for it; without them it was counted, not timed."""
    value = record.metrics.get(name)
    if not isinstance(value, int | float):
        return None
    if name == "tokens_per_s_mean":
        return _mean_rate(record, value)
    low, high = (record.metrics.get(f"{name}{end}") for end in ("_low", "_high"))
    return Interval(value, value if low is None else low, value if high is None else high)


def _positive(record: Record, name: str) -> Interval | None:
    """The metric, if one can divide by it."""
    found = metric_interval(record, name)
    return found if found and found.low > 0 else None


def ratio(above: Interval, below: Interval) -> Interval:
    """The quotient of positive numbers; its interval spans the far ends of both."""
    return Interval(above.value / below.value, above.low / below.high, above.high / below.low)


def document_losses(record: Record, metric: str) -> Pairs:
    """Nats and tokens of each held-out document: in domain, read in windows, or at a context of Table 8's protocol."""
    if record.cell.learning is None:
        return []
    if metric.startswith("context "):
        found: Pairs = record.notes["contexts"].get(metric.removeprefix("context "), [])
        return found
    return in_domain(record)


def _by_system(claim: Claim, group: Sequence[Record], of: Callable[[Record], Interval | None]) -> Found:
    found = {record.cell.system: interval for record in group if (interval := of(record))}
    return found.pop(claim.system, None), found


def _growth(record: Record, name: str) -> Interval | None:
    """A number at the longest context over that at the shortest, of one record: both were visited in turn."""
    points = sorted((one for one in record.contexts if one.get(name)), key=lambda one: one["context"])
    if len(points) < 2:
        return None
    first, last = (
        Interval(one[name], one.get(f"{name}_low", one[name]), one.get(f"{name}_high", one[name]))
        for one in (points[0], points[-1])
    )
    return ratio(last, first)


def _mean_rate(record: Record, value: float) -> Interval:
    """Tokens/s averaged over positions, from the ends of the intervals at the contexts."""
    slow, fast = (mean_over_positions(record, f"tpot_ms{end}") for end in ("_high", "_low"))
    if math.isnan(slow) or math.isnan(fast):
        return Interval(value, value, value)
    return Interval(value, *(1000 * record.cell.batch_size / mean for mean in (slow, fast)))
