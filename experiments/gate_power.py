"""How often the gate is wrong: false alarms without a change, and what it sees of real slowdowns of 10 % and 25 %.

Not one of the paper's. Records processes of the same models twice, and of copies whose every call does that much more
work, in random order while another process loads one core; gates are drawn from the recorded pairs.
Also run by: python -m experiments.gate_power
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, cast

import typer

from retbench import options
from retbench.compare import Format as FormatName
from retbench.compare import check_format
from retbench.devices import find_device
from retbench.quantities import parse_duration
from retbench.spec import Cell

if TYPE_CHECKING:
    import numpy as np

    from retbench.gate_run import Side
    from retbench.report.tables import Table
    from retbench.revision import Version

MARGIN = 0.05
SLOWDOWNS = {"slower by 10 %": 0.10, "slower by 25 %": 0.25}
SAME = ("base", "base again")
LOADER = "import numpy; a = numpy.ones((1024, 1024))\nwhile True: a @ a"  # products: it heats the core and fills caches

# Appended to the copy's language_model.py: products that take the asked share of the call's own time.
INJECTION = """

def _slowed(call):
    import time

    def run(self, *arguments):
        begin = time.process_time_ns()
        result = call(self, *arguments)
        now = time.process_time_ns()
        end = now + {share} * (now - begin)
        operand = torch.ones(64, 64)
        while time.process_time_ns() < end:
            operand @ operand
        return result

    return run


LanguageModel.step, LanguageModel.prefill = _slowed(LanguageModel.step), _slowed(LanguageModel.prefill)
"""

Pairs = Annotated[int, typer.Option(min=6, help="Pairs of processes of a gate.")]
Gates = Annotated[int, typer.Option(min=100, help="Gates drawn from the recorded pairs.")]
Load = Annotated[bool, typer.Option(help="Whether a process of ours loads one core meanwhile.")]


def command(
    pairs: Pairs = 30,
    gates: Gates = 400,
    load: Load = True,
    size: options.Size = "mini",
    seq_len: options.SeqLen = "256",
    budget: options.Budget = "10m",
    out: options.Out = Path(),
    output_format: FormatName = "table",
) -> None:
    check_format(output_format)
    budget_s, device = parse_duration(budget, "--budget"), find_device("cpu")
    _, cells = options.Grid(seq_len, "1", "retnet", size, "auto", "cpu", 1, "", 0).cells("decode")
    cells = [replace(cell, workload=workload) for cell in cells for workload in ("decode", "prefill")]

    from retbench import revision
    from retbench.report.tables import Format, render
    from retbench.store import Store, results_path

    store = Store(results_path(out, device.slug(), "gate-power"))
    store.check_writable()
    with TemporaryDirectory(prefix="retbench-power-") as folder:
        head = revision.head(Path(folder), device, threads=1)
        versions = [replace(head, name=name) for name in SAME]
        versions += [slowed(head, Path(folder) / name, name, share) for name, share in SLOWDOWNS.items()]
        with loaded_core(load):
            sides = record(cells, versions, budget_s)
    for (cell, name), side in sides.items():
        store.append(side.record(f"gate_power, {name}", cell, head))
    render(power_table(cells, sides, pairs, gates), cast(Format, output_format), sys.stdout)


def slowed(version: "Version", folder: Path, name: str, share: float) -> "Version":
    """A copy whose every step and prefill takes that share longer."""
    shutil.copytree(version.root, folder)
    with (folder / "models" / "language_model.py").open("a", encoding="utf-8") as file:
        file.write(INJECTION.format(share=share))
    return replace(version, name=name, root=folder)


@contextmanager
def loaded_core(load: bool) -> Iterator[None]:
    """A process beside ours that computes all the time on one thread."""
    from retbench.environment import child_variables

    loader = subprocess.Popen([sys.executable, "-c", LOADER], env=child_variables(1)) if load else None
    try:
        yield
    finally:
        if loader:
            loader.kill()
            loader.wait()


def record(cells: Sequence[Cell], versions: "Sequence[Version]", budget_s: float) -> "dict[tuple[Cell, str], Side]":
    """Rounds of one process of each version of a cell, in random order, until the time is up."""
    import numpy as np

    from retbench.gate_run import Side, run_brief
    from retbench.timing import Deadline

    generator, deadline = np.random.default_rng(0), Deadline(budget_s)
    sides = {(cell, version.name): Side() for cell in cells for version in versions}
    rounds = 0
    while deadline.left_s > 0:
        for cell in cells:
            for at in generator.permutation(len(versions)):
                sides[cell, versions[at].name].add(run_brief(versions[at], cell, "timed"))
        rounds += 1
        print(f"round {rounds}, {max(deadline.left_s, 0):.0f} s left", file=sys.stderr, flush=True)
    return sides


def power_table(cells: Sequence[Cell], sides: "dict[tuple[Cell, str], Side]", pairs: int, gates: int) -> "Table":
    """Of gates at ``pairs`` pairs: the share that sees a regression, of the same code and of the slowed copies."""
    from retbench.gate import FEWEST_PAIRS, share_flagged
    from retbench.report.compare_table import cell_words, entries
    from retbench.report.tables import Column, Entry, Table

    failures = [side.reason for side in sides.values() if side.reason]
    columns = [Column("cell", "Cell", justify="left"), Column("rounds", "Rounds"), Column("same", "False\nalarms")]
    for name in SLOWDOWNS:
        columns += [Column(f"{name}, seen as", f"{name}:\nseen as"), Column(name, "\nflagged")]
    rows = []
    for cell in cells:
        first, *others = (sides[cell, name] for name in (*SAME, *SLOWDOWNS))
        rounds = len(first.processes)
        if rounds < FEWEST_PAIRS or failures:
            continue
        again, *slower = (_log_ratios(first, other) for other in others)
        numbers = [share_flagged(again, pairs, MARGIN, gates, swapped=True)]
        words = [f"{numbers[0]:.1%}"]
        for ratios in slower:
            numbers += [_median_ratio(ratios), share_flagged(ratios, pairs, MARGIN, gates)]
            words += [f"{numbers[-2]:.3f}", f"{numbers[-1]:.1%}"]
        label = cell_words(cell)
        rows.append((Entry(label, label), Entry(rounds, str(rounds)), *entries(numbers, words)))
    loads = [seen["load_average"] for side in sides.values() for seen in side.interference]
    notes = (
        f"{gates} gates of {pairs} pairs each, drawn with replacement from the recorded rounds; margin {MARGIN:.0%}; "
        "where both are the same code, base and head of each pair are exchanged by the toss of a coin",
        f"load average {min(loads, default=0):.1f} to {max(loads, default=0):.1f} on {os.cpu_count()} processors",
        *(f"failed: {reason}" for reason in failures),
    )
    title = "How often the gate sees a regression"
    return Table("gate_power", title, tuple(columns), tuple(rows), notes, section=("cell",))


def _log_ratios(base: "Side", head: "Side") -> "np.ndarray":
    from retbench.gate import Pair, log_ratios

    both = zip(base.processes, head.processes, strict=False)
    return log_ratios([Pair(one.relative(), two.relative()) for one, two in both])


def _median_ratio(ratios: "np.ndarray") -> float:
    """The typical ratio of a pair."""
    import numpy as np

    return float(np.exp(np.median(ratios)))


if __name__ == "__main__":
    from retbench.cli import main

    sys.argv[1:1] = ["gate-power"]
    main()
