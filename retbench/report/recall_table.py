"""The table of retbench recall: the share of queries answered over the number of key-value pairs."""

from collections.abc import Mapping, Sequence
from statistics import mean

from retbench.record import Record
from retbench.report.conditions import measured_words
from retbench.report.numbers import ABSENT, significant
from retbench.report.tables import Column, Entry, Table, shortened
from retbench.report.trained import longest_setting

NO_BETTER = 1.2  # times chance, at most: a guess
HOLDS = 0.9  # of the queries: a system that answers as many is said to hold so many pairs

Accuracies = Mapping[str, Mapping[int, Sequence[float]]]  # system -> pairs -> of each seed


def main_setting(records: Sequence[Record]) -> list[Record]:
    """Those of the setting that was trained longest."""
    return longest_setting([record for record in records if record.cell.recall])


def accuracies(records: Sequence[Record]) -> Accuracies:
    """Of the runs that came to their end, systems in the order of the records."""
    found: dict[str, dict[int, list[float]]] = {}
    for record in records:
        if record.status == "ok" and record.cell.recall:
            of_system = found.setdefault(record.cell.system, {})
            for pairs in record.cell.recall.pairs:
                of_system.setdefault(pairs, []).append(record.metrics[f"accuracy_at_{pairs}"])
    return found


def recall_table(records: Sequence[Record]) -> Table:
    """A row a system, the means over its seeds; chance in the last row."""
    shown = main_setting(records)
    title = "Associative recall: the share of queries answered, by key-value pairs"
    if not shown or shown[0].cell.recall is None:
        return Table("recall", title, (Column("system", "system"),), (), ("no records",))
    numbers = shown[0].cell.recall.pairs
    columns = [Column("system", "system", justify="left")]
    for pairs in numbers:
        columns += [
            Column(f"accuracy_at_{pairs}", f"{pairs} pairs", "share"),
            Column(f"accuracy_at_{pairs}_spread", f"{pairs} pairs, half the range", "share", detail="data"),
        ]
    columns += [
        Column("holds", "holds", "pairs"),
        Column("state_bytes", "state", "bytes"),
        Column("parameters", "parameters", "parameters", detail="page"),
        Column("seeds", "seeds", detail="page"),
    ]
    found = accuracies(shown)
    failed = [record for record in shown if record.status != "ok"]
    rows = [_row(system, found[system], next(r for r in shown if r.cell.system == system and r.status == "ok"))
            for system in found]  # fmt: skip
    rows += [_failed_row(record, len(columns)) for record in failed if record.cell.system not in found]
    rows.append(_chance_row(numbers))
    return Table("recall", title, tuple(columns), tuple(rows), (*_notes(shown, found), *_failures(failed)))


def _row(system: str, of_system: Mapping[int, Sequence[float]], record: Record) -> tuple[Entry, ...]:
    cells = [Entry(system, system)]
    for shares in of_system.values():
        spread = (max(shares) - min(shares)) / 2
        words = f"{mean(shares):.2f}" + f" ±{spread:.2f}" * (len(shares) > 1)
        cells += [Entry(mean(shares), words), Entry(spread, f"{spread:.3f}")]
    held = holds(of_system)
    state, parameters = record.metrics["state_bytes"], record.metrics["parameters"]
    runs = len(next(iter(of_system.values())))
    return (
        *cells,
        Entry(held, str(held) if held else ABSENT),
        Entry(state, f"{state / 1024:.0f} KiB"),
        Entry(parameters, significant(parameters)),
        Entry(runs, str(runs)),
    )


def holds(of_system: Mapping[int, Sequence[float]]) -> int | None:
    """The most pairs of which, and of all fewer ones, ``HOLDS`` of the queries are answered; None for none."""
    held = None
    for pairs, shares in sorted(of_system.items()):
        if mean(shares) < HOLDS:
            break
        held = pairs
    return held


def _failed_row(record: Record, width: int) -> tuple[Entry, ...]:
    system = Entry(record.cell.system, record.cell.system)
    return system, Entry(None, record.status, failed=True), *(Entry(None, ABSENT),) * (width - 2)


def _chance_row(numbers: Sequence[int]) -> tuple[Entry, ...]:
    """Who knows the values of a sequence but not whose they are."""
    pairs = [entry for number in numbers for entry in (Entry(1 / number, f"{1 / number:.2f}"), Entry(None, ABSENT))]
    return Entry("chance", "chance, 1 / pairs"), *pairs, *(Entry(None, ABSENT),) * 4


def _notes(shown: Sequence[Record], found: Accuracies) -> tuple[str, ...]:
    cell = shown[0].cell
    assert cell.recall is not None, "the records of this table are of recall"
    recall = cell.recall
    return (
        "not in the paper: the task is multi-query associative recall (Arora et al. 2023, arXiv 2312.04927); keys with "
        f"their values, then all keys again in another order; {cell.vocab_size} ids, half of them keys",
        f"{cell.size} models trained from scratch on {recall.tokens} generated tokens, numbers of pairs joining one "
        f"after the other, {recall.steps} steps of {recall.step_tokens}, learning rate {recall.learning_rate:g} for "
        "every system; the loss is that of the queries alone",
        f"mean and half the range over seeds, of {shown[0].notes.get('test_queries')} queries a column that no run was "
        f"trained on; holds: the most pairs with {HOLDS:.0%} answered; state: of one sequence at the most pairs",
        *_attention_words(found),
        *_unbound_words(found),
        f"measured on {measured_words(shown)}",
    )


def _attention_words(found: Accuracies) -> tuple[str, ...]:
    """A warning where attention, which can look every pair up, has not learnt to: the others say nothing then."""
    of_attention = [of_system for system, of_system in found.items() if system.startswith("transformer")]
    if not of_attention or any(holds(of_system) == max(of_system) for of_system in of_attention):
        return ()
    return (
        "UNDERTRAINED: attention does not hold all pairs, so these budgets do not tell systems apart; raise --tokens",
    )


def _unbound_words(found: Accuracies) -> tuple[str, ...]:
    """Names the systems that guess even among the fewest pairs: it is no lack of state that stops them."""
    guessing = [name for name, shares in found.items() if mean(shares[min(shares)]) < NO_BETTER / min(shares)]
    if not guessing:
        return ()
    return (
        f"{', '.join(guessing)}: guessing even among the fewest pairs, so these runs have not learnt which value "
        "belongs to which key; they say nothing about how much the state holds",
    )


def _failures(failed: Sequence[Record]) -> tuple[str, ...]:
    return tuple(f"{r.cell.system}, seed {r.cell.seed}: {r.status}, {shortened(r.reason or '')}" for r in failed)
