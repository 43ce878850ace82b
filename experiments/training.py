"""Table 4: the cost of training, whole optimizer steps of RetNet and of Transformers, in time and memory.

A step is forward and backward of its micro-batches and AdamW. Warm steps are timed, those of the systems of one setting
in turn; memory is exact, in a pass of its own, and split by what it is. Records go to results/.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from models.catalogue import systems as known_systems
from models.sizes import SIZES
from retbench import options, ranks
from retbench.devices import Device, find_device
from retbench.errors import UsageError
from retbench.options import Grid
from retbench.quantities import parse_counts, parse_duration
from retbench.record import Record
from retbench.registry import choose
from retbench.report.exhibit import Exhibit
from retbench.spec import Cell, Checkpointing, Loss, Training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from retbench.report.tables import Table

SYSTEMS = "retnet,transformer,transformer-flash"
PAPER_SEQ_LEN = "8192"
CPU_SEQ_LEN, CPU_SIZE = "1024", "small"
STATE_BYTES = 18  # of a parameter in bf16: itself, its gradient twice, master weight and two moments
STATE_SHARE = 0.5  # of the free memory that they may take by default
MAX_MICRO_BATCHES = 1024

SeqLen = Annotated[str, typer.Option(help=f"Lengths; auto: {PAPER_SEQ_LEN}, on a CPU {CPU_SEQ_LEN}.")]
BatchSize = Annotated[str, typer.Option(help="Sequences of a micro-batch: lists and ranges as for lengths.")]
Size = Annotated[str, typer.Option(help=f"Model sizes; auto: up to 1.3b by the GPU's memory, on a CPU {CPU_SIZE}.")]
DtypeName = Annotated[
    str, typer.Option("--dtype", help="fp32, bf16 with fp32 master weights, or auto for the device's default.")
]
CheckpointingName = Annotated[
    str, typer.Option("--checkpointing", help="none, block (activations of a block computed again), or both.")
]
GradAccumulation = Annotated[str, typer.Option(help="Micro-batches of a step: lists and ranges as for lengths.")]
LossName = Annotated[
    str, typer.Option("--loss", help="plain, chunked (the logits of all positions are never held), or both.")
]
ChunkSize = Annotated[
    int, typer.Option(help="Of RetNet's chunkwise form; 512 is the paper's.", min=1, max=options.MAX_SEQ_LEN)
]
Compile = Annotated[bool, typer.Option("--compile", help="torch.compile for the blocks.")]
TensorParallel = Annotated[int, typer.Option(help="Processes that share the heads of each layer out.")]
DataParallel = Annotated[int, typer.Option(help="Processes that read batches of their own.")]
Fsdp = Annotated[
    bool, typer.Option("--fsdp", help="Data-parallel processes share weights, gradients and optimizer state out.")
]
Nproc = Annotated[int, typer.Option(help="Processes to start on this machine by torchrun, unless it has.")]


def command(
    systems: options.Systems = SYSTEMS,
    size: Size = "auto",
    seq_len: SeqLen = "auto",
    batch_size: BatchSize = "1",
    dtype: DtypeName = "auto",
    checkpointing: CheckpointingName = "none",
    grad_accumulation: GradAccumulation = "1",
    loss: LossName = "plain",
    compile_blocks: Compile = False,
    chunk_size: ChunkSize = 512,
    tensor_parallel: TensorParallel = 1,
    data_parallel: DataParallel = 1,
    fsdp: Fsdp = False,
    nproc: Nproc = 1,
    device: options.DeviceName = "auto",
    threads: options.Threads = 0,
    budget: options.Budget = "150s",
    mem_limit: options.MemLimit = "",
    out: options.Out = Path(),
    fresh: options.Fresh = False,
    dry_run: options.DryRun = False,
    seed: options.Seed = 0,
    output_format: options.Format = "table",
) -> None:
    options.check_format(output_format)
    chosen = find_device(device)
    if dtype == "fp16":
        raise UsageError("--dtype fp16 would need scaled losses; dtypes of training are auto, fp32, bf16")
    size, seq_len = _default_size(chosen) if size == "auto" else size, _default_seq_len(chosen, seq_len)
    shared = Training(tensor_parallel=tensor_parallel, data_parallel=data_parallel, fsdp=fsdp)
    ranks.check_ranks(shared, shared.ranks if dry_run else nproc, compile_blocks)
    threads = threads or max(1, chosen.default_threads() // shared.ranks)
    grid = Grid(seq_len, batch_size, systems, size, dtype, device, threads, mem_limit, seed, compile=compile_blocks)
    trainings = [
        replace(shared, checkpointing=blocks, grad_accumulation=count, loss=kind)
        for blocks, count, kind in product(
            _checkpointings(checkpointing), _micro_batches(grad_accumulation), _losses(loss)
        )
    ]
    _, found = grid.cells("train_step")
    cells = [replace(_chunked(cell, chunk_size), training=training) for training in trainings for cell in found]
    budget_s = parse_duration(budget, "--budget")

    from retbench.session import Report, Session

    session = Session("training", chosen, cells, out, budget_s, fresh, dry_run, output_format)
    ranks.run(session, Report(tables, figures), nproc)


def tables(records: Sequence[Record]) -> "list[Table]":
    """Steps, memory at the peak, and the paper's Table 4."""
    from retbench.report.training_tables import training_tables

    return training_tables(records)


def figures(records: Sequence[Record]) -> "Mapping[str, Figure]":
    """None: the paper has a table."""
    return {}


EXHIBITS = (
    Exhibit(
        "table4",
        "Table 4: the cost of training",
        "training",
        "retbench training",
        tables,
        figures,
        systems=tuple(SYSTEMS.split(",")),
    ),
)


def _default_seq_len(device: Device, seq_len: str) -> str:
    if seq_len != "auto":
        return seq_len
    return CPU_SEQ_LEN if device.name == "cpu" else PAPER_SEQ_LEN


def _default_size(device: Device) -> str:
    """The largest size up to the paper's smallest whose weights, gradients and optimizer leave half of the memory."""
    if device.name == "cpu":
        return CPU_SIZE
    budget, fitting = STATE_SHARE * device.free_bytes(), ["tiny"]
    for name in list(SIZES)[: list(SIZES).index("1.3b") + 1]:
        parameters = SIZES[name].layer_parameters + 2 * 32000 * SIZES[name].d_model
        fitting += [name] * (STATE_BYTES * parameters <= budget)
    return fitting[-1]


def _chunked(cell: Cell, chunk_size: int) -> Cell:
    """The cell with that chunk, if its system is a RetNet."""
    is_retnet = known_systems()[cell.system].module == "models.retnet"
    return replace(cell, chunk_size=chunk_size) if is_retnet else cell


def _checkpointings(text: str) -> list[Checkpointing]:
    return [name for name in get_args(Checkpointing) if name in choose(text, get_args(Checkpointing), "checkpointing")]


def _losses(text: str) -> list[Loss]:
    return [name for name in get_args(Loss) if name in choose(text, get_args(Loss), "loss")]


def _micro_batches(text: str) -> tuple[int, ...]:
    counts = parse_counts(text, "--grad-accumulation")
    if max(counts) > MAX_MICRO_BATCHES:
        raise UsageError(f"--grad-accumulation {max(counts)} is too large: at most {MAX_MICRO_BATCHES}")
    return counts
