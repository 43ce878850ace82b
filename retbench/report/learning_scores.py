"""What the records of learning experiments say: which belong together, losses, paired differences, n-grams beaten."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from retbench.learning.run import MOST_COUNTED, ORDERS
from retbench.record import Record
from retbench.report.trained import longest_setting
from retbench.spec import Learning
from retbench.statistics import Interval, crossed_interval

CHALLENGER = "retnet"
Pairs = Sequence[Sequence[float]]  # nats and tokens: of each document, say


def main_setting(records: Sequence[Record]) -> list[Record]:
    """Those of the setting that was trained longest."""
    return longest_setting([record for record in records if record.cell.learning])


def by_system(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The runs that came to their end by system, RetNet first, n-grams last, seeds in order; none where all failed."""
    found = {record.cell.system for record in records}
    names = [
        *sorted(found - set(ORDERS), key=lambda name: (name != CHALLENGER, name)),
        *(n for n in ORDERS if n in found),
    ]
    done = sorted((record for record in records if record.status == "ok"), key=lambda record: record.cell.seed)
    return {name: [record for record in done if record.cell.system == name] for name in names}


def learning_of(record: Record) -> Learning:
    if record.cell.learning is None:
        raise ValueError(f"{record.cell.label} was not trained from scratch")
    return record.cell.learning


def corpora_of(record: Record) -> list[str]:
    """What it was scored on, the corpus that it was trained on first."""
    learning = learning_of(record)
    return [learning.corpus, *learning.others]


def score_of(record: Record, corpus: str, how: str = "windows") -> Mapping[str, Any]:
    """Pairs of the ``documents`` and ``positions``, and ``bytes``; empty where it was not read so."""
    found: Mapping[str, Any] = record.notes["scores"][corpus].get(how, {})
    return found


def documents_of(record: Record, corpus: str) -> Pairs:
    """Nats and tokens of each scored document, read in windows."""
    found: Pairs = score_of(record, corpus)["documents"]
    return found


def in_domain(record: Record) -> Pairs:
    """Nats and tokens of each held-out document of the corpus that was trained on."""
    return documents_of(record, learning_of(record).corpus)


def mean_loss(pairs: Pairs) -> float:
    """Nats a token."""
    return sum(nats for nats, _ in pairs) / sum(tokens for _, tokens in pairs)


def perplexity(pairs: Pairs) -> float:
    return math.exp(mean_loss(pairs))


def loss_of(record: Record) -> float:
    """In domain."""
    return mean_loss(in_domain(record))


def difference(runs: Sequence[Record], others: Sequence[Record], of: Callable[[Record], Pairs]) -> Interval | None:
    """Mean loss of ``runs`` minus that of ``others``, of equal seeds and documents; None where there are none.

    ``of`` gives nats and tokens of each document.
    """
    theirs = {record.cell.seed: record for record in others}
    both = [(of(record), of(theirs[record.cell.seed])) for record in runs if record.cell.seed in theirs]
    if not both:
        return None
    nats = [[one - other for (one, _), (other, _) in zip(*two, strict=True)] for two in both]
    return crossed_interval(nats, [tokens for _, tokens in both[0][0]])


def baseline_words(records: Sequence[Record]) -> tuple[str, ...]:
    """Whether every run is below the n-grams of its seed, which counted the tokens that it read."""
    notes = []
    for name in ORDERS:
        theirs = {one.cell.seed: loss_of(one) for one in by_system(records).get(name, [])}
        runs = [run for system, some in by_system(records).items() if system not in ORDERS for run in some]
        excess = [(run.cell, loss_of(run) - theirs[run.cell.seed]) for run in runs if run.cell.seed in theirs]
        above = [f"{cell.system} seed {cell.seed} (+{by:.3f} nats)" for cell, by in excess if by >= 0]
        if above:
            notes.append(f"NOT below the {name} in domain: {', '.join(above)}")
        elif excess:
            notes.append(f"all systems are below the {name} in domain")
    if notes:
        some = f", {MOST_COUNTED:,} at most" if learning_of(records[0]).tokens > MOST_COUNTED else ""
        notes.append(f"n-grams: of the tokens that the models of a seed read{some}, interpolated after Witten and Bell")
    return tuple(notes)
