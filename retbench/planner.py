"""Plans cells for a device that need not be here: bytes, operations, what fits, a roofline time. All of it is a model.

Nothing is allocated: models are traced on fake tensors in a child. A device is a file of its limits, ours or yours.
"""

import sys
from dataclasses import replace
from itertools import product
from typing import Annotated, TypeVar, cast, get_args

import typer

from models.catalogue import systems as known_systems
from retbench import options, ranks
from retbench.errors import UsageError
from retbench.options import Grid
from retbench.registry import choose
from retbench.spec import MAX_SEQ_LEN, Cell, Checkpointing, Loss, Training
from retbench.specifications import Specification, find_specification, specifications

T = TypeVar("T")
WORKLOADS = ("decode", "prefill", "train_step")

Workload = Annotated[str, typer.Option(help=f"Comma-separated: {', '.join(WORKLOADS)}.")]
DeviceName = Annotated[str, typer.Option("--device", help=f"{', '.join(specifications())}, or a file ending in .toml.")]
DtypeName = Annotated[str, typer.Option("--dtype", help="fp32, bf16 or fp16; training only in fp32 and bf16.")]
CheckpointingName = Annotated[str, typer.Option("--checkpointing", help="Of training: none, block, or both.")]
LossName = Annotated[str, typer.Option("--loss", help="Of training: plain, chunked, or both.")]
GradAccumulation = Annotated[int, typer.Option(help="Micro-batches of an optimizer step.", min=1, max=1024)]
TensorParallel = Annotated[int, typer.Option(help="Of training: devices that share the heads of each layer out.")]
DataParallel = Annotated[int, typer.Option(help="Of training: devices that read batches of their own.")]
Fsdp = Annotated[
    bool, typer.Option("--fsdp", help="Of training: these share weights, gradients and optimizer state out.")
]
ChunkSize = Annotated[int, typer.Option(help="Of RetNet's chunkwise form; 0: the model's own.", min=0, max=MAX_SEQ_LEN)]


def command(
    workload: Workload = "decode",
    seq_len: options.SeqLen = "8192",
    batch_size: options.BatchSize = "1,8",
    systems: options.Systems = "retnet,transformer,transformer-flash",
    checkpoint: options.Checkpoints = None,
    size: options.Size = "6.7b",
    dtype: DtypeName = "bf16",
    weights: options.Weights = "as-is",
    checkpointing: CheckpointingName = "none",
    grad_accumulation: GradAccumulation = 1,
    loss: LossName = "plain",
    chunk_size: ChunkSize = 0,
    tensor_parallel: TensorParallel = 1,
    data_parallel: DataParallel = 1,
    fsdp: Fsdp = False,
    device: DeviceName = "a100-80gb",
    output_format: options.Format = "table",
) -> None:
    options.check_format(output_format)
    found = find_specification(device)
    if size == "auto" or dtype == "auto":
        raise UsageError("a plan has no default device: --size and --dtype must be named, not auto")
    # The grid is expanded for the CPU, which is everywhere: the planned device need not be here.
    grid = Grid(seq_len, batch_size, systems, size, dtype, "cpu", 1, "", 0, tuple(checkpoint or ()), (), weights)
    shared = Training(tensor_parallel=tensor_parallel, data_parallel=data_parallel, fsdp=fsdp)
    ranks.check_degrees(shared)
    trainings = [
        replace(shared, checkpointing=blocks, grad_accumulation=grad_accumulation, loss=kind)
        for blocks, kind in product(
            _chosen(checkpointing, get_args(Checkpointing), "checkpointing"), _chosen(loss, get_args(Loss), "loss")
        )
    ]
    cells = [
        planned
        for name in choose(workload, WORKLOADS, "workload")
        for cell in grid.cells(name)[1]
        for planned in _planned(replace(cell, device=found.device), chunk_size, trainings)
    ]
    found.peak_flops_per_s(cells[0].dtype)
    if cells[0].dtype == "fp16" and any(cell.training for cell in cells):
        raise UsageError("--dtype fp16 would need scaled losses; dtypes of training are fp32, bf16")
    if shared.ranks > 1 and not all(cell.training for cell in cells):
        raise UsageError("--tensor-parallel and --data-parallel are of training: --workload must be train_step")
    ranks.check_systems(cells)
    show_plan(cells, found, output_format)


def _planned(cell: Cell, chunk_size: int, trainings: list[Training]) -> list[Cell]:
    """The cell with the chunk, if its system is a RetNet; a training step in every way that was asked for."""
    kind = cell.system.partition(":")[0]  # of a checkpoint, whose name follows
    if chunk_size and known_systems()[kind].module == "models.retnet":
        cell = replace(cell, chunk_size=chunk_size)
    if cell.workload != "train_step":
        return [cell]
    return [replace(cell, training=training) for training in trainings]


def _chosen(text: str, known: tuple[T, ...], what: str) -> list[T]:
    names = choose(text, map(str, known), what)
    return [name for name in known if name in names]


def show_plan(cells: list[Cell], device: Specification, output_format: str) -> None:
    """Predicts and prints; ``jsonl`` is a line a cell."""
    from retbench import plan
    from retbench.report.plan_tables import plan_rows, plan_tables
    from retbench.report.tables import Format, render

    estimates, problems = plan.estimate(cells, device.memory_bytes)
    rows = plan_rows(cells, estimates, device)
    if output_format == "jsonl":
        import json

        sys.stdout.writelines(json.dumps(row) + "\n" for row in rows)
    else:
        render(plan_tables(rows, device, problems), cast(Format, output_format), sys.stdout)
