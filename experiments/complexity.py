"""Table 1: how time and memory of training, prefill and decode grow over the length, system by system.

Each system runs at lengths that double up to --seq-len, as long as the time lasts; the exponents are fitted to the
longest ones and compared with what the paper says. Records go to results/, the figure to reports/complexity/.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retbench import options
from retbench.options import Grid
from retbench.quantities import parse_duration
from retbench.record import Record
from retbench.registry import numbers_beside
from retbench.report.exhibit import Exhibit
from retbench.spec import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from retbench.report.tables import Entry, Table
    from retbench.statistics import Interval

VOCAB_SIZE = 256  # small, so that the head does not hide what grows with the length
SYSTEMS = "transformer,transformer-flash,linear-transformer,lstm,rwkv,h3,hyena,retnet"
ORDERS: dict[str, Callable[[float], float]] = {  # the exponent seen around a length
    "O(1)": lambda length: 0.0,
    "O(N)": lambda length: 1.0,
    "O(N log N)": lambda length: 1.0 + 1.0 / math.log(length),
    "O(N^2)": lambda length: 2.0,
}
TIME_TOLERANCE, BYTE_TOLERANCE = 0.15, 0.03  # of an exponent, for terms that have not died out at these lengths
PARALLEL, SEQUENTIAL = 0.6, 0.5  # parallel_share: above, positions are read together; below, one after the other


def command(
    seq_len: options.SeqLen = "16384",
    batch_size: options.BatchSize = "1",
    systems: options.Systems = SYSTEMS,
    size: options.Size = "mini",
    dtype: options.DtypeName = "auto",
    device: options.DeviceName = "auto",
    threads: options.Threads = 0,
    budget: options.Budget = "6m",
    mem_limit: options.MemLimit = "",
    out: options.Out = Path(),
    fresh: options.Fresh = False,
    dry_run: options.DryRun = False,
    seed: options.Seed = 0,
    output_format: options.Format = "table",
) -> None:
    grid = Grid(seq_len, batch_size, systems, size, dtype, device, threads, mem_limit, seed)
    options.check_format(output_format)
    chosen_device, found = grid.cells("complexity")
    cells = [replace(cell, vocab_size=VOCAB_SIZE) for cell in found]
    budget_s = parse_duration(budget, "--budget")

    from retbench.session import Report, Session

    session = Session("complexity", chosen_device, cells, out, budget_s, fresh, dry_run, output_format)
    session.run(Report(tables, figures))


def tables(records: Sequence[Record]) -> "list[Table]":
    """Table 1 measured, a row for each system and claim; then every exponent of every system."""
    from retbench.report.conditions import disturbance_words, measured_words
    from retbench.report.growth import CONSTANT
    from retbench.report.tables import Column, Entry, Table

    constant = (
        f"a time that grows by under {CONSTANT * 100:g} % over all lengths is called constant, without an interval"
    )
    conditions = (f"measured on {measured_words(records)}", *disturbance_words(records))
    claims = (
        Column("system", "system", justify="left"),
        Column("quantity", "what", justify="left"),
        Column("measured", "measured"),
        Column("low", "95 % interval"),
        Column("high", "its upper end", detail="data"),
        Column("paper", "paper says", justify="left"),
        Column("verdict", "verdict", justify="left"),
    )
    exponents = (
        Column("system", "system", justify="left"),
        *(Column(f"{name}_exponent", head, "exponent") for name, head in _EXPONENTS.items()),
        Column("parallel_speedup", "at\nonce", "ratio"),
        Column("longest", "up to\ntokens", "tokens"),
    )
    return [
        Table(
            name="complexity",
            title="Table 1, measured",
            columns=claims,
            rows=tuple(row for record in records for row in _claim_rows(record)),
            footnotes=(*_NOTES, constant, *_shortfalls(records), *conditions),
            section=("system",),
        ),
        Table(
            name="exponents",
            title="Exponents over the length",
            columns=exponents,
            rows=tuple(
                (
                    Entry(record.cell.system, record.cell.system),
                    *_exponent_entries(record),
                    _at_once(record),
                    _longest(record),
                )
                for record in records
            ),
            footnotes=conditions,
        ),
    ]


def figures(records: Sequence[Record]) -> "Mapping[str, Figure]":
    """Four log-log panels, one line a system with its fitted exponent."""
    from matplotlib.figure import Figure

    from retbench.report.conditions import hardware_words
    from retbench.report.layout import caption
    from retbench.report.panels import machine_handles, machine_line
    from retbench.report.style import PAGE_WIDTH, looks, styled

    look = looks(record.cell.system for record in records)
    machines = list(dict.fromkeys(record.machine for record in records))
    with styled():
        figure = Figure(figsize=(PAGE_WIDTH, 5.6), layout="constrained")
        for ax, (name, title, unit, key, scale) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
            ax.set(xscale="log", yscale="log", title=title, xlabel="length (tokens)", ylabel=unit)
            for record in records:
                line = machine_line(machines.index(record.machine))
                _draw_line(ax, record, look[record.cell.system], line, name, key, scale, several=len(machines) > 1)
            _finish(ax, sorted({point["context"] for record in records for point in record.contexts}))
        if len(machines) > 1:
            figure.legend(handles=machine_handles(machines), loc="outside upper left", ncols=4)
        words = f"{records[0].cell.size}, batch {records[0].cell.batch_size}, {hardware_words(records)}"
        caption(figure, f"Measured: {words}; numbers are exponents fitted to the longest lengths.", PAGE_WIDTH)
    return {"complexity": figure}


def main_setting(records: Sequence[Record]) -> list[Record]:
    """Of each machine the records of one size, length and so on: where most systems were measured, the longest then."""
    kept = list[Record]()
    for machine in dict.fromkeys(record.machine for record in records):
        settings: dict[Cell, list[Record]] = {}
        for record in records:
            if record.machine == machine:
                cell = replace(record.cell.requested, system="")
                settings.setdefault(cell, []).append(record)
        best: list[Record] = max(settings.values(), key=_size_of_setting)
        kept += best
    return kept


def _size_of_setting(records: list[Record]) -> tuple[int, int]:
    """How many systems were measured in it, and how far."""
    return sum(record.status == "ok" for record in records), records[0].cell.seq_len


# ---- exponents

_EXPONENTS = {
    "decode": "decode\ntime",
    "step_bytes": "step\nbytes",
    "state": "state\nbytes",
    "prefill": "prefill\ntime",
    "prefill_memory": "prefill\nbytes",
    "train": "train\ntime",
    "train_memory": "train\nbytes",
}


def exponents(record: Record) -> "dict[str, Interval | None]":
    """The exponent of each quantity of ``_EXPONENTS``, None where the lengths measured do not tell."""
    from retbench.report.growth import added_time_growth, byte_growth, time_growth

    def known(key: str) -> dict[int, Any]:
        return {point["context"]: point[key] for point in record.contexts if key in point}

    return {
        "decode": added_time_growth(known("decode_ms_groups")),
        "step_bytes": byte_growth(known("step_bytes")),
        "state": byte_growth(known("state_bytes")),
        "prefill": time_growth(known("prefill_ms_groups")),
        "prefill_memory": byte_growth(known("prefill_peak_memory_bytes")),
        "train": time_growth(known("train_ms_groups")),
        "train_memory": byte_growth(known("train_peak_memory_bytes")),
    }


def _exponent_entries(record: Record) -> "list[Entry]":
    return [_interval_entry(found) for found in exponents(record).values()]


def _interval_entry(found: "Interval | None") -> "Entry":
    from retbench.report.numbers import ABSENT
    from retbench.report.tables import Entry

    return Entry(found.value, f"{found.value:.2f}") if found else Entry(None, ABSENT)


def _at_once(record: Record) -> "Entry":
    """How many times faster a training step reads positions at once than one by one."""
    from retbench.report.numbers import ABSENT, significant
    from retbench.report.tables import Entry

    speedup = record.metrics.get("parallel_speedup")
    return Entry(speedup, ABSENT if speedup is None else f"{significant(speedup, 2)}x")


def _longest(record: Record) -> "Entry":
    from retbench.report.numbers import ABSENT, length
    from retbench.report.tables import Entry

    found = [point["context"] for point in record.contexts if "train_ms" in point]
    return Entry(max(found), length(max(found))) if found else Entry(None, ABSENT)


# ---- claims


@cache
def paper_claims() -> dict[str, dict[str, Any]]:
    """System -> its row of Table 1."""
    claims: dict[str, dict[str, Any]] = numbers_beside(__file__)["systems"]
    return claims


def verdict(found: "Interval | None", order: str, orders: Sequence[str], length: float, tolerance: float) -> str:
    """Whether an exponent measured around ``length`` agrees with an order of growth: agrees, differs or undecided.

    The interval, widened by the tolerance, decides; it is undecided when another one of ``orders`` fits as well.
    """
    if found is None:
        return "undecided"
    low, high = found.low - tolerance, found.high + tolerance
    fitting = [name for name in orders if low <= ORDERS[name](length) <= high]
    if order not in fitting:
        return "differs" if fitting or found.high - found.low < 0.5 else "undecided"
    return "agrees" if fitting == [order] else "undecided"


def parallel_verdict(share: "Interval | None", claimed: bool) -> str:
    """Whether the share of a mixer (``measure.parallelism``) agrees with the claim that its training is parallel."""
    if share is None or (share.low <= PARALLEL and share.high >= SEQUENTIAL):
        return "undecided"
    return "agrees" if (share.low > PARALLEL) == claimed else "differs"


def _claim_rows(record: Record) -> "list[tuple[Entry, ...]]":
    """The claims of the paper about one system, beside what was measured; one row of dashes for what it has none."""
    from retbench.report.numbers import ABSENT
    from retbench.report.tables import Entry

    system, claim = Entry(record.cell.system, record.cell.system), paper_claims().get(record.cell.system)
    if record.status != "ok" and not record.contexts:
        return [(system, *(Entry(None, ABSENT),) * 5, Entry(record.status, record.status, failed=True))]
    found, around = exponents(record), math.sqrt(record.cell.seq_len * record.cell.seq_len / 8)
    rows = []
    for name, words, key, orders, tolerance in _CLAIMS:
        said = claim[key] if claim else None
        decided = verdict(found[name], said, orders, around, tolerance) if said else ABSENT
        measured = _measured_entries(found[name], timed=name == "decode")
        rows.append((system, Entry(name, words), *measured, *_said(said, decided)))
    return [_parallel_row(record, system, claim), *rows]


def _measured_entries(found: "Interval | None", timed: bool) -> "tuple[Entry, Entry, Entry]":
    """The exponent with its interval; a time that is called constant has none."""
    from retbench.report.numbers import ABSENT
    from retbench.report.tables import Entry

    if found is None:
        return (Entry(None, ABSENT),) * 3
    entry = Entry(found.value, f"N^{found.value:.2f}" if found.value else "constant")
    if timed and not found.value:
        return entry, Entry(None, ABSENT), Entry(None, ABSENT)
    return entry, Entry(found.low, f"{found.low:.2f} to {found.high:.2f}"), Entry(found.high, f"{found.high:.2f}")


def _parallel_row(record: Record, system: "Entry", claim: dict[str, Any] | None) -> "tuple[Entry, ...]":
    """Training parallelism: single positions side by side / positions of one text, of the mixer."""
    from retbench.report.numbers import ABSENT, ratio
    from retbench.report.tables import Entry

    share = _metric_interval(record, "parallel_share")
    said = None if claim is None else "yes" if claim["training_parallel"] else "no"
    entries = (Entry(None, ABSENT),) * 3
    if share:
        words = f"{ratio(share.low)} to {ratio(share.high)}"
        entries = (
            Entry(share.value, ratio(share.value)),
            Entry(share.low, words),
            Entry(share.high, ratio(share.high)),
        )
    decided = parallel_verdict(share, said == "yes") if said else ABSENT
    return system, Entry("training_parallel", "training, parallel"), *entries, *_said(said, decided)


def _metric_interval(record: Record, name: str) -> "Interval | None":
    from retbench.statistics import Interval

    found = [record.metrics.get(f"{name}{end}") for end in ("", "_low", "_high")]
    return None if None in found else Interval(*(float(value) for value in found if value is not None))


def _said(said: str | None, decided: str) -> "tuple[Entry, Entry]":
    from retbench.report.numbers import ABSENT
    from retbench.report.tables import Entry

    return Entry(said, said or ABSENT), Entry(decided, decided, failed=decided == "differs")


_CLAIMS = (
    ("decode", "decode, time a token", "inference_cost", ("O(1)", "O(N)"), TIME_TOLERANCE),
    ("step_bytes", "decode, bytes a token", "inference_cost", ("O(1)", "O(N)"), BYTE_TOLERANCE),
    ("train_memory", "training, memory", "memory", ("O(N)", "O(N log N)", "O(N^2)"), BYTE_TOLERANCE),
)

_NOTES = (
    "exponents are fitted to the longest lengths; decode: what the context adds to the time of a step, and the bytes "
    "of state that it must move; memory: the fastest-growing term of exact bytes, forward + backward",
    f"the vocabulary is {VOCAB_SIZE}, so that the head does not hide what grows",
    "parallel: forward + backward of one layer's mixer, 64 wide, over 256 texts of one position / over one text of 256 "
    f"positions: the same products; above {PARALLEL:g} positions are read together, below {SEQUENTIAL:g} they wait for "
    "each other; at once: of the whole model, the time of single positions / of as many at once",
)


def _shortfalls(records: Sequence[Record]) -> tuple[str, ...]:
    """Why some lengths were not measured, and what failed."""
    lines = []
    for record in records:
        if record.status != "ok":
            lines.append(f"{record.cell.system}: {record.status}, {record.reason}")
        for kind in ("decode", "prefill", "train"):
            if reason := record.notes.get(f"{kind}_stopped"):
                done = max((point["context"] for point in record.contexts if f"{kind}_ms" in point), default=0)
                lines.append(f"{record.cell.system}: {kind} up to {done} only, the next length {reason}")
    return tuple(lines)


# ---- the figure

_PANELS = (
    ("decode", "(a) one decode step", "ms", "decode_ms", 1.0),
    ("prefill", "(b) prefill", "ms", "prefill_ms", 1.0),
    ("train", "(c) training step, forward + backward", "ms", "train_ms", 1.0),
    ("train_memory", "(d) memory of the training step", "MiB", "train_peak_memory_bytes", 2.0**20),
)


def _draw_line(
    ax: "Axes", record: Record, look: Any, line: Any, name: str, key: str, scale: float, several: bool
) -> None:
    """One system's line under its exponent, and under its machine where there are several."""
    points = [(point["context"], point[key] / scale) for point in record.contexts if key in point]
    if not points:
        return
    found = exponents(record)[name]
    label = f"{record.cell.system}  {found.value:.2f}" if found else record.cell.system
    label += f", {record.environment.get('machine')}" * several
    x, y = zip(*points, strict=True)
    ax.plot(x, y, color=look.colour, marker=look.marker, linestyle=line, label=label)


def _finish(ax: "Axes", lengths: Sequence[int]) -> None:
    """Lengths as ticks, plain numbers beside them, the legend with the exponents beside the panel."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    from retbench.report.numbers import length

    ax.set_xticks(lengths, [length(tick) for tick in lengths])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if ax.lines:
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


EXHIBITS = (
    Exhibit(
        "table1",
        "Table 1: what training, decoding and long sequences cost",
        "complexity",
        "retbench complexity",
        lambda records: tables(main_setting(records)),
        lambda records: figures(main_setting(records)),
        overlays=True,
        systems=tuple(paper_claims()),
    ),
)
