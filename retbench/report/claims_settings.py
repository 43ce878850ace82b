"""Which records may be compared for a claim: those of one setting, the setting nearest to the paper's first."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from models.sizes import SIZES
from retbench.evaluate.tasks import TASKS
from retbench.record import Record
from retbench.report.claims import Claim

Setting = tuple[Any, ...]

TABLE_3 = {task.name for task in TASKS}


def settings(claim: Claim, records: Sequence[Record]) -> list[list[Record]]:
    """The ok records of each setting, the one nearest to the paper's first: with baselines, as it is, large, long."""
    groups: dict[Setting, list[Record]] = {}
    for record in records:
        if record.status == "ok" and kind(claim, record) in (claim.system, *claim.against):
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
    compared = len(others) > 1 or claim.against == tuple(others)
    if claim.judged == "each":
        compared = others >= set(claim.against)
    tokens = first.learning.tokens if first.learning else 0
    return compared, as_it_is, rank(group[0]), tokens, first.seq_len, first.batch_size


def rank(record: Record) -> int:
    """The place of the size among all, -1 for what has none."""
    return list(SIZES).index(record.cell.size) if record.cell.size in SIZES else -1


def tasks_of(group: Sequence[Record]) -> set[str]:
    """What the models were asked: where some of it is of Table 3, that alone counts."""
    asked = {str(record.cell.task) for record in group}
    return asked & TABLE_3 or asked


def kind(claim: Claim, record: Record) -> str:
    """The system; of a checkpoint, which has a name too, the one that it is of."""
    return record.cell.system.partition(":")[0] if claim.measure == "accuracy" else record.cell.system
