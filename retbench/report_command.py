"""Draws every table and figure of the paper from the stored records, with a verdict on every claim, into reports/."""

import gc
import sys
from pathlib import Path
from typing import Annotated

import typer

from retbench import options
from retbench.errors import UsageError
from retbench.registry import choose

Only = Annotated[str, typer.Option(help="Comma-separated exhibits, such as figure6,table4; an unknown one lists them.")]
Machine = Annotated[
    str, typer.Option(help="Comma-separated folders of results/; figures that can show several overlay them.")
]
Systems = Annotated[str, typer.Option(help="Comma-separated, of those that have records.")]


def command(
    only: Only = "all",
    systems: Systems = "all",
    machine: Machine = "all",
    out: options.Out = Path(),
) -> None:
    collects = gc.isenabled()
    gc.disable()  # a short run of many small objects, which looking for garbage again and again makes twice as long
    try:
        _report(only, systems, machine, out)
    finally:
        if collects:
            gc.enable()


def _report(only: str, systems: str, machine: str, out: Path) -> None:
    """Reads, draws and writes; raises UsageError before the earlier reports are touched."""
    from retbench.report.draw import draw, exhibits, read_records
    from retbench.report.files import PAGE, REPORT, replaced, write

    known = {exhibit.name: exhibit for exhibit in exhibits()}
    named = choose(only, known, "exhibit")
    chosen = [exhibit for name, exhibit in known.items() if name in named]
    results = read_records(out / "results", machine, systems)
    for problem in results.problems:
        print(problem, file=sys.stderr)
    drawn = draw(chosen, results.records, systems)
    folder = out / "reports"
    anew = {exhibit.experiment for exhibit in chosen} if len(chosen) == len(known) else set()
    try:
        with replaced(folder, anew) as new:
            write(drawn, new, results.problems)
    except OSError as error:
        reason = f"{error.filename or folder}: {error.strerror or error}"
        raise UsageError(f"cannot write {folder} ({reason}); the earlier reports are untouched") from error
    for one in drawn:
        print(f"{one.exhibit.name}: {one.missing or f'{len(one.records)} records'}", file=sys.stderr)
    print(folder / REPORT)
    print(folder / PAGE)
