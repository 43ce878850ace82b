"""One run of an experiment from the command line: plan, sweep, tables, figures."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rich.console import Console

from models.catalogue import peer_of
from retbench import plan
from retbench.devices import Device
from retbench.isolate import run_worker
from retbench.plan import Prediction
from retbench.progress import Progress
from retbench.quantities import format_bytes, format_duration
from retbench.record import Record
from retbench.report.tables import Column, Entry, Format, Table, render, to_rich
from retbench.spec import Cell
from retbench.store import Store, results_path
from retbench.sweep import Execute, Sweep
from retbench.timing import Deadline

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Report:
    """How an experiment shows its records: tables, the first of them the main one, and figures by file stem."""

    tables: Callable[[Sequence[Record]], list[Table]]
    figures: Callable[[Sequence[Record]], Mapping[str, "Figure"]]


@dataclass(frozen=True)
class Session:
    """What the shared options say about running and showing, whatever the experiment."""

    experiment: str
    device: Device
    cells: Sequence[Cell]
    out: Path
    budget_s: float
    fresh: bool
    dry_run: bool
    output_format: str
    execute: Execute = run_worker  # how a cell is run

    def run(self, report: Report) -> None:
        """Measures what is not measured yet and shows everything; raises UsageError before anything is written."""
        console = Console(stderr=True)
        store = Store(results_path(self.out, self.device.slug(), self.experiment))
        sweep = Sweep.prepare(self.experiment, self.cells, self.device, store)
        if self.dry_run:
            self._say(console, self._choice())
            self._dry_run()
            return
        store.check_writable()
        self._say(console, self._choice())
        deadline = Deadline(self.budget_s)
        contents = store.read()
        for problem in contents.problems:
            self._say(console, problem)
        known = {} if self.fresh else sweep.measured(contents.records)
        todo = [cell for cell in self.cells if cell not in known]
        predictions = self._predict(todo, console)
        progress = Progress(len(self.cells), lambda some, width: to_rich(report.tables(some)[0], width), console)
        try:
            with progress:
                records = sweep.run(known, predictions, deadline, progress, self.execute)
        except KeyboardInterrupt:
            done = len(progress.records)
            self._say(console, f"interrupted: {done} of {len(self.cells)} cells are stored in {store.path};")
            self._say(console, "the same command continues")
            raise
        show(report.tables(records), records, self.output_format)
        self._draw(report, records, console, store.path)

    def _choice(self) -> str:
        """The expansion of the options, in a line."""
        first = self.cells[0]
        words = ", ".join(
            f"{name} {' '.join(dict.fromkeys(str(getattr(cell, field)) for cell in self.cells))}"
            for name, field in (("size", "size"), ("length", "seq_len"), ("batch", "batch_size"))
        )
        threads = f"{first.threads} thread" + ("s" if first.threads > 1 else "")
        budget = format_duration(self.budget_s)
        return f"{len(self.cells)} cells: {words}; {first.dtype} on {first.device}, {threads}, budget {budget}"

    def _predict(self, cells: Sequence[Cell], console: Console) -> dict[Cell, Prediction]:
        if not cells:
            return {}
        predictions, problems = plan.predict(cells)
        for problem in problems:
            self._say(console, problem)
        return dict(zip(cells, predictions, strict=True))

    def _dry_run(self) -> None:
        predictions, problems = plan.predict(self.cells)
        table = plan_table(self.cells, predictions, problems, self.device.free_bytes())
        fmt = "table" if self.output_format == "jsonl" else self.output_format
        render([table], cast(Format, fmt), sys.stdout)

    def _draw(self, report: Report, records: Sequence[Record], console: Console, path: Path) -> None:
        from retbench.report.figures import save_all

        drawn = save_all(report.figures(records), self.out / "reports" / self.experiment)
        self._say(console, f"records: {path}")
        if drawn:
            self._say(console, f"figures: {', '.join(str(file) for file in drawn)}")

    def _say(self, console: Console, text: str) -> None:
        console.print(text, soft_wrap=True, markup=False, highlight=False)


def show(tables: Sequence[Table], records: Sequence[Record], output_format: str) -> None:
    """Standard output in a format: the tables, or the records themselves as jsonl."""
    if output_format == "jsonl":
        sys.stdout.writelines(record.to_json() + "\n" for record in records)
    else:
        render(tables, cast(Format, output_format), sys.stdout)
    sys.stdout.flush()


def plan_table(cells: Sequence[Cell], predictions: Sequence[Prediction], problems: Sequence[str], free: int) -> Table:
    """Cells with their predicted bytes and whether they fit in the free memory."""
    training = cells[0].workload == "train_step"
    columns = (
        Column("system", "System", justify="left"),
        Column("size", "Size", justify="left"),
        Column("batch_size", "Batch"),
        Column("seq_len", "Length"),
        *(
            Column(f"{name}_bytes", header, unit="bytes")
            for name, header in (
                ("weights", "Weights"),
                *((("optimizer", "Optimizer"),) if training else (("state", "State"),)),
                ("peak_memory", "Peak,\ntraining" if training else "Peak,\ndecode"),
                *(() if training else (("prefill_peak_memory", "Peak,\nprefill"),)),
            )
        ),
        Column("fits", "Fits", justify="left"),
    )
    rows = []
    for cell, prediction in zip(cells, predictions, strict=True):
        described = [Entry(value, str(value)) for value in (cell.system, cell.size, cell.batch_size, cell.seq_len)]
        predicted = [prediction.get(column.name) for column in columns[4:-1]]
        sizes = [Entry(value, "unknown" if value is None else format_bytes(value)) for value in predicted]
        rows.append((*described, *sizes, _fit(cell, prediction, free)))
    shared = "; all of them must fit" if cells[0].device == "cpu" else ""
    twins = {cell.system: peer.twin for cell in cells if (peer := peer_of(cell.system))}
    notes = (
        f"{format_bytes(free)} are free; peaks are predicted (model), not measured",
        *(f"{row}: predicted as {twin}" for row, twin in twins.items()),
        *(f"bytes are those of one of {count} ranks{shared}" for count in set(map(_ranks, cells)) if count > 1),
        *problems,
    )
    return Table("plan", "Cells and their predicted bytes", columns, tuple(rows), notes)


def _ranks(cell: Cell) -> int:
    return cell.training.ranks if cell.training else 1


def _fit(cell: Cell, prediction: Prediction, free: int) -> Entry:
    if not prediction:
        return Entry(None, "unknown")
    if plan.needed_bytes(cell, prediction) > free:
        return Entry("no", "no", failed=True)
    if prediction["peak_memory_bytes"] > free:
        return Entry("part", "in part")
    if prediction.get("prefill_peak_memory_bytes", 0) > free:
        return Entry("decode", "decode only")
    return Entry("yes", "yes")
