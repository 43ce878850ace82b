"""The table of ours / peer: other projects' models beside the systems of ours that compute the same."""

from collections.abc import Sequence
from typing import Any

from models.catalogue import peer_of
from retbench.record import Record
from retbench.report.frame import GROUP, rows, to_frame
from retbench.report.inference_tables import no_number
from retbench.report.numbers import ratio, significant, with_interval
from retbench.report.tables import Column, Entry, Table

Row = dict[str, Any]

CELL = (
    Column("system", "peer", justify="left"),
    Column("twin", "ours", justify="left", detail="page"),
    Column("size", "size", justify="left"),
    Column("batch_size", "batch", justify="left"),
    Column("seq_len", "length", justify="left"),
)
RATIOS = (
    Column("tpot_ms_ours", "TPOT ms\nours", "ms"),
    Column("tpot_ms_peer", "TPOT ms\npeer", "ms"),
    Column("tpot_ratio", "TPOT\nours / peer", "ratio"),
    Column("tpot_ratio_low", "its low end", "ratio", detail="data"),
    Column("tpot_ratio_high", "its high end", "ratio", detail="data"),
    Column("peak_memory_ratio", "peak\nours / peer", "ratio"),
    Column("ttft_ratio", "TTFT\nours / peer", "ratio"),
)


def peer_tables(records: Sequence[Record]) -> list[Table]:
    """One table with a row for every cell of a peer; none where no peer was asked for."""
    found = rows(to_frame(records))
    cells = {(row["system"], *(row[name] for name in GROUP)): row for row in found}
    body = []
    for row in found:
        if peer := peer_of(row["system"]):
            row = {**row, "twin": peer.twin}
            ours = cells.get((peer.twin, *(row[name] for name in GROUP)))
            words = (Entry(row[column.name], str(row[column.name])) for column in CELL)
            body.append((*words, *_ratios(ours, row)))
    return [_table(body, records)] if body else []


def _table(body: list[tuple[Entry, ...]], records: Sequence[Record]) -> Table:
    return Table(
        name="peers",
        title="Ours / peer, same weights and function; below 1: ours is faster or smaller",
        columns=(*CELL, *RATIOS),
        rows=tuple(body),
        footnotes=(
            "± spans the far ends of the intervals of both sides; in the other tables a peer that is a Transformer is "
            "a baseline like any: the fastest is the fastest of all",
            *dict.fromkeys(_remarks(record) for record in records if "peer" in record.notes),
        ),
        section=("size", "batch_size", "seq_len"),
    )


def _ratios(ours: Row | None, peer: Row) -> tuple[Entry, ...]:
    """The entries under RATIOS."""
    tpot = _quotient(ours, peer, "tpot_ms", "tpot_ms")
    low = _quotient(ours, peer, "tpot_ms_low", "tpot_ms_high")
    high = _quotient(ours, peer, "tpot_ms_high", "tpot_ms_low")
    others = (_quotient(ours, peer, name, name) for name in ("peak_memory_bytes", "ttft_ms"))
    return (
        _time(ours),
        _time(peer),
        Entry(tpot, with_interval(tpot, low, high)),
        Entry(low, ratio(low)),
        Entry(high, ratio(high)),
        *(Entry(value, ratio(value)) for value in others),
    )


def _time(row: Row | None) -> Entry:
    if row is None:
        return Entry(None, "not measured")
    return Entry(row["tpot_ms"], significant(row["tpot_ms"])) if row["tpot_ms"] is not None else no_number(row)


def _quotient(ours: Row | None, peer: Row, above: str, below: str) -> float | None:
    return ours[above] / peer[below] if ours and ours[above] and peer[below] else None


def _remarks(record: Record) -> str:
    """What was measured under a peer's name."""
    notes = record.notes
    stubs = f", stubs of {' and '.join(notes['stubs'])}" if notes["stubs"] else ""
    return (
        f"{record.cell.system}: {notes['peer']}{stubs}; twin {notes['twin']}, logits equal within "
        f"{notes['logits_error_std']:.0e} std; decode {record.cell.form}, prefill {notes['prefill']}"
    )
