"""What stored records say of a claim: a number with its interval, and a verdict from that interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from retbench.record import Record
from retbench.report.claims import COMPARING, TUNED, Claim
from retbench.report.claims_measures import MEASURES, seeds_of
from retbench.report.claims_settings import TABLE_3, kind, settings, tasks_of, too_small
from retbench.report.tables import shortened
from retbench.statistics import Interval

Verdict = Literal["not supported", "undecided", "supported", "not run"]  # the worst first


@dataclass(frozen=True)
class Judgement:
    """What was found: the number that decides, the same of or over the baselines, and the verdict with its reason."""

    claim: Claim
    verdict: Verdict
    reason: str
    ours: Interval | None = None
    by_baseline: Mapping[str, Interval] | None = None
    records: tuple[Record, ...] = ()  # that the number rests on
    decided_by: str | None = None  # the baseline whose number decides

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


def judge(claim: Claim, records: Sequence[Record]) -> Judgement:
    """The verdict of the records on a claim, at the setting that comes nearest to the paper's: the largest measured."""
    own = [record for record in records if record.experiment == claim.experiment]
    groups = settings(claim, own)
    for group in groups:
        ours, by_baseline = MEASURES[claim.measure](claim, group)
        found = Judgement(claim, "undecided", "", ours, by_baseline, tuple(group))
        if claim.measure not in COMPARING:
            deciding = [found] if ours else []
        elif claim.judged == "each":
            deciding = [replace(found, ours=one, decided_by=name) for name, one in by_baseline.items()]
        else:
            name = found.strongest if claim.judged == "strongest" else found.naive
            deciding = [replace(found, ours=by_baseline[name], decided_by=name)] if name else []
        if deciding:
            return _worst([_decided(one) for one in deciding])
    if groups and claim.measure == "exponent":
        return Judgement(claim, "undecided", "the lengths measured do not tell", records=tuple(groups[0]))
    return Judgement(claim, "not run", _why_not(claim, own))


def _decided(one: Judgement) -> Judgement:
    """With the verdict that its number gives, where the records behind it may decide."""
    if lacking := _lacking(one):
        return replace(one, verdict="undecided", reason=lacking)
    verdict, reason = _verdict(one.claim, one.ours) if one.ours else (one.verdict, one.reason)
    return replace(one, verdict=verdict, reason=reason)


def _worst(found: Sequence[Judgement]) -> Judgement:
    """Of judgements by one baseline each; where each must be worse, those that are missing leave it undecided."""
    worst = min(found, key=lambda one: (get_args(Verdict).index(one.verdict), one.ours.low if one.ours else 0.0))
    if worst.claim.judged != "each" or worst.verdict == "not supported":
        return worst
    missing = [name for name in worst.claim.against if name not in (worst.by_baseline or {})]
    if missing:
        words = f"{' and '.join(missing)} {'were' if len(missing) > 1 else 'was'} not measured"
        reason = words if worst.verdict == "supported" else f"{worst.reason}; {words}"
        return replace(worst, verdict="undecided", reason=reason)
    return replace(worst, reason=f"{worst.reason}, of each baseline") if worst.verdict == "supported" else worst


def _verdict(claim: Claim, ours: Interval) -> tuple[Verdict, str]:
    """From the interval alone, never from its middle."""
    bounds = {"above": claim.above, "at most": claim.at_most}
    wanted = " and ".join(f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None)
    least = -math.inf if claim.above is None else claim.above
    most = math.inf if claim.at_most is None else claim.at_most
    if least < ours.low and ours.high <= most:
        return "supported", f"the whole interval is {wanted}"
    if ours.high <= least or most < ours.low:
        return "not supported", f"no part of the interval is {wanted}"
    return "undecided", f"only a part of the interval is {wanted}"


def _lacking(one: Judgement) -> str:
    """Why its number cannot decide; nothing where it can."""
    claim, group = one.claim, one.records
    if small := too_small(claim, group[0]):
        return small
    if claim.measure == "loss" and len(seeds_of(claim, group, one.decided_by)) < 2:
        return "one seed does not tell how far others would lie apart"
    return _unasked(tasks_of(group)) if claim.measure == "accuracy" else ""


def _unasked(tasks: set[str]) -> str:
    """What of Table 3 both checkpoints were not asked."""
    if not tasks <= TABLE_3:
        return f"only tasks of Table 3 can decide, not {', '.join(sorted(tasks))}"
    return "" if tasks == TABLE_3 else f"both were asked only {len(tasks)} of the {len(TABLE_3)} tasks of Table 3"


def _why_not(claim: Claim, records: Sequence[Record]) -> str:
    """Which command would change that, and what became of those that were tried."""
    failed = [one for one in records if one.status != "ok" and kind(claim, one) in (claim.system, *claim.against)]
    tried = [f"{one.cell.label}: {one.status}, {shortened(str(one.reason))}" for one in failed[:1]]
    return "; ".join([*tried, f"{claim.command} makes the records"])
