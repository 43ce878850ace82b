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
from retbench.record import Record
from retbench.report.exhibit import Exhibit
from retbench.report.training_cost import (
    DEGREES,
    GPUS,
    UNITS,
    Assumptions,
    Cost,
    Unit,
    cost_tables,
    fits,
    known_costs,
    measured_peaks,
    step_cell,
    training_records,
)
from retbench.spec import MAX_BATCH_SIZE, Cell, Checkpointing, Training
from retbench.specifications import find_specification

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from retbench.plan import Prediction
    from retbench.report.tables import Table

EXPERIMENT, DEVICE = "training_cost", "a100-80gb"
# The defaults of the command: those that come nearest to the paper's memory; it states none of them.
ASSUMED = Assumptions("block", "GB", 12.0, (4, 2, 2, 2), (1, 1, 2, 4))
BATCH_SIZE, TENSOR_PARALLEL = (",".join(map(str, numbers)) for numbers in (ASSUMED.batch_size, ASSUMED.tensor_parallel))
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
    batch_size: BatchSizes = BATCH_SIZE,
    tensor_parallel: TensorParallel = TENSOR_PARALLEL,
    state_bytes: StateBytes = ASSUMED.state_bytes,
    checkpointing: CheckpointingName = ASSUMED.checkpointing,
    unit: UnitName = ASSUMED.unit,
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
        _degrees(tensor_parallel),
    )

    from retbench.predictions import predicted
    from retbench.report.figures import save_all, table4
    from retbench.report.tables import Format, render

    kinds = cast(tuple[Checkpointing, ...], get_args(Checkpointing)) if fit else (assumed.checkpointing,)
    costs = costs_of(predicted(EXPERIMENT, cells(kinds), out))
    measured = measured_peaks(training_records(out), costs, assumed)
    found = cost_tables(costs, assumed, find_specification(DEVICE), measured, fits(costs) if fit else [])
    fmt = "json" if output_format == "jsonl" else output_format
    render(found, cast(Format, fmt), sys.stdout)
    files = save_all({"table4-model": table4.draw(costs, assumed, measured)}, out / "reports" / EXPERIMENT)
    print(f"figures: {', '.join(map(str, files))}", file=sys.stderr)


def _per_size(text: str, option: str, most: int) -> tuple[int, ...]:
    """One number for every size, or the same for all."""
    parts = [parse_counts(part, option) for part in text.split(",")]
    sizes, counts = paper_sizes(), tuple(part[0] for part in parts)
    if len(counts) not in (1, len(sizes)) or max(counts) > most or any(len(part) > 1 for part in parts):
        raise UsageError(f"{option} {text!r} must be one number or {len(sizes)}, for {', '.join(sizes)}, up to {most}")
    return counts * (len(sizes) if len(counts) == 1 else 1)


def _degrees(text: str) -> tuple[int, ...]:
    """Those of tensor parallelism, one for every size."""
    degrees = _per_size(text, "--tensor-parallel", GPUS)
    for size, degree, possible in zip(paper_sizes(), degrees, DEGREES, strict=True):
        if degree not in possible:
            words = f"does not divide {GPUS} GPUs and the heads of {size}; possible are {', '.join(map(str, possible))}"
            raise UsageError(f"--tensor-parallel {degree} {words}")
    return degrees


def paper_sizes() -> list[str]:
    """The sizes of Table 4."""
    from retbench.report.training_tables import paper_training

    return list(paper_training()["memory"]["sizes"])


def cells(kinds: Sequence[Checkpointing]) -> list[Cell]:
    """What is traced of every row of Table 4: two shallow models for each checkpointing."""
    from retbench.report.training_tables import paper_training

    systems = [name for name in paper_training()["memory"] if name != "sizes"]
    keys = [(system, size, kind) for size in paper_sizes() for system in systems for kind in kinds]
    return [
        step_cell(system, size, 1, Training(checkpointing=kind), layers)
        for system, size, kind in keys
        for layers in SHALLOW
    ]


def costs_of(records: Sequence[Record]) -> list[Cost]:
    """The rows of Table 4 of as many kinds of checkpointing as were traced for all of them."""
    traced: dict[tuple[str, str, Checkpointing], dict[int, Prediction]] = {}
    for cell, predicted in ((record.cell, record.predicted) for record in records if record.experiment == EXPERIMENT):
        key = (cell.system, cell.size, (cell.training or Training()).checkpointing)
        traced.setdefault(key, {})[cell.n_layers or 0] = predicted
    deep = {
        key: _deep(layers[SHALLOW[0]], layers[SHALLOW[1]], SIZES[key[1]].n_layers)
        for key, layers in traced.items()
        if set(layers) >= set(SHALLOW)
    }
    whole = [kind for kind in get_args(Checkpointing) if {(c.system, c.size, kind) for c in cells([kind])} <= set(deep)]
    return known_costs({key: found for key, found in deep.items() if key[2] in whole}) if whole else []


def tables(records: Sequence[Record]) -> "list[Table]":
    """Table 4 predicted under the default assumptions, and measured where there are such records."""
    costs = costs_of(records)
    measured = measured_peaks(records, costs, ASSUMED)
    return cost_tables(costs, ASSUMED, find_specification(DEVICE), measured, []) if costs else []


def figures(records: Sequence[Record]) -> "Mapping[str, Figure]":
    """The predicted memory as bars, and what was measured of it."""
    from retbench.report.figures import table4

    costs = costs_of(records)
    return {"table4-model": table4.draw(costs, ASSUMED, measured_peaks(records, costs, ASSUMED))} if costs else {}


def _deep(few: "Prediction", more: "Prediction", n_layers: int) -> "Prediction":
    """Those of all layers: each adds as much as the one before."""
    extra = n_layers - SHALLOW[-1]
    return {name: more[name] + extra * (more[name] - few[name]) for name in more}


EXHIBITS = (
    Exhibit(
        "table4-model",
        "Table 4 predicted (model, not measured)",
        EXPERIMENT,
        "retbench training-cost",
        tables,
        figures,
        sized=True,
        also="training",
    ),
)
