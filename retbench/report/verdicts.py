"""What stored records say of a claim: a number with its interval, and a verdict from that interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from models.sizes import SIZES
from retbench.record import Record
from retbench.report.claims import COMPARING, TUNED, Claim
from retbench.report.claims_measures import MEASURES
from retbench.report.claims_settings import TABLE_3, rank, settings, tasks_of
from retbench.report.tables import shortened
from retbench.statistics import Interval

Verdict = Literal["supported", "not supported", "undecided", "not run"]


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


def judge(claim: Claim, records: Sequence[Record]) -> Judgement:
    """The verdict of the records on a claim, at the setting that comes nearest to the paper's: the largest measured."""
    own = [record for record in records if record.experiment == claim.experiment]
    groups = settings(claim, own)
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
    if claim.from_size and rank(group[0]) < list(SIZES).index(claim.from_size):
        return f"only {claim.from_size} and larger can decide"
    if claim.measure == "loss" and len(seeds_of(claim, group)) < 2:
        return "one seed does not tell how far others would lie apart"
    if claim.measure == "accuracy" and not tasks_of(group) <= TABLE_3:
        return f"only tasks of Table 3 can decide, not {', '.join(sorted(tasks_of(group)))}"
    return ""


def _why_not(claim: Claim, records: Sequence[Record]) -> str:
    """Which command would change that, and what became of those that were tried."""
    failed = [one for one in records if one.status != "ok" and one.cell.system in (claim.system, *claim.against)]
    tried = [f"{one.cell.label}: {one.status}, {shortened(str(one.reason))}" for one in failed[:1]]
    return "; ".join([*tried, f"{claim.command} makes the records"])


def seeds_of(claim: Claim, group: Sequence[Record]) -> set[int]:
    """Those that the system and a baseline were trained with."""
    own = {record.cell.seed for record in group if record.cell.system == claim.system}
    return own & {record.cell.seed for record in group if record.cell.system in claim.against}
