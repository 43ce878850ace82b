"""How near this machine's limits the models come: decode against the read bandwidth, prefill against matrix products.

Not one of the paper's: a benchmark of the code itself. Each case is a child of its own that measures the limits and the
systems in turn, at least seven rounds of them. Also run by: python -m experiments.speed
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.catalogue import paper_systems
from retbench import options
from retbench.devices import find_device
from retbench.quantities import format_duration, parse_duration
from retbench.record import Record
from retbench.registry import choose
from retbench.report.exhibit import Exhibit
from retbench.spec import Cell, Dtype, Quantize

if TYPE_CHECKING:
    from retbench.plan import Prediction
    from retbench.report.tables import Table
    from retbench.sweep import Sweep

SYSTEMS = ("retnet", "transformer", "transformer-flash")
TRAINED = tuple(name for name in paper_systems() if name != "transformer-concat-cache")  # which trains as the eager one
FLASH = ("retnet", "transformer-flash")  # at long prompts an eager Transformer would need the memory of T x T scores

Cases = Annotated[str, typer.Option(help="Comma-separated, or all; an unknown one lists them.")]
Quick = Annotated[
    bool, typer.Option("--quick", help="A smoke run at size tiny, within a minute; its numbers mean nothing.")
]


@dataclass(frozen=True)
class Case:
    """Cells that one child measures in turn: they differ in system, weights, compilation, length and batch alone."""

    cell: Cell
    systems: tuple[str, ...]
    points: tuple[tuple[int, int], ...]  # length and batch
    quantize: tuple[Quantize, ...] = ("none",)
    compile: tuple[bool, ...] = (False,)

    def cells(self, quick: bool) -> list[Cell]:
        """Every combination; a quick case is tiny, has two points at most and compiles nothing."""
        points, compiles = self.points, self.compile[:1] if quick else self.compile
        cell = self.cell
        if quick:
            cell = replace(cell, size="tiny", n_layers=None)
            points = tuple((128, batch) for batch in sorted({min(batch, 2) for _, batch in points}))
        return [
            replace(cell, system=system, quantize=quantize, compile=compiled, seq_len=seq_len, batch_size=batch_size)
            for seq_len, batch_size in points
            for quantize in self.quantize
            for compiled in compiles
            for system in self.systems
        ]


def command(
    cases: Cases = "all",
    quick: Quick = False,
    device: options.DeviceName = "auto",
    threads: options.Threads = 0,
    budget: options.Budget = "10m",
    out: options.Out = Path(),
    fresh: options.Fresh = False,
    seed: options.Seed = 0,
    output_format: options.Format = "table",
) -> None:
    options.check_format(output_format)
    chosen_device = find_device(device)
    known = all_cases(chosen_device.name, options.check_threads(threads, chosen_device), seed)
    chosen = {name: known[name].cells(quick) for name in choose(cases, known, "case")}
    budget_s = parse_duration(budget, "--budget") / len(chosen)

    from rich.console import Console

    from retbench.session import show
    from retbench.store import Store, results_path
    from retbench.sweep import Sweep

    store = Store(results_path(out, chosen_device.slug(), "speed"))
    store.check_writable()
    stored = [] if fresh else store.read().records
    console, records = Console(stderr=True), list[Record]()
    sweeps = {name: Sweep.prepare("speed", cells, chosen_device, store) for name, cells in chosen.items()}
    reused = {name: _measured_together(sweep, stored) for name, sweep in sweeps.items()}
    predictions, problems = _predictions([cell for name in chosen if not reused[name] for cell in chosen[name]])
    for problem in problems:
        console.print(problem, soft_wrap=True, markup=False, highlight=False)
    for name, sweep in sweeps.items():
        words = "stored" if reused[name] else f"about {format_duration(budget_s)}"
        console.print(f"{name}: {len(sweep.cells)} cells, {words}", soft_wrap=True, markup=False, highlight=False)
        records += reused[name] or sweep.run_together(sweep.cells, predictions, budget_s)
    show(tables(records), records, output_format)


def _measured_together(sweep: "Sweep", stored: Sequence[Record]) -> list[Record]:
    """The records of all cells of a case, or none: what is compared must have been measured in the same rounds."""
    found = sweep.measured(stored)
    whole = len(found) == len(sweep.cells) and len({record.notes.get("child") for record in found.values()}) == 1
    return [found[cell] for cell in sweep.cells] if whole else []


def _predictions(cells: Sequence[Cell]) -> "tuple[dict[Cell, Prediction], list[str]]":
    """Bytes and operations of what has a model, and in words what could not be predicted."""
    from retbench import plan

    modelled = [cell for cell in cells if cell.workload != "limits"]
    predictions, problems = plan.predict(modelled) if modelled else ([], [])
    return dict(zip(modelled, predictions, strict=True)), problems


def all_cases(device: str, threads: int, seed: int) -> dict[str, Case]:
    """By name, what runs on one thread and what on all of them."""
    wide = Cell("", "1.3b", "decode", 0, 0, "bf16", device, threads, seed=seed, n_layers=8)
    found, dtypes = dict[str, Case](), tuple[Dtype, ...](("fp32", "bf16"))
    for name, count in {"1": 1, str(threads): threads}.items():
        for dtype in dtypes:
            limits = replace(wide, size="1.3b", workload="limits", dtype=dtype, threads=count)
            found[f"limits-{dtype}-{name}"] = Case(limits, ("machine",), ((2048, 1),))
        deep = replace(wide, threads=count)
        found[f"decode-{name}"] = Case(deep, SYSTEMS, ((8192, 1), (8192, 8)))
        small = replace(deep, size="small", dtype="fp32", n_layers=None)
        found[f"decode-fp32-{name}"] = Case(small, SYSTEMS, ((8192, 1), (8192, 8)))
    prompt = replace(wide, workload="prefill")
    layer = replace(wide, workload="train_step", threads=1, size="small", n_layers=1, vocab_size=8)
    return found | {
        "decode-int8": Case(wide, SYSTEMS[:2], ((4096, 1), (4096, 8)), ("none", "int8")),
        "batch": Case(wide, SYSTEMS, tuple((2048, batch) for batch in (1, 2, 4, 8, 16, 32))),
        "prefill-layer": Case(replace(prompt, n_layers=1), FLASH, ((8192, 1),), compile=(False, True)),
        "prefill-model": Case(replace(prompt, n_layers=2), FLASH, ((8192, 1),)),
        # The head is left out, nearly: it would be more than half of the work of one layer of this width.
        **{f"train-{length}": Case(layer, FLASH, ((length, 1),), compile=(False, True)) for length in (2048, 8192)},
        "train-systems": Case(replace(layer, workload="train_tokens"), TRAINED, ((1024, 1), (4096, 1))),
    }


def tables(records: Sequence[Record]) -> "list[Table]":
    """The limits, decode, its scaling, prefill, training and training of all systems: what of them was measured."""
    from retbench.report.speed_tables import speed_tables

    return speed_tables(records)


EXHIBITS = (
    Exhibit(
        "speed",
        "How near this machine's limits the models come",
        "speed",
        "retbench speed",
        tables,
        lambda records: {},
        sized=True,
    ),
)


if __name__ == "__main__":
    from retbench.cli import main

    sys.argv[1:1] = ["speed"]
    main()
