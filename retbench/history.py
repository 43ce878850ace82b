"""How each cell of the gate did over the stored runs, relative to a reference workload that never changes.

Times of different days are not comparable on most machines, ratios to the reference that ran between the calls are.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, cast

import typer

from retbench.compare import Format, check_format
from retbench.errors import UsageError
from retbench.record import Record
from retbench.spec import Cell
from retbench.store import Store

if TYPE_CHECKING:
    import numpy as np

    from retbench.statistics import Interval

SMALLEST_STEP = 0.05  # relative: what is less is not marked
FEWEST_RUNS = 3  # before and after a step
ERROR = 0.01  # odds of marking a step where the order of runs means nothing
SHUFFLES = 499

Results = Annotated[Path, typer.Argument(help="A file of gate records, or a folder with such files, named gate.jsonl.")]
Out = Annotated[Path, typer.Option(help="Folder that gets reports/history.")]


@dataclass(frozen=True)
class Run:
    """One run of a cell: its time as a multiple of the reference workload's."""

    created_at: str
    commit: str
    relative: "Interval"


@dataclass(frozen=True)
class History:
    """The runs of a cell, oldest first, and the places of those from which on it was slower or faster."""

    cell: Cell
    machine: str
    runs: tuple[Run, ...]
    steps: tuple[int, ...]

    def change(self, step: int) -> float:
        """The ratio of the medians after and before a step, up to its neighbours."""
        return change([run.relative.value for run in self.runs], self.steps, step)


def command(
    results: Results = Path("results"),
    out: Out = Path(),
    output_format: Format = "table",
) -> None:
    check_format(output_format)
    found, problems = histories(results)

    from retbench.report.figures import history as figure
    from retbench.report.figures import save_all
    from retbench.report.history_table import history_table
    from retbench.report.tables import Format as TableFormat
    from retbench.report.tables import render

    render(history_table(found, problems), cast(TableFormat, output_format), sys.stdout)
    files = save_all({"history": figure.draw(found)}, out / "reports" / "history")
    print(f"figures: {', '.join(map(str, files))}", file=sys.stderr)


def histories(path: Path) -> tuple[list[History], tuple[str, ...]]:
    """One for every cell, machine and version of the reference, and the lines that are no records.

    UsageError where nothing is stored.
    """
    files = sorted(path.rglob("gate.jsonl")) if path.is_dir() else [path]
    contents = [Store(file).read() for file in files]
    series: dict[tuple[Cell, str, object], list[Record]] = {}
    for record in sorted((one for some in contents for one in some.records), key=lambda one: one.created_at):
        if record.status == "ok" and "reference" in record.notes and record.samples.get("work_ns"):
            machine = str(record.environment.get("machine"))
            series.setdefault((record.cell.requested, machine, record.notes.get("reference")), []).append(record)
    if not series:
        raise UsageError(f"{path} holds no runs of a gate; retbench gate stores them")
    found = []
    for (cell, machine, _), records in series.items():
        runs = tuple(map(_run, records))
        found.append(History(cell, machine, runs, tuple(steps([run.relative.value for run in runs]))))
    return found, tuple(problem for some in contents for problem in some.problems)


def steps(values: Sequence[float]) -> list[int]:
    """Places from which on values differ from those before, by SMALLEST_STEP at least."""
    found = _segments(values)
    while found:
        sizes = {step: abs(math.log(change(values, found, step))) for step in found}
        least = min(found, key=lambda step: sizes[step])
        if sizes[least] >= math.log1p(SMALLEST_STEP):
            break
        found.remove(least)
    return found


def change(values: Sequence[float], found: Sequence[int], step: int) -> float:
    """The ratio of the medians after and before a step, up to the steps beside it."""
    before = max((other for other in found if other < step), default=0)
    after = min((other for other in found if other > step), default=len(values))
    return median(values[step:after]) / median(values[before:step])


def _segments(values: Sequence[float], first: int = 0) -> list[int]:
    """Where segments begin; ``first`` is added to them.

    Circular binary segmentation (Olshen et al. 2004): the run of values that differs most from the rest counts where
    its median does so by SMALLEST_STEP and where hardly any order of the same values has as clear a one.
    """
    import numpy as np

    logs = np.log(np.asarray(values, dtype=float))
    if len(logs) < 2 * FEWEST_RUNS:
        return []
    begin, end, clarity = _clearest(logs)
    rest = np.concatenate([logs[:begin], logs[end:]])
    if abs(np.median(logs[begin:end]) - np.median(rest)) < np.log1p(SMALLEST_STEP):
        return []
    generator = np.random.default_rng(0)
    as_clear = sum(_clearest(generator.permutation(logs))[2] >= clarity for _ in range(SHUFFLES))
    if (as_clear + 1) / (SHUFFLES + 1) > ERROR:
        return []
    ends = [0, *(end for end in (begin, end) if 0 < end < len(logs)), len(logs)]
    within = [step for one, two in pairwise(ends) for step in _segments(values[one:two], first + one)]
    return sorted([*(first + end for end in ends[1:-1]), *within])


def _clearest(logs: "np.ndarray") -> tuple[int, int, float]:
    """Begin and end of the run of values whose mean differs most from the rest, and Student's t of that difference."""
    import numpy as np

    count, sums = len(logs), np.concatenate([[0.0], np.cumsum(logs)])
    places = np.array([0, *range(FEWEST_RUNS, count - FEWEST_RUNS + 1), count])  # no shorter run at either end
    first, last = np.triu_indices(len(places), 1)
    begin, end = places[first], places[last]
    long = (end - begin >= FEWEST_RUNS) & (end - begin <= count - FEWEST_RUNS)
    begin, end = begin[long], end[long]
    length, total = end - begin, sums[-1]
    inside = sums[end] - sums[begin]
    outside = total - inside
    squares = np.square(logs).sum() - inside**2 / length - outside**2 / (count - length)  # around the two means
    error = np.sqrt(np.maximum(squares, 1e-18) / count * (1 / length + 1 / (count - length)))
    clarity = np.abs(inside / length - outside / (count - length)) / error
    best = int(np.argmax(clarity))
    return int(begin[best]), int(end[best]), float(clarity[best])


def _run(record: Record) -> Run:
    from retbench.gate_run import Side
    from retbench.statistics import median_interval

    relative = median_interval([process.relative() for process in Side.of(record).processes])
    return Run(record.created_at, str(record.environment.get("commit"))[:12], relative)
