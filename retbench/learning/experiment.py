"""A learning experiment from the command line: the preset's cells, their runs, tables and figures."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from models.catalogue import paper_systems
from retbench import options, ranks
from retbench.devices import find_device
from retbench.errors import UsageError
from retbench.learning.presets import Preset, find_preset, presets
from retbench.learning.run import ORDERS, Run
from retbench.learning.vocabulary import promised_size
from retbench.quantities import parse_counts, parse_duration
from retbench.record import Record
from retbench.registry import choose
from retbench.spec import Cell, Training

if TYPE_CHECKING:
    from rich.console import Console

    from retbench.learning.suite import Suite
    from retbench.session import Report

MOST_SEEDS = 100
PLAN_FOR = {"cpu": "cpu", "cuda": "a100-80gb"}  # by device, where a dry run has no specification of its preset's
ONE_DEVICE = "a run is on one device; several train one model by retbench train --data-parallel N --fsdp"

PresetName = Annotated[
    str, typer.Option("--preset", help=f"auto (by the device), {', '.join(presets())}; {ONE_DEVICE}.")
]
Seeds = Annotated[
    int | None,
    typer.Option(help="Runs of each system, with seeds 0, 1, ...; default: the preset's.", min=1, max=MOST_SEEDS),
]
TrainTokens = Annotated[str, typer.Option("--tokens", help="Tokens to train on: 512k, 2m; default: the preset's.")]
Budget = Annotated[
    str, typer.Option(help="Time of all runs on two cores, 25m; it sets the tokens, by the preset's stated speeds.")
]
Corpora = Annotated[
    list[str] | None,
    typer.Option(
        "--corpus", help="As for train: the first is trained on, the others are only scored, whole; repeatable."
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Train again what is trained already.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the runs and what a step of each needs; run nothing.")]


@dataclass(frozen=True)
class Asked:
    """Options as typed."""

    systems: str
    preset: str
    seeds: int | None
    tokens: str
    budget: str
    corpora: list[str] | None
    dtype: str
    device: str
    threads: int
    out: Path
    fresh: bool
    dry_run: bool
    output_format: str

    def setting(self) -> tuple[Preset, list[str], int]:
        """The preset with all that was typed, the systems with the n-grams before them, and how many seeds."""
        ranks.check_alone()
        options.check_format(self.output_format)
        preset = find_preset(self.preset, self.device)
        systems = choose(self.systems, paper_systems(), "system")
        seeds = self.seeds or preset.seeds
        if self.tokens and self.budget:
            raise UsageError("--tokens and --budget both set the tokens: give one of them")
        if self.corpora:
            preset = replace(preset, corpus=self.corpora[0], others=tuple(self.corpora[1:]))
        preset = replace(preset, others=tuple(name for name in preset.others if name != preset.corpus))
        if self.device != "auto" and (name := find_device(self.device).name) != preset.device:
            preset = replace(preset, device=name, plan_for=PLAN_FOR[name])
        if self.dtype != "auto":
            preset = replace(preset, dtype=options.trainable(options.check_dtype(self.dtype)))
        if self.tokens:
            preset = replace(preset, tokens=max(parse_counts(self.tokens, "--tokens")))
        if self.budget:
            preset = preset.within(parse_duration(self.budget, "--budget"), systems, seeds)
        return preset, [*ORDERS, *systems], seeds


def run(experiment: str, asked: Asked, report: "Report") -> None:
    """Trains what is not trained yet and shows everything; a dry run shows what a step of each system needs.

    Raises UsageError for a preset of several sizes: in one table of systems only the last would be seen.
    """
    preset, systems, seeds = asked.setting()
    if len(preset.sizes) > 1 and not asked.dry_run:
        sizes = ", ".join(preset.sizes)
        raise UsageError(
            f"preset {preset.name} has the sizes {sizes}, and {experiment} shows one: retbench scaling trains several"
        )
    run_cells(experiment, preset.cells(systems, seeds), preset, asked, report)


def run_cells(experiment: str, cells: Sequence[Cell], preset: Preset, asked: Asked, report: "Report") -> None:
    """``run`` of some of the cells of a preset."""
    from rich.console import Console

    console = Console(stderr=True)
    if not asked.dry_run:
        train(experiment, cells, asked, report, console)
        return
    _say(console, _choice(cells))
    dry_run(cells, preset.plan_for, asked.output_format, [ONE_DEVICE])


def dry_run(cells: Sequence[Cell], specification: str, output_format: str, notes: Sequence[str] = ()) -> None:
    """What an optimizer step of every system needs on a device that need not be here.

    Two of its micro-batches are planned: more of them need no more memory.
    """
    from retbench import plan
    from retbench.report.tables import Format, render
    from retbench.session import plan_table
    from retbench.specifications import find_specification

    device = find_specification(specification)
    models = [cell for cell in cells if cell.system not in ORDERS]
    steps = list(dict.fromkeys(_step(cell) for cell in models))
    predictions, problems = plan.predict(steps)
    table = plan_table(
        steps, predictions, [f"planned for {device.description}", *notes, *problems], device.memory_bytes
    )
    render([table], cast(Format, "json" if output_format == "jsonl" else output_format), sys.stdout)


def _step(cell: Cell) -> Cell:
    training = cell.training or Training()
    shortened = replace(training, grad_accumulation=min(training.grad_accumulation, 2))
    vocab_size = cell.vocab_size or (promised_size(cell.learning.tokenizer) if cell.learning else None)
    step = replace(cell, workload="train_step", learning=None, recall=None, seed=0, training=shortened)
    return replace(step, vocab_size=vocab_size)


def train(experiment: str, cells: Sequence[Cell], asked: Asked, report: "Report", console: "Console") -> None:
    """Runs the cells and shows their tables and figures."""
    from retbench.learning.material import bound, read_material  # these load numpy
    from retbench.learning.suite import Suite

    first = cells[0]
    assert first.learning is not None, "a preset's cells learn"
    device = find_device(first.device)
    threads = options.check_threads(asked.threads, device)
    material = read_material(first.learning.corpus, first.learning.others, first.learning.tokenizer)
    Run.of_cell(first).batches(material.trained.train.ids)  # or there is too little
    jobs = threads // first.threads if device.name == "cpu" else 1
    _say(console, _choice(cells))
    suite = Suite(experiment, bound(cells, material), device, material, asked.out, jobs)
    run_suite(suite, report, asked.fresh, asked.output_format, console)


def run_suite(suite: "Suite", report: "Report", fresh: bool, output_format: str, console: "Console") -> None:
    """Runs what has no record yet and shows the tables and figures of all."""
    from retbench.session import show

    try:
        records = suite.run(console, fresh)
    except KeyboardInterrupt:
        _say(console, f"interrupted: what was trained is in {suite.out}; the same command continues")
        raise
    show(report.tables(records), records, output_format)
    _say(console, f"records: {suite.store.path}")
    draw(suite.experiment, report, records, suite.out, console)


def draw(experiment: str, report: "Report", records: Sequence[Record], out: Path, console: "Console") -> None:
    """Writes the figures below reports/."""
    from retbench.report.figures import save_all

    files = save_all(report.figures(records), out / "reports" / experiment)
    if files:
        _say(console, f"figures: {', '.join(map(str, files))}")


def _choice(cells: Sequence[Cell]) -> str:
    """What will be run, in a line."""
    models = [cell for cell in cells if cell.system not in ORDERS]
    first = Run.of_cell(models[0])
    names = (
        ", ".join(dict.fromkeys(str(getattr(cell, name)) for cell in models)) for name in ("system", "size", "seed")
    )
    systems, sizes, seeds = names
    return (
        f"{len(models)} run{'s' * (len(models) > 1)}: {systems}; size {sizes}; seed {seeds}; each {first.steps} steps "
        f"of {first.step_tokens} tokens of {first.corpus} by {first.tokenizer}, {first.dtype} on {first.device}"
    )


def _say(console: "Console", text: str) -> None:
    console.print(text, soft_wrap=True, markup=False, highlight=False)
