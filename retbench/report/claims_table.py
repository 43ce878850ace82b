"""The claims ledger as a table: claim, our value with its interval, both baselines, the verdict and its reason."""

from collections.abc import Callable, Sequence

from retbench.report.claims import Measure
from retbench.report.claims_measures import seeds_of
from retbench.report.claims_settings import tasks_of
from retbench.report.commands import command_of
from retbench.report.conditions import disturbance_words, hardware_words, measured_words, version_words
from retbench.report.exhibit import Exhibit
from retbench.report.numbers import ABSENT, ratio, significant
from retbench.report.tables import Column, Entry, Table
from retbench.report.verdicts import Judgement
from retbench.spec import Cell
from retbench.statistics import Interval

COLUMNS = (
    Column("claim", "claim", justify="left"),
    Column("paper", "paper", justify="left"),
    Column("ours", "measured", justify="left"),
    Column("ours_low", "its lower end", detail="data"),
    Column("ours_high", "its upper end", detail="data"),
    Column("verdict", "verdict here", justify="left"),
    Column("strongest", "strongest baseline", justify="left", detail="page"),
    Column("strongest_value", "its number", detail="data"),
    Column("naive", "naive baseline", justify="left", detail="page"),
    Column("naive_value", "its number", detail="data"),
    Column("says", "what the paper says", justify="left", detail="data"),
    Column("where", "where", justify="left", detail="data"),
    Column("setting", "the paper's setting", justify="left", detail="data"),
    Column("conditions", "measured at", justify="left", detail="data"),
    Column("reason", "reason", justify="left", detail="data"),
    Column("notes", "notes", justify="left", detail="data"),
    Column("command", "command", justify="left", detail="data"),
)


def claims_table(judgements: Sequence[Judgement], exhibits: Sequence[Exhibit] = ()) -> Table:
    """A row a claim, and a footnote for each with its words, its reason and what the paper leaves open.

    ``exhibits`` are those whose records decide: they tell which commands make just these.
    """
    counts = {verdict: sum(one.verdict == verdict for one in judgements) for verdict in _VERDICTS}
    records = [record for one in judgements for record in one.records]
    notes = (
        "the verdict is of what was measured here: supported and not supported need the whole interval on one side, "
        "else it is undecided; where a claim compares, measured is against the strongest baseline, or against the one "
        "that the claim names, or, where each baseline must be worse, against the one that decides",
        *(f"{one.claim.name}: {_words(one)}" for one in judgements),
        *((f"measured on {measured_words(records)}", *disturbance_words(records)) if records else ()),
    )
    title = "The paper's claims: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    return Table("claims", title, COLUMNS, tuple(_row(one, _command(one, exhibits)) for one in judgements), notes)


_VERDICTS = ("supported", "not supported", "undecided", "not run")


def _row(one: Judgement, command: str) -> tuple[Entry, ...]:
    claim, ours = one.claim, one.ours
    naive, strongest = (_baseline(one, name) for name in (one.naive, one.strongest))
    plain = (
        claim.says,
        claim.where,
        claim.setting,
        _conditions(one),
        one.reason,
        "; ".join(claim.notes),
        command,
    )
    return (
        Entry(claim.name, claim.name),
        Entry(claim.paper, claim.paper),
        Entry(ours.value, interval_words(claim.measure, ours)) if ours else Entry(None, one.verdict),
        Entry(ours.low if ours else None, ABSENT),
        Entry(ours.high if ours else None, ABSENT),
        Entry(one.verdict, one.verdict, failed=one.verdict == "not supported"),
        *strongest,
        *naive,
        *(Entry(text, text) for text in plain),
    )


def _command(one: Judgement, exhibits: Sequence[Exhibit]) -> str:
    """What makes the records that decide, several commands in turn; without any the claim's own."""
    shown = next((exhibit for exhibit in exhibits if exhibit.experiment == one.claim.experiment), None)
    return " && ".join(command_of(shown, one.records).splitlines()) if shown and one.records else one.claim.command


def _baseline(one: Judgement, name: str | None) -> tuple[Entry, Entry]:
    """A baseline's number and name: over it where the claim compares, else its own."""
    if name is None or one.by_baseline is None:
        return Entry(None, "not run" if one.claim.against else ABSENT), Entry(None, ABSENT)
    found = one.by_baseline[name]
    return Entry(name, f"{_NUMBERS[one.claim.measure](found.value)} {name}"), Entry(found.value, ABSENT)


def _words(one: Judgement) -> str:
    """The claim in full, why it was decided so, under which conditions, and what the paper leaves open."""
    claim, at = one.claim, _conditions(one)
    parts = [
        f"{claim.says} ({claim.where}; {claim.setting})",
        f"{one.verdict}: {_judged(one)}{one.reason}{f', {at}' if at else ''}",
        *claim.notes,
    ]
    return "; ".join(parts)


def _judged(one: Judgement) -> str:
    """What the number that decides is of."""
    if one.ours is None:
        return ""
    number = interval_words(one.claim.measure, one.ours)
    return f"{number} against {one.decided_by}, " if one.decided_by else f"{number}, "


def _conditions(one: Judgement) -> str:
    """Where it was measured, and that it is not the paper's setting."""
    if not one.records:
        return ""
    cell, batches = one.records[0].cell, sorted({record.cell.batch_size for record in one.records})
    batch = " to ".join(str(size) for size in dict.fromkeys((batches[0], batches[-1])))
    models = dict.fromkeys(record.cell.system for record in one.records)
    what = " and ".join(models) if one.claim.measure == "accuracy" else cell.size
    versions = version_words(one.records)
    where = f"{hardware_words(one.records)}, machine {one.records[0].machine}{versions and f', {versions}'}"
    return f"at {what}, batch {batch}, length {cell.seq_len}{_differing(cell)}{_learnt(one)}, {where}"


def _differing(cell: Cell) -> str:
    """What of the way it was measured is not the plain one, and the chunk size where there is one."""
    parts = {
        cell.training.words if cell.training else "": cell.training is not None,
        f"chunks of {cell.chunk_size}": cell.chunk_size is not None,
        f"{cell.quantize} weights": cell.quantize != "none",
        "compiled": cell.compile,
        f"a limit of {cell.mem_limit_bytes} bytes": cell.mem_limit_bytes is not None,
    }
    return "".join(f", {words}" for words, holds in parts.items() if words and holds)


def _learnt(one: Judgement) -> str:
    """How long models were trained and how often, or what they were asked."""
    learning = one.records[0].cell.learning
    if one.claim.measure == "accuracy":
        limit = one.records[0].cell.limit
        share = f", the first {limit} documents of each" if limit else ""
        return f", asked {', '.join(sorted(tasks_of(one.records)))}{share}"
    if learning is None:
        return ""
    seeds = len(seeds_of(one.claim, one.records, one.decided_by))
    return f", {learning.tokens:,} tokens, {seeds} seed{'s' * (seeds > 1)}"


def interval_words(measure: Measure, found: Interval) -> str:
    """A number of a measure with its interval, the number alone where it was counted."""
    number = _NUMBERS[measure]
    if found.low == found.high:
        return number(found.value)
    return f"{number(found.value)} ({number(found.low)} to {number(found.high)})"


def _times(value: float) -> str:
    return f"{ratio(value)}×"


def _signed(value: float) -> str:
    return f"{'+' if value >= 0 else '-'}{significant(abs(value))}"


_NUMBERS: dict[Measure, Callable[[float], str]] = {
    "advantage": _times,
    "saving": lambda value: f"{100 * value:.3g} %",
    "over_length": _times,
    "over_batch": _times,
    "exponent": lambda value: f"N^{value:.2f}",
    "value": lambda value: f"{value:.2g}",
    "loss": lambda value: f"{_signed(value)} nats",
    "accuracy": lambda value: f"{_signed(value)} points",
}
