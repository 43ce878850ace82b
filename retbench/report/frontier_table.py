"""The table of ``retbench inference --frontier``: the largest batch and the longest length that fit, and the plan's."""

from collections.abc import Sequence

from retbench.quantities import format_bytes
from retbench.record import Record
from retbench.report.conditions import measured_words
from retbench.report.numbers import ABSENT, length
from retbench.report.tables import Column, Entry, Table
from retbench.spec import MAX_SEQ_LEN

SECTION = {"size": "size", "dtype": "dtype", "seq_len": "length", "batch_size": "batch"}
FOUND = {"largest_batch_size": "batch", "longest_seq_len": "length"}


def frontier_table(records: Sequence[Record]) -> Table:
    """A row a cell: the largest batch at its length and the longest length at its batch, each with the plan's."""
    columns = (
        Column("system", "system", justify="left"),
        *(Column(name, head, justify="left") for name, head in SECTION.items()),
        Column("mem_limit_bytes", "memory", "bytes"),
        *(
            column
            for name, word in FOUND.items()
            for column in (
                Column(name, f"largest\n{word}" if word == "batch" else f"longest\n{word}"),
                Column(f"planned_{name}", "plan\n(model)"),
                Column(f"{name}_error", "plan -\nfound"),
            )
        ),
        *(Column(name, name, justify="left", detail="data") for name in ("status", "reason")),
    )
    notes = (
        "found by bisection, to 0.4 %, on the device itself: one decode step with a full cache or state; largest batch "
        f"at the length, longest length at the batch of the section, up to {length(MAX_SEQ_LEN)}",
        *(f"{record.cell.label}: {record.status}, {record.reason}" for record in records if record.status != "ok"),
        *((f"measured on {measured_words(records)}",) if records else ()),
    )
    rows = tuple(_row(record) for record in records)
    return Table("frontier", "How much fits into the memory", columns, rows, notes, tuple(SECTION))


def _row(record: Record) -> tuple[Entry, ...]:
    cell, limit = record.cell, record.cell.mem_limit_bytes
    words = [Entry(getattr(cell, name), str(getattr(cell, name))) for name in ("system", *SECTION)]
    entries = [*words, Entry(limit, ABSENT if limit is None else format_bytes(limit))]
    for name in FOUND:
        found, planned = record.metrics.get(name), record.predicted.get(name)
        error = (planned - found) / found if found and planned is not None else None
        text = record.status if record.status != "ok" else ABSENT
        entries += [
            Entry(found, text if found is None else _count(found), failed=found is None),
            Entry(planned, ABSENT if planned is None else _count(planned)),
            Entry(error, ABSENT if error is None else f"{100 * error:+.1f}%"),
        ]
    return (*entries, Entry(record.status, record.status), Entry(record.reason, record.reason or ABSENT))


def _count(value: int) -> str:
    return f"{length(value)}+" if value == MAX_SEQ_LEN else f"{value:,}"
