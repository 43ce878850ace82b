"""Claims as data, and what stored records say of them: a number with its interval, and a verdict from that interval."""

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from models.sizes import SIZES
from retbench.evaluate.tasks import TASKS
from retbench.record import Record
from retbench.report.frame import mean_over_positions
from retbench.report.growth import byte_growth
from retbench.report.learning_scores import Pairs, difference, in_domain
from retbench.report.tables import shortened
from retbench.statistics import Interval, mean_interval

Measure = Literal["advantage", "saving", "over_length", "over_batch", "exponent", "value", "loss", "accuracy"]
Verdict = Literal["supported", "not supported", "undecided", "not run"]
Judged = Literal["strongest", "naive"]
Setting = tuple[Any, ...]

MORE_IS_BETTER = ("tokens_per_s", "tokens_per_s_mean")
TABLE_3 = {task.name for task in TASKS}


class ClaimError(ValueError):
    """A file of claims that does not hold what it should: says which claim, and what is wrong."""


@dataclass(frozen=True)
class Claim:
    """One claim of the paper and the predicate that decides it; the fields are explained in experiments/claims.toml."""

    name: str
    says: str
    where: str
    setting: str
    paper: str
    experiment: str
    command: str
    measure: Measure
    metric: str
    system: str
    against: tuple[str, ...] = ()
    judged: Judged = "naive"
    above: float | None = None
    at_most: float | None = None
    from_size: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in (("measure", get_args(Measure)), ("judged", get_args(Judged))):
            if getattr(self, name) not in allowed:
                raise ClaimError(f"{self.name}: {name} must be one of {', '.join(allowed)}")
        if self.above is None and self.at_most is None:
            raise ClaimError(f"{self.name}: above or at_most must be given")
        if self.measure in COMPARING and not self.against:
            raise ClaimError(f"{self.name}: {self.measure} needs against")


@dataclass(frozen=True)
class Judgement:
    """What was found: the number that decides, the same of or over the baselines, and the verdict with its reason."""

    claim: Claim
    verdict: Verdict
    reason: str
    ours: Interval | None = None
    by_baseline: Mapping[str, Interval] | None = None
    records: tuple[Record, ...] = ()  # that the number rests on

    @property
    def naive(self) -> str | None:
        """The baseline that the claim names first, where it was measured."""
        return next((name for name in self.claim.against[:1] if name in (self.by_baseline or {})), None)

    @property
    def strongest(self) -> str | None:
        """The baseline that does best; in speed and memory none where the naive one of several was measured alone."""
        found, several = self.by_baseline or {}, len(self.claim.against) > 1
        alone = self.claim.measure in TUNED and several and not set(self.claim.against[1:]) & set(found)
        return None if alone else min(found, key=lambda name: found[name].value, default=None)


def read_claims(path: Path) -> list[Claim]:
    """The claims of a file; each takes what it does not say from its group. ClaimError names what is wrong."""
    claims, known = [], {field.name for field in fields(Claim)}
    tables = tomllib.loads(path.read_text(encoding="utf-8")).values()
    for group in (table for table in tables if isinstance(table, dict)):
        shared = {name: value for name, value in group.items() if name != "claims"}
        for name, own in group["claims"].items():
            data = {**shared, **own}
            if unknown := set(data) - known:
                raise ClaimError(f"{name}: unknown {', '.join(sorted(unknown))}")
            lists = {key: tuple(data[key]) for key in ("against", "notes") if key in data}
            try:
                claims.append(Claim(name=name, **{**data, **lists}))
            except TypeError as error:
                raise ClaimError(f"{name}: {error}") from error
    return claims


def judge(claim: Claim, records: Sequence[Record]) -> Judgement:
    """The verdict of the records on a claim, at the setting that comes nearest to the paper's: the largest measured."""
    own = [record for record in records if record.experiment == claim.experiment]
    groups = _settings(claim, own)
    for group in groups:
        ours, by_baseline = MEASURES[claim.measure](claim, group)
        if claim.measure in COMPARING:
            found = Judgement(claim, "undecided", "", None, by_baseline)
            name = found.strongest if claim.judged == "strongest" else found.naive
            ours = by_baseline[name] if name else None
        if ours is not None:
            verdict, words = _verdict(claim, ours, group)
            return Judgement(claim, verdict, words, ours, by_baseline, tuple(group))
    if groups and claim.measure == "exponent":
        return Judgement(claim, "undecided", "the lengths measured do not tell", records=tuple(groups[0]))
    return Judgement(claim, "not run", _why_not(claim, own))


def _verdict(claim: Claim, ours: Interval, group: Sequence[Record]) -> tuple[Verdict, str]:
    """From the interval alone, never from its middle."""
    if lacking := _lacking(claim, group):
        return "undecided", lacking
    bounds = {"above": claim.above, "at most": claim.at_most}
    wanted = " and ".join(f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None)
    least = -math.inf if claim.above is None else claim.above
    most = math.inf if claim.at_most is None else claim.at_most
    if least < ours.low and ours.high <= most:
        return "supported", f"the whole interval is {wanted}"
    if ours.high <= least or most < ours.low:
        return "not supported", f"no part of the interval is {wanted}"
    return "undecided", f"only a part of the interval is {wanted}"


def _lacking(claim: Claim, group: Sequence[Record]) -> str:
    """Why no number of these records decides; nothing where one does."""
    if claim.from_size and _rank(group[0]) < list(SIZES).index(claim.from_size):
        return f"only {claim.from_size} and larger can decide"
    if claim.measure == "loss" and len(seeds_of(claim, group)) < 2:
        return "one seed does not tell how far others would lie apart"
    if claim.measure == "accuracy" and not tasks_of(group) <= TABLE_3:
        return f"only tasks of Table 3 can decide, not {', '.join(sorted(tasks_of(group)))}"
    return ""


def seeds_of(claim: Claim, group: Sequence[Record]) -> set[int]:
    """Those that the system and a baseline were trained with."""
    own = {record.cell.seed for record in group if record.cell.system == claim.system}
    return own & {record.cell.seed for record in group if record.cell.system in claim.against}


def tasks_of(group: Sequence[Record]) -> set[str]:
    """What the models were asked: where some of it is of Table 3, that alone counts."""
    asked = {str(record.cell.task) for record in group}
    return asked & TABLE_3 or asked


def _why_not(claim: Claim, records: Sequence[Record]) -> str:
    """Which command would change that, and what became of those that were tried."""
    failed = [one for one in records if one.status != "ok" and one.cell.system in (claim.system, *claim.against)]
    tried = [f"{one.cell.label}: {one.status}, {shortened(str(one.reason))}" for one in failed[:1]]
    return "; ".join([*tried, f"{claim.command} makes the records"])


# ---- settings: records that may be compared ------------------------------------------------------------------------


def _settings(claim: Claim, records: Sequence[Record]) -> list[list[Record]]:
    """The ok records of each setting, the one nearest to the paper's first: with baselines, as it is, large, long."""
    groups: dict[Setting, list[Record]] = {}
    for record in records:
        if record.status == "ok" and _kind(claim, record) in (claim.system, *claim.against):
            groups.setdefault(_setting(claim, record), []).append(record)
    return sorted(groups.values(), key=lambda group: _nearness(claim, group), reverse=True)


def _setting(claim: Claim, record: Record) -> Setting:
    """What records that are compared agree in."""
    cell = replace(record.cell, system="", chunk_size=None, backend="auto", form="auto")
    if claim.measure == "over_batch":
        cell = replace(cell, batch_size=0)
    if claim.measure == "loss":
        cell = replace(cell, seed=0, l_max=None)
    if claim.measure == "accuracy":
        cell = replace(cell, task=None, checkpoint=None, weights=None)
    return record.machine, cell


def _nearness(claim: Claim, group: Sequence[Record]) -> tuple[Any, ...]:
    first, others = group[0].cell, {record.cell.system for record in group} - {claim.system}
    as_it_is = first.quantize == "none" and not first.compile
    compared, tokens = len(others) > 1 or claim.against == tuple(others), first.learning.tokens if first.learning else 0
    return compared, as_it_is, _rank(group[0]), tokens, first.seq_len, first.batch_size


def _rank(record: Record) -> int:
    """The place of the size among all, -1 for what has none."""
    return list(SIZES).index(record.cell.size) if record.cell.size in SIZES else -1


# ---- measures: what is computed from the records of a setting ------------------------------------------------------

Found = tuple[Interval | None, dict[str, Interval]]  # of the system itself, and of or over each baseline


def _advantage(claim: Claim, group: Sequence[Record]) -> Found:
    """Over each baseline; the interval spans the far ends of both sides."""
    mine, theirs = _by_system(claim, group, lambda record: _positive(record, claim.metric))
    if mine is None:
        return None, {}
    if claim.metric in MORE_IS_BETTER:
        return None, {name: ratio(mine, other) for name, other in theirs.items()}
    return None, {name: ratio(other, mine) for name, other in theirs.items()}


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


def _accuracy(claim: Claim, group: Sequence[Record]) -> Found:
    """Points between the mean accuracies over the tasks that both did, their documents in pairs."""
    answers: dict[str, dict[str, dict[Any, float]]] = {}
    counted = tasks_of(group)
    for record in (one for one in group if str(one.cell.task) in counted):
        if str(record.cell.num_fewshot) == claim.metric:
            found = {one["doc"]: 100.0 * one["acc"] for one in record.notes.get("documents", [])}
            answers.setdefault(_kind(claim, record), {})[str(record.cell.task)] = found
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
TUNED = ("advantage", "saving")  # where one baseline computes what another does, in less
COMPARING = (*TUNED, "loss", "accuracy")


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


def _kind(claim: Claim, record: Record) -> str:
    """The system; of a checkpoint, which has a name too, the one that it is of."""
    return record.cell.system.partition(":")[0] if claim.measure == "accuracy" else record.cell.system
