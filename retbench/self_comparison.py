"""A against A: how often a gate on this machine would be wrong, and the smallest slowdown that it would see."""

import sys
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from retbench import revision
from retbench.devices.cpu import DEVICE as CPU
from retbench.errors import UsageError
from retbench.gate import FEWEST_PAIRS, Pair, log_ratios, share_flagged
from retbench.gate_run import Execute, Side, run_brief
from retbench.spec import Cell
from retbench.timing import Deadline

if TYPE_CHECKING:
    from retbench.report.tables import Table

PAIRS = 10  # of the gates that are simulated: the first look of retbench gate
MARGIN = 0.05
GATES = 200
POWER = 0.8
SLOWDOWNS = (0.06, 0.07, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0)

# A process that stays below both was left alone.
QUIET_SWITCHES = 20  # times that the kernel took the processor away from it
QUIET_STOLEN = 0.05  # of the time, taken by the hypervisor


@dataclass(frozen=True)
class Seen:
    """Log-ratios (P, BANK) of pairs of the same code, and which of them nothing disturbed."""

    ratios: np.ndarray
    quiet: np.ndarray  # (P,) bool


def compare_with_itself(budget_s: float, execute: Execute = run_brief) -> Seen:
    """Pairs of processes of a small decode cell until the time is up, at least two."""
    cell = Cell("retnet", "mini", "decode", 256, 1, CPU.default_dtype(), CPU.name, threads=1)
    sides = Side(), Side()
    with TemporaryDirectory(prefix="retbench-aa-") as folder:
        head = revision.head(Path(folder), CPU, threads=1)
        execute(head, cell, "timed")  # compiles and reads files: not counted
        deadline = Deadline(budget_s)
        while deadline.left_s > 0 or len(sides[1].processes) < 2:
            for side in sides:
                side.add(execute(head, cell, "timed"))
                if side.status != "ok":
                    raise UsageError(f"{cell.label}: {side.status}, {side.reason}")
            print(f"pair {len(sides[1].processes)}, {max(deadline.left_s, 0):.0f} s left", file=sys.stderr, flush=True)
    both = zip(*(side.processes for side in sides), strict=True)
    quiet = [_quiet(one) and _quiet(two) for one, two in zip(*(side.interference for side in sides), strict=True)]
    return Seen(log_ratios([Pair(one.relative(), two.relative()) for one, two in both]), np.array(quiet))


def self_table(seen: Seen) -> "Table":
    """The spread of pairs, false alarms and the detectable slowdown, of all pairs and of those that were left alone."""
    from retbench.report.tables import Column, Entry, Table

    columns = (
        Column("pairs", "Pairs", justify="left"),
        Column("count", "Number"),
        Column("spread", "Spread of a pair"),
        Column("false_alarms", "False alarms"),
        Column("detectable", f"Seen at {POWER:.0%} power"),
    )
    rows = []
    for name, ratios in (("all", seen.ratios), ("left alone", seen.ratios[seen.quiet])):
        if len(ratios) < FEWEST_PAIRS:
            too_few = [Entry(None, "too few") for _ in range(3)]
            rows.append((Entry(name, name), Entry(len(ratios), str(len(ratios))), *too_few))
            continue
        spread = float(np.std(np.median(ratios, axis=1)))
        alarms = share_flagged(ratios, PAIRS, MARGIN, GATES, swapped=True)
        least = detectable(ratios)
        numbers = (Entry(spread, f"{spread:.1%}"), Entry(alarms, f"{alarms:.1%}"))
        words = "none of those tried" if least is None else f"+{least:.0%}"
        rows.append((Entry(name, name), Entry(len(ratios), str(len(ratios))), *numbers, Entry(least, words)))
    disturbed = int(len(seen.quiet) - seen.quiet.sum())
    notes = (
        f"{GATES} gates of {PAIRS} pairs each, drawn from these; margin {MARGIN:.0%}; slowdowns put onto them (model)",
        f"{disturbed} of {len(seen.quiet)} pairs were disturbed: the processor was taken away more than "
        f"{QUIET_SWITCHES} times, or {QUIET_STOLEN:.0%} of the time was stolen",
    )
    return Table("aa", "The same code twice", columns, tuple(rows), notes)


def detectable(ratios: np.ndarray) -> float | None:
    """The smallest slowdown, of those tried, that gates see with a power of POWER; None where none is."""
    centred = ratios - np.median(ratios)

    def power(slowdown: float) -> float:
        return share_flagged(centred, PAIRS, MARGIN, GATES, 1 + slowdown)

    place = bisect_left(SLOWDOWNS, POWER, key=power)  # power grows with the slowdown
    return SLOWDOWNS[place] if place < len(SLOWDOWNS) else None


def _quiet(interference: dict[str, float]) -> bool:
    few = interference["involuntary_context_switches"] <= QUIET_SWITCHES
    return few and interference["stolen_share"] <= QUIET_STOLEN
