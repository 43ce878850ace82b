"""The tables of a plan: what cells would need on a device, what would fit, a roofline time. All of it is a model."""

from collections.abc import Mapping, Sequence
from typing import Any

from retbench.report.numbers import ABSENT, length, significant
from retbench.report.tables import Column, Detail, Entry, Table
from retbench.spec import MAX_BATCH_SIZE, MAX_SEQ_LEN, Cell
from retbench.specifications import Specification

Row = dict[str, Any]
GB = 10**9
LEAST_SHOWN = 0.01  # GB
KINDS = {
    "weights_bytes": "weights",
    "state_bytes": "cache,\nstate",
    "gradients_bytes": "gra\N{SOFT HYPHEN}\ndients",
    "optimizer_bytes": "opti\N{SOFT HYPHEN}\nmizer",
    "activations_bytes": "activa\N{SOFT HYPHEN}\ntions",
}
SECTION = {"workload": "workload", "size": "size", "dtype": "dtype", "batch_size": "batch", "seq_len": "length"}
MOVED = {
    "decode": "decode moves its weights and its state once",
    "prefill": "prefill and training move what each operator reads and writes, as if no cache kept it",
}


def plan_rows(cells: Sequence[Cell], estimates: Sequence[Mapping[str, int]], device: Specification) -> list[Row]:
    """A row a cell: its setting, its needs, whether it fits, and how long it takes at the least; None for unknown."""
    return [_row(cell, estimate, device) for cell, estimate in zip(cells, estimates, strict=True)]


def _row(cell: Cell, estimate: Mapping[str, int], device: Specification) -> Row:
    work = ("parameters", "flops", "moved_bytes", "exchanged_bytes")
    names = (*work, *KINDS, "peak_memory_bytes", "longest_seq_len", "largest_batch_size")
    row: Row = {name: getattr(cell, name) for name in ("system", *SECTION)}
    row |= {
        "training": (cell.training.words or "plain") if cell.training else "",
        "device": device.name,
        "how": "model",
    }
    row |= {name: estimate.get(name) for name in names}
    if not estimate:
        return row | {"fits": None, "roofline_ms": None, "bound_by": None}
    memory_ms = 1e3 * estimate["moved_bytes"] / device.bytes_per_s
    compute_ms = 1e3 * estimate["flops"] / device.peak_flops_per_s(cell.dtype)
    return row | {
        "fits": estimate["peak_memory_bytes"] <= device.memory_bytes,
        "roofline_ms": max(memory_ms, compute_ms),
        "bound_by": "memory" if memory_ms >= compute_ms else "compute",
    }


def plan_tables(rows: Sequence[Row], device: Specification, problems: Sequence[str]) -> list[Table]:
    """Memory, with everything else for csv and json; then work, time and limits."""
    setting = _setting(rows)
    memory = (*_memory(rows), *_work(rows, "data"))
    work = _work(rows, "terminal")
    title = f"on {device.description} (model, not measured)"
    notes = (
        f"device: {device.memory_bytes / GB:g} GB, {device.bytes_per_s / 1e12:g} TB/s, dense "
        + ", ".join(f"{flops / 1e12:g} TFLOP/s in {dtype}" for dtype, flops in device.flops_per_s.items())
        + f" ({device.source})",
        "GB are 10^9 bytes; peak: of the tensors that are there together; what drivers, allocators and libraries take "
        "for themselves comes on top",
        *_rank_notes(rows),
        *problems,
    )
    work_notes = (
        "FLOPs: matrix products, attention (all pairs of positions), convolutions and FFTs; "
        + "; ".join(text for name, text in MOVED.items() if _moves_so(rows, name)),
        *(("exchanged: the tensors that ranks reduce or gather together, each whole and once",) * _any_ranks(rows)),
        "roofline: the longer of bytes / bandwidth (bound by memory) and FLOPs / peak (bound by compute)",
        f"longest, largest: that fit with all else as in the row, found to 0.4 %; up to {length(MAX_SEQ_LEN)} and "
        f"{MAX_BATCH_SIZE}; 0: not even one",
    )
    section = (*SECTION, *(column.name for column in setting if column.name == "training" and column.detail != "data"))
    return [
        Table("plan", f"Memory {title}", *_body(rows, (*setting, *memory)), notes, section),
        Table("work", f"Work and limits {title}", *_body(rows, (*setting, *work)), work_notes, section),
    ]


def _moves_so(rows: Sequence[Row], name: str) -> bool:
    return any((row["workload"] == "decode") == (name == "decode") for row in rows)


def _any_ranks(rows: Sequence[Row]) -> bool:
    return any(row["exchanged_bytes"] for row in rows)


def _rank_notes(rows: Sequence[Row]) -> tuple[str, ...]:
    note = (
        "several devices: bytes, FLOPs, batch and limits of one of them, parameters of the whole model; what FSDP "
        "gathers is among the activations"
    )
    return (note,) * _any_ranks(rows)


def _setting(rows: Sequence[Row]) -> list[Column]:
    detail: Detail = "terminal" if any(row["training"] for row in rows) else "data"
    return [
        Column("system", "system", justify="left"),
        *(Column(name, head, justify="left") for name, head in SECTION.items()),
        Column("training", "step", justify="left", detail=detail),
    ]


def _memory(rows: Sequence[Row]) -> list[Column]:
    """The kinds of bytes; what is nowhere there is left to csv and json."""
    kinds = [
        Column(name, f"{head}\nGB", "bytes", detail="terminal" if any(row[name] for row in rows) else "data")
        for name, head in KINDS.items()
    ]
    return [
        Column("parameters", "para\N{SOFT HYPHEN}\nmeters"),
        *kinds,
        Column("peak_memory_bytes", "peak\nGB", "bytes"),
        Column("fits", "fits", justify="left"),
    ]


def _work(rows: Sequence[Row], detail: Detail) -> list[Column]:
    return [
        Column("flops", "TFLOP", "FLOP", detail=detail),
        Column("moved_bytes", "moved\nGB", "bytes", detail=detail),
        Column(
            "exchanged_bytes", "exchan\N{SOFT HYPHEN}\nged GB", "bytes", detail=detail if _any_ranks(rows) else "data"
        ),
        Column("roofline_ms", "roofline\nms", "ms", detail=detail),
        Column("bound_by", "bound by", justify="left", detail=detail),
        Column("longest_seq_len", "longest\nlength", "tokens", detail=detail),
        Column("largest_batch_size", "largest\nbatch", detail=detail),
        *(Column(name, name, justify="left", detail="data") for name in ("device", "how")),
    ]


def _body(rows: Sequence[Row], columns: Sequence[Column]) -> tuple[tuple[Column, ...], tuple[tuple[Entry, ...], ...]]:
    return tuple(columns), tuple(tuple(_entry(row, column.name) for column in columns) for row in rows)


def _entry(row: Row, name: str) -> Entry:
    value = row[name]
    if value is None:
        return Entry(None, ABSENT)
    if name == "fits":
        return Entry(value, "yes" if value else "no", failed=not value)
    if name == "parameters":
        return Entry(value, f"{significant(value / 1e9)}B" if value >= 1e9 else f"{significant(value / 1e6)}M")
    if name.endswith("_bytes"):
        return Entry(value, significant(value / GB) if value >= LEAST_SHOWN * GB or not value else f"<{LEAST_SHOWN}")
    if name == "flops":
        return Entry(value, significant(value / 1e12))
    if name == "roofline_ms":
        return Entry(value, significant(value))
    if name == "longest_seq_len":
        return Entry(value, f"{length(value)} or more" if value == MAX_SEQ_LEN else f"{value:,}")
    return Entry(value, str(value))
