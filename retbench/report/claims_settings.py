"""Which records may be compared for a claim: those of one setting, the setting nearest to the paper's first."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

from models.sizes import SIZES, rank
from retbench.evaluate.tasks import TASKS
from retbench.record import Record
from retbench.report.accuracy_tables import checkpoint_of
from retbench.report.claims import Claim
from retbench.spec import Training

Setting = tuple[Any, ...]

TABLE_3 = {task.name for task in TASKS}


def settings(claim: Claim, records: Sequence[Record]) -> list[list[Record]]:
    """The ok records of each setting, the one nearest to the paper's first: with baselines, as it is, large, long.

    Of checkpoints, which are compared in pairs: of all documents, many tasks, the last evaluated. Otherwise the order
    of the records decides nothing: what is measured again stays in its place.
    """
    groups: dict[Setting, list[Record]] = {}
    for record in records:
        asked = claim.measure != "accuracy" or str(record.cell.num_fewshot) == claim.metric
        if record.status == "ok" and kind(claim, record) in (claim.system, *claim.against) and asked:
            groups.setdefault(_setting(claim, record), []).append(record)
    parts = [part for setting in sorted(groups, key=repr) for part in _parts(claim, groups[setting])]
    return sorted(parts, key=lambda part: _nearness(claim, part), reverse=True)


def _setting(claim: Claim, record: Record) -> Setting:
    """What records that are compared agree in."""
    cell = record.cell.setting
    if claim.measure == "over_batch":
        cell = replace(cell, batch_size=0)
    if claim.measure == "loss":
        cell = replace(cell, seed=0, l_max=None)
    if claim.measure == "accuracy":
        cell = replace(cell, task=None, checkpoint=None, weights=None)
    return record.machine, cell


def _parts(claim: Claim, group: list[Record]) -> list[list[Record]]:
    """Records that agree in a setting, those of the system first: chunk sizes apart, checkpoints in pairs.

    So none stands for what another was asked, or for how fast another is.
    """
    mine = [record for record in group if kind(claim, record) == claim.system]
    theirs = [record for record in group if kind(claim, record) != claim.system]
    if claim.measure == "accuracy":
        return [[*own, *other] for own in _apart(mine, checkpoint_of) for other in _apart(theirs, checkpoint_of)]
    chunks = _apart(mine, lambda record: record.cell.chunk_size)
    return [[*own, *(one for one in theirs if one.cell.chunk_size in (None, own[0].cell.chunk_size))] for own in chunks]


def _apart(records: Sequence[Record], of: Callable[[Record], Hashable]) -> list[list[Record]]:
    """Records by what ``of`` says of them, first those that the last record of all is among."""
    found: dict[Hashable, list[Record]] = {}
    for record in reversed(records):
        found.setdefault(of(record), []).append(record)
    return [own[::-1] for own in found.values()]


def _nearness(claim: Claim, group: Sequence[Record]) -> tuple[Any, ...]:
    first, others = group[0].cell, {kind(claim, record) for record in group} - {claim.system}
    chunk, plain = first.chunk_size, first.training in (None, Training())
    if claim.measure == "accuracy":
        tasks = tasks_of(group)
        return first.limit is None, len(tasks & TABLE_3), len(tasks), first.limit or 0, first.seq_len
    as_it_is = first.quantize == "none" and not first.compile and first.mem_limit_bytes is None
    compared = len(others) > 1 or claim.against == tuple(others)
    if claim.judged == "each":
        compared = others >= set(claim.against)
    tokens = first.learning.tokens if first.learning else 0
    large = not too_small(claim, group[0]), rank(first.size), tokens, first.seq_len
    batch_size = max(record.cell.batch_size for record in group)
    return compared, as_it_is, *large, plain, chunk == claim.chunk_size, chunk is None, batch_size, chunk or 0


def too_small(claim: Claim, record: Record) -> str:
    """Why a record of this size and length decides nothing; empty where it can."""
    if claim.from_size and rank(record.cell.size) < list(SIZES).index(claim.from_size):
        return f"only {claim.from_size} and larger can decide"
    if claim.from_length and record.cell.seq_len < claim.from_length:
        return f"only length {claim.from_length} and more can decide"
    return ""


def tasks_of(group: Sequence[Record]) -> set[str]:
    """What every checkpoint was asked: where some of it is of Table 3, that alone counts."""
    by_checkpoint: dict[Hashable, set[str]] = {}
    for record in group:
        by_checkpoint.setdefault(checkpoint_of(record), set()).add(str(record.cell.task))
    asked = set.intersection(*by_checkpoint.values())
    return asked & TABLE_3 or asked


def kind(claim: Claim, record: Record) -> str:
    """The system; of a checkpoint, which has a name too, the one that it is of."""
    return record.cell.system.partition(":")[0] if claim.measure == "accuracy" else record.cell.system
