"""Table 4 by a model: what a GPU holds and how fast eight could be, under assumptions that the paper does not state."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal, get_args

from models.sizes import SIZES
from retbench.record import Record
from retbench.report.numbers import ABSENT, significant
from retbench.report.tables import Column, Entry, Table
from retbench.report.training_tables import paper_training
from retbench.spec import Cell, Checkpointing, Training
from retbench.specifications import Specification
from retbench.store import Store

Unit = Literal["GB", "GiB"]
Peaks = Mapping[tuple[str, str], int]  # bytes of a GPU by system and size
UNITS: dict[str, int] = {"GB": 10**9, "GiB": 2**30}
GPUS = 8  # of the paper
SHARED_FROM = 2  # place of the first size that the paper trains with tensor parallelism
Degrees = tuple[int, ...]
DEGREES: tuple[Degrees, ...] = ((1, 2, 4, 8), (1, 2), (1, 2, 4, 8), (1, 2, 4))  # by place: they divide GPUs and heads
# What a search tries.
BATCHES, STATE_BYTES = (1, 2, 3, 4, 6, 8, 16), (4, 6, 8, 10, 12, 14, 16, 18, 20)
SHOWN_FITS = 5
# Tensors (T, D) that a layer keeps for its gradient and no degree divides: its input; and, without checkpointing, what
# its first norm gives, what its second one reads and gives. At the head, what the last norm reads and gives.
WHOLE: Mapping[Checkpointing, int] = {"none": 4, "block": 1}
WHOLE_AT_THE_HEAD, BF16_BYTES = 2, 2


@dataclass(frozen=True)
class Assumptions:
    """What Table 4 leaves open; ``batch_size`` and ``tensor_parallel`` hold one number for each of its sizes."""

    checkpointing: Checkpointing
    unit: Unit
    state_bytes: float  # a parameter: weights, gradients, optimizer
    batch_size: tuple[int, ...]
    tensor_parallel: tuple[int, ...]

    @property
    def words(self) -> str:
        batches, degrees = (" ".join(map(str, numbers)) for numbers in (self.batch_size, self.tensor_parallel))
        return (
            f"batch {batches}, tensor parallel {degrees} (by size), checkpointing {self.checkpointing}, "
            f"{self.state_bytes:g} bytes a parameter, {self.unit}"
        )


@dataclass(frozen=True)
class Cost:
    """One row of Table 4: the paper's numbers and, by checkpointing, what a sequence takes."""

    system: str
    size: str
    place: int  # of the size
    paper_memory: float
    paper_tokens_per_s: float
    seq_len: int
    parameters: int
    activations_bytes: Mapping[Checkpointing, int]  # of one sequence, logits included, gradients not
    whole_bytes: Mapping[Checkpointing, int]  # those of them that every GPU of a model holds
    flops: Mapping[Checkpointing, int]  # of one sequence

    def memory(self, assumed: Assumptions) -> float:
        """Of a GPU, in the unit: the GPUs of a model share all evenly but what ``whole_bytes`` tells."""
        batch_size, degree = assumed.batch_size[self.place], assumed.tensor_parallel[self.place]
        whole = batch_size * self.whole_bytes[assumed.checkpointing]
        shared = assumed.state_bytes * self.parameters + batch_size * self.activations_bytes[assumed.checkpointing]
        return ((shared - whole) / degree + whole) / UNITS[assumed.unit]

    def error(self, assumed: Assumptions) -> float:
        return self.memory(assumed) / self.paper_memory - 1

    def tokens_per_s(self, assumed: Assumptions, device: Specification) -> float:
        """Of all GPUs at the dense peak: what no real step reaches."""
        return GPUS * device.peak_flops_per_s("bf16") * self.seq_len / self.flops[assumed.checkpointing]


def known_costs(predictions: Mapping[tuple[str, str, Checkpointing], Mapping[str, int]]) -> list[Cost]:
    """The rows of Table 4 with what was predicted for them, size by size."""
    paper = paper_training()
    sizes, kinds = paper["memory"]["sizes"], {kind: None for _, _, kind in predictions}
    found = []
    for place, size in enumerate(sizes):
        for system in (name for name in paper["memory"] if name != "sizes"):
            own = {kind: predictions[system, size, kind] for kind in kinds}
            found.append(
                Cost(
                    *(system, size, place, paper["memory"][system][place], paper["throughput"][system][place]),
                    paper["seq_len"],
                    next(iter(own.values()))["parameters"],
                    {kind: one["most_activations_bytes"] for kind, one in own.items()},
                    {kind: whole_bytes(size, kind, paper["seq_len"]) for kind in own},
                    {kind: one["step_flops"] for kind, one in own.items()},
                )
            )
    return found


def whole_bytes(size: str, kind: Checkpointing, seq_len: int) -> int:
    """What tensor parallelism leaves whole of a sequence's activations in bf16: the residual stream, wherever kept."""
    kept = WHOLE[kind] * SIZES[size].n_layers + WHOLE_AT_THE_HEAD
    return kept * seq_len * SIZES[size].d_model * BF16_BYTES


def rms(costs: Sequence[Cost], assumed: Assumptions) -> float:
    """The root of the mean square of the relative errors of memory."""
    return float((sum(cost.error(assumed) ** 2 for cost in costs) / len(costs)) ** 0.5)


def fits(costs: Sequence[Cost]) -> list[Assumptions]:
    """The best batches and degrees for each checkpointing, unit and bytes a parameter, nearest first."""
    kinds = list(costs[0].activations_bytes)
    found = []
    for kind, unit, state_bytes in product(kinds, get_args(Unit), STATE_BYTES):
        chosen = [_best(costs, place, kind, unit, state_bytes) for place in sorted({cost.place for cost in costs})]
        batches, degrees = zip(*chosen, strict=True)
        found.append(Assumptions(kind, unit, state_bytes, batches, degrees))
    return sorted(found, key=lambda assumed: rms(costs, assumed))


def _best(costs: Sequence[Cost], place: int, kind: Checkpointing, unit: Unit, state_bytes: float) -> tuple[int, int]:
    """Batch and degree of one size; the first two sizes are not shared."""
    own = [cost for cost in costs if cost.place == place]
    sizes = place + 1

    def error(choice: tuple[int, int]) -> float:
        batch, degree = choice
        return rms(own, Assumptions(kind, unit, state_bytes, (batch,) * sizes, (degree,) * sizes))

    return min(product(BATCHES, DEGREES[place] if place >= SHARED_FROM else (1,)), key=error)


def cost_tables(
    costs: Sequence[Cost],
    assumed: Assumptions,
    device: Specification,
    measured: Peaks,
    best: Sequence[Assumptions],
) -> list[Table]:
    """Table 4 beside the model and ``measured_peaks``, and the nearest assumptions where they were searched for."""
    columns = (
        Column("size", "size", justify="left"),
        Column("system", "system", justify="left"),
        Column("batch_size", "batch"),
        Column("tensor_parallel", "TP"),
        Column("memory", f"memory {assumed.unit}\nmodel", assumed.unit),
        *((Column("measured_memory", "\nmeasured", assumed.unit),) if measured else ()),
        Column("paper_memory", "\npaper", "GB as printed"),
        Column("memory_error", "\nerror", "ratio"),
        Column("tokens_per_s", "tokens/s\nroofline", "tokens/s"),
        Column("paper_tokens_per_s", "\npaper", "tokens/s"),
        Column("share", "of the\nroofline", "ratio"),
    )
    rows = tuple(_row(cost, assumed, device, measured) for cost in costs)
    worst = max(costs, key=lambda cost: abs(cost.error(assumed)))
    notes = (
        f"model, not measured: {assumed.words}; root mean square error of memory {rms(costs, assumed):.1%}, worst "
        f"{worst.error(assumed):+.1%} ({worst.system} {worst.size})",
        "memory of a GPU: (bytes a parameter x parameters + batch x activations of a sequence) / TP, but the residual "
        f"stream is not divided; activations are traced on our models at length {costs[0].seq_len}, RetNet in chunks "
        f"of {paper_training()['chunk_size']}",
        "what cannot be identified: the paper states no batch, dtype, checkpointing, optimizer or TP, nor whether GB "
        "are 10^9 bytes; others come nearly as near (--fit), so these are one reading of it, not the paper's",
        f"roofline: {GPUS} x {device.description} at their dense peak / the operations of these models, recomputation "
        "and all pairs of positions included; tokens are the paper's words; its rates are taken for those of all GPUs",
        *(
            ("measured: retbench training on CUDA at the same length, batch, TP and checkpointing, in bf16",)
            if measured
            else ()
        ),
    )
    first = Table("training_cost", "Table 4 predicted (model)", columns, rows, notes, ("size",))
    return [first, _fit_table(costs, best)] if best else [first]


def _row(cost: Cost, assumed: Assumptions, device: Specification, measured: Peaks) -> tuple[Entry, ...]:
    memory, error, speed = cost.memory(assumed), cost.error(assumed), cost.tokens_per_s(assumed, device)
    nbytes = measured.get((cost.system, cost.size))
    real = None if nbytes is None else nbytes / UNITS[assumed.unit]
    batch, degree = assumed.batch_size[cost.place], assumed.tensor_parallel[cost.place]
    return (
        Entry(cost.size, cost.size),
        Entry(cost.system, cost.system),
        Entry(batch, str(batch)),
        Entry(degree, str(degree)),
        Entry(memory, f"{memory:.1f}"),
        *((Entry(real, ABSENT if real is None else f"{real:.1f}"),) if measured else ()),
        Entry(cost.paper_memory, f"{cost.paper_memory:.1f}"),
        Entry(error, f"{100 * error:+.1f}%"),
        Entry(speed, significant(speed)),
        Entry(cost.paper_tokens_per_s, f"{cost.paper_tokens_per_s:,.0f}"),
        Entry(cost.paper_tokens_per_s / speed, f"{cost.paper_tokens_per_s / speed:.0%}"),
    )


def step_cell(system: str, size: str, batch_size: int, training: Training, n_layers: int | None = None) -> Cell:
    """An optimizer step as the rows of Table 4 are assumed to be: the paper's length and chunk, in bf16."""
    paper = paper_training()
    return Cell(
        system,
        size,
        "train_step",
        paper["seq_len"],
        batch_size,
        "bf16",
        "cuda",
        threads=1,
        n_layers=n_layers,
        chunk_size=paper["chunk_size"] if system == "retnet" else None,
        training=training,
    )


def measured_peaks(records: Sequence[Record], costs: Sequence[Cost], assumed: Assumptions) -> Peaks:
    """The last peak that was measured of each row on a CUDA device, under just what is assumed of it."""
    known: dict[Cell, int] = {}
    for record in records:
        if record.status == "ok" and "peak_memory_bytes" in record.metrics:
            training = replace(record.cell.training or Training(), data_parallel=1)  # each GPU holds as much
            cell = replace(record.cell.requested, threads=1, seed=0, mem_limit_bytes=None)
            known[replace(cell, training=training)] = int(record.metrics["peak_memory_bytes"])
    wanted = {(cost.system, cost.size): _assumed_cell(cost, assumed) for cost in costs}
    return {row: known[cell] for row, cell in wanted.items() if cell in known}


def _assumed_cell(cost: Cost, assumed: Assumptions) -> Cell:
    degree = assumed.tensor_parallel[cost.place]
    training = Training(checkpointing=assumed.checkpointing, tensor_parallel=degree)
    return step_cell(cost.system, cost.size, assumed.batch_size[cost.place], training)


def training_records(out: Path) -> list[Record]:
    """All that ``retbench training`` has stored, of every machine."""
    paths = sorted((out / "results").glob("*/training.jsonl"))
    return [record for path in paths for record in Store(path).read().records]


def _fit_table(costs: Sequence[Cost], best: Sequence[Assumptions]) -> Table:
    columns = (
        Column("rms_error", "rms\nerror", "ratio"),
        Column("worst_error", "worst", "ratio"),
        Column("assumptions", "assumptions", justify="left"),
    )
    rows = []
    for assumed in best[:SHOWN_FITS]:
        worst = max((cost.error(assumed) for cost in costs), key=abs)
        error = rms(costs, assumed)
        rows.append((Entry(error, f"{error:.1%}"), Entry(worst, f"{worst:+.1%}"), Entry(assumed.words, assumed.words)))
    tried = (
        f"tried: batches {', '.join(map(str, BATCHES))}; all TP that divide GPUs and heads from 6.7b on; bytes a "
        f"parameter {STATE_BYTES[0]} to {STATE_BYTES[-1]}; checkpointing none and block; GB and GiB"
    )
    return Table("fit", "The assumptions that come nearest to the paper's memory", columns, tuple(rows), (tried,))
