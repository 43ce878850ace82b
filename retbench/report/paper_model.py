"""Figure 6 predicted at the paper's size and device, by the accounting that meets its memory: a model.

Memory: fp16 weights without embeddings and head, and the KV cache or the state of 8 sequences, the state in fp16 too.
Latency: the bytes that a step must read and write, head included, at the bandwidth of the data sheet.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from retbench.record import Record
from retbench.report.numbers import ABSENT, length, significant
from retbench.report.paper import Paper
from retbench.report.tables import Column, Entry, Table
from retbench.spec import Cell
from retbench.specifications import Specification

GB = 10**9
SYSTEMS = ("transformer", "retnet")
FP16, FP32 = 2, 4  # bytes


@dataclass(frozen=True)
class Point:
    """One system at one length: what the model says and what the paper shows, None where it has no point."""

    system: str
    seq_len: int
    memory_gb: float
    latency_ms: float
    tokens_per_s: float  # averaged over the positions up to the length
    paper: Mapping[str, float | None]


def cells(paper: Paper) -> list[Cell]:
    """Both systems at every length of Figure 6."""
    setting = paper.setting
    lengths = paper.panels["memory"].curves[0].x
    return [
        Cell(system, setting.size.lower(), "decode", seq_len, setting.batch_size, "fp16", "cuda", 1)
        for system in SYSTEMS
        for seq_len in lengths
    ]


def points(records: Sequence[Record], device: Specification, paper: Paper) -> list[Point]:
    """The model's points, in the order of the records, which hold predictions."""
    return [_point(record.cell, record.predicted, device, paper) for record in records]


def _point(cell: Cell, predicted: Mapping[str, int], device: Specification, paper: Paper) -> Point:
    recurrent = cell.system == "retnet"
    state_bytes = predicted["state_bytes"] * FP16 // FP32 if recurrent else predicted["state_bytes"]
    head_bytes = predicted["weights_bytes"] - (predicted["step_bytes"] - _moved_state(predicted, recurrent))
    weights_bytes = predicted["weights_bytes"] - 2 * head_bytes  # the embedding is as large as the head
    last = weights_bytes + head_bytes + (2 if recurrent else 1) * state_bytes
    first = last if recurrent else last - state_bytes
    latency_ms, mean_ms = (1e3 * moved / device.bytes_per_s for moved in (last, (first + last) / 2))
    panels, at = paper.panels, cell.seq_len
    return Point(
        cell.system,
        cell.seq_len,
        (weights_bytes + state_bytes) / GB,
        latency_ms,
        1e3 * cell.batch_size / mean_ms,
        {
            "memory": _theirs(panels["memory"].curve(cell.system), at),
            "throughput": _theirs(panels["throughput"].curve(cell.system), at),
            "latency": _theirs(panels["latency"].curve(cell.system, at), cell.batch_size),
        },
    )


def _moved_state(predicted: Mapping[str, int], recurrent: bool) -> int:
    return (2 if recurrent else 1) * predicted["state_bytes"]


def _theirs(curve: Any, x: int) -> float | None:
    return curve.at(x) if curve else None


def paper_model_table(found: Sequence[Point], device: Specification, paper: Paper) -> Table:
    """A row a point: memory, throughput and latency of the model, each beside the paper's."""
    setting = paper.setting
    columns = (
        Column("system", "system", justify="left"),
        Column("seq_len", "length"),
        Column("memory_gb", "memory GB\nmodel", "GB"),
        Column("paper_memory_gb", "\npaper", "GB"),
        Column("memory_error", "\nerror", "ratio"),
        Column("tokens_per_s", "tokens/s\nroofline", "tokens/s"),
        Column("paper_tokens_per_s", "\npaper", "tokens/s"),
        Column("latency_ms", "latency ms\nroofline", "ms"),
        Column("paper_latency_ms", "\npaper", "ms"),
    )
    notes = (
        f"model of {setting.size}, batch {setting.batch_size}, fp16 (both inferred, the paper states neither), on "
        f"{device.description}, {device.bytes_per_s / 1e12:g} TB/s ({device.source}); nothing was run",
        "memory: fp16 weights without embeddings and head (12 d_model^2 a layer) + the KV cache or the state of "
        f"{setting.batch_size} sequences, the state in fp16; GB are 10^9 bytes; activations are left out",
        "roofline: the bytes that a decode step must move / the bandwidth; latency at the last position, tokens/s of "
        "the batch over all positions; real steps are slower",
        _difference(found, paper),
    )
    return Table("paper_model", "Figure 6 predicted (model, not measured)", columns, tuple(map(_row, found)), notes)


def _row(point: Point) -> tuple[Entry, ...]:
    theirs = point.paper["memory"]
    error = point.memory_gb / theirs - 1 if theirs else None
    return (
        Entry(point.system, point.system),
        Entry(point.seq_len, length(point.seq_len)),
        Entry(point.memory_gb, f"{point.memory_gb:.2f}"),
        Entry(theirs, ABSENT if theirs is None else f"{theirs:.2f}"),
        Entry(error, ABSENT if error is None else f"{100 * error:+.2f}%"),
        _number(point.tokens_per_s),
        _number(point.paper["throughput"]),
        _number(point.latency_ms),
        _number(point.paper["latency"]),
    )


def _number(value: float | None) -> Entry:
    return Entry(value, ABSENT if value is None else significant(value))


def _difference(found: Sequence[Point], paper: Paper) -> str:
    """The plain sentence on latency: the ratio that the bytes allow, and the paper's."""
    longest = max(point.seq_len for point in found)
    last = {point.system: point for point in found if point.seq_len == longest}
    latency = last["transformer"].latency_ms / last["retnet"].latency_ms
    throughput = last["retnet"].tokens_per_s / last["transformer"].tokens_per_s
    share = {name: (point.paper["throughput"] or math.nan) / point.tokens_per_s for name, point in last.items()}
    return (
        f"at {length(longest)} the bytes allow RetNet {latency:.1f} times lower latency and {throughput:.1f} times the "
        f"throughput, where the paper claims {paper.claims['latency'].ratio.value:g} and "
        f"{paper.claims['throughput'].ratio.value:g}: its Transformer reaches {share['transformer']:.0%} of this "
        f"roofline's throughput, its RetNet {share['retnet']:.0%}, so most of the difference is how slowly that "
        "Transformer moved its KV cache, not what a Transformer must move"
    )
