"""Table 4 predicted: memory and throughput of training at the paper's sizes, under stated assumptions. A model.

The paper's numbers are in training.toml. It states no batch, no checkpointing, no optimizer and no degree of tensor
parallelism; the defaults are the assumptions that come nearest to its memory, found with --fit.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from models.sizes import SIZES
from retbench import options
from retbench.errors import UsageError
from retbench.quantities import parse_counts
from retbench.report.training_cost import GPUS, UNITS, Assumptions, Unit, cost_tables, fits, known_costs
from retbench.spec import MAX_BATCH_SIZE, Cell, Checkpointing, Training
from retbench.specifications import find_specification

if TYPE_CHECKING:
    from retbench.plan import Prediction

SHALLOW = (2, 3)  # layers that are traced: all else grows by the difference from layer to layer

PerSize = "a number, or one for each of 1.3b, 2.7b, 6.7b, 13b"
BatchSizes = Annotated[str, typer.Option(help=f"Sequences of a GPU in a micro-batch: {PerSize}.")]
TensorParallel = Annotated[str, typer.Option(help=f"GPUs that share a model: {PerSize}.")]
StateBytes = Annotated[
    float, typer.Option(help="Bytes a parameter: weights, gradients, optimizer together.", min=1, max=64)
]
CheckpointingName = Annotated[str, typer.Option("--checkpointing", help=f"{', '.join(get_args(Checkpointing))}.")]
UnitName = Annotated[str, typer.Option("--unit", help="What the paper's GB are: GB (10^9 bytes) or GiB (2^30).")]
Fit = Annotated[bool, typer.Option("--fit", help="Search the assumptions that come nearest, and list the best.")]


def command(
    batch_size: BatchSizes = "4,2,2,2",
    tensor_parallel: TensorParallel = "1,1,2,4",
    state_bytes: StateBytes = 14.0,
    checkpointing: CheckpointingName = "block",
    unit: UnitName = "GiB",
    fit: Fit = False,
    out: options.Out = Path(),
    output_format: options.Format = "table",
) -> None:
    options.check_format(output_format)
    if checkpointing not in get_args(Checkpointing):
        raise UsageError(f"unknown checkpointing {checkpointing!r}; it is one of {', '.join(get_args(Checkpointing))}")
    if unit not in UNITS:
        raise UsageError(f"unknown unit {unit!r}; units are {', '.join(UNITS)}")
    assumed = Assumptions(
        cast(Checkpointing, checkpointing),
        cast(Unit, unit),
        state_bytes,
        _per_size(batch_size, "--batch-size", MAX_BATCH_SIZE),
        _per_size(tensor_parallel, "--tensor-parallel", GPUS),
    )

    from retbench.report.figures import save, table4
    from retbench.report.tables import Format, render

    kinds = cast(tuple[Checkpointing, ...], get_args(Checkpointing)) if fit else (assumed.checkpointing,)
    costs = known_costs(_predictions(kinds))
    device = find_specification("a100-80gb")
    found = cost_tables(costs, assumed, device, out, fits(costs) if fit else [])
    fmt = "json" if output_format == "jsonl" else output_format
    render(found, cast(Format, fmt), sys.stdout)
    files = save(table4.draw(costs, assumed), out / "reports" / "training", "table4-model")
    print(f"figures: {', '.join(map(str, files))}", file=sys.stderr)


def _per_size(text: str, option: str, most: int) -> tuple[int, ...]:
    """One number for every size, or the same for all."""
    counts = tuple(parse_counts(part, option)[0] for part in text.split(","))
    sizes = paper_sizes()
    if len(counts) not in (1, len(sizes)) or max(counts) > most:
        raise UsageError(f"{option} {text!r} must be one number or {len(sizes)}, for {', '.join(sizes)}, up to {most}")
    return counts * (len(sizes) if len(counts) == 1 else 1)


def paper_sizes() -> list[str]:
    """The sizes of Table 4."""
    from retbench.report.training_tables import paper_training

    return list(paper_training()["memory"]["sizes"])


def _predictions(kinds: Sequence[Checkpointing]) -> "Mapping[tuple[str, str, Checkpointing], Prediction]":
    """Parameters, activations of one sequence and operations by system, size and checkpointing."""
    from retbench import plan
    from retbench.report.training_tables import paper_training

    paper = paper_training()
    systems = [name for name in paper["memory"] if name != "sizes"]
    keys = [(system, size, kind) for size in paper_sizes() for system in systems for kind in kinds]
    cells = [_cell(system, size, kind, layers, paper) for system, size, kind in keys for layers in SHALLOW]
    predictions, problems = plan.predict(cells)
    if problems:
        raise UsageError("; ".join(problems))
    pairs = zip(predictions[::2], predictions[1::2], strict=True)
    return {key: _deep(*pair, SIZES[key[1]].n_layers) for key, pair in zip(keys, pairs, strict=True)}


def _cell(system: str, size: str, kind: Checkpointing, n_layers: int, paper: Mapping[str, int]) -> Cell:
    chunk_size = paper["chunk_size"] if system == "retnet" else None
    shape = (paper["seq_len"], 1, "bf16", "cuda", 1)
    training = Training(checkpointing=kind)
    return Cell(system, size, "train_step", *shape, n_layers=n_layers, chunk_size=chunk_size, training=training)  # type: ignore[arg-type]


def _deep(few: "Prediction", more: "Prediction", n_layers: int) -> "Prediction":
    """Those of all layers: each adds as much as the one before."""
    extra = n_layers - SHALLOW[-1]
    return {name: more[name] + extra * (more[name] - few[name]) for name in more}
