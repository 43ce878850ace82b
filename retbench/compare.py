"""Two sets of records beside each other: the cells that both measured, what changed and how surely. It judges nothing.

A and B are files of records or folders of such files; ratios are B / A.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from retbench.errors import UsageError
from retbench.record import Record, RecordError
from retbench.spec import Cell
from retbench.store import latest

if TYPE_CHECKING:
    from retbench.statistics import Interval

FORMATS = ("table", "md", "csv", "json")
TIMES = {
    "work_ns": "work_ms",
    "step_ns": "tpot_ms",
    "cpu_ns": "tpot_cpu_ms",
    "prefill_ns": "ttft_ms",
    "prefill_cpu_ns": "ttft_cpu_ms",
}
FEWEST_SAMPLES = 3  # that an interval is made of
SAMPLED_BYTES = ("vm_hwm_bytes", "nvml_used_bytes", "cuda_reserved_bytes")  # the other bytes are counted

Kind = Literal["timed", "exact"]
Matched = tuple[str, Cell]  # experiment, and the cell as it was requested

Sets = Annotated[Path, typer.Argument(help="A file of records, or a folder of such files.", show_default=False)]
Format = Annotated[str, typer.Option("--format", help=f"What stdout gets: {', '.join(FORMATS)}.")]


@dataclass(frozen=True)
class Change:
    """A metric of a cell in both sets; ``ratio`` is after / before, with an interval where it was timed."""

    cell: Cell
    metric: str
    kind: Kind
    before: float
    after: float
    ratio: "Interval"


@dataclass(frozen=True)
class Comparison:
    """What changed of the matched cells, and in words what else has to be known of the two sets."""

    changes: tuple[Change, ...]
    notes: tuple[str, ...]


def command(a: Sets, b: Sets, output_format: Format = "table") -> None:
    check_format(output_format)
    comparison = compare(load(a), load(b))

    from retbench.report.compare_table import compare_table
    from retbench.report.tables import Format as TableFormat
    from retbench.report.tables import render

    render(compare_table(comparison, str(a), str(b)), cast(TableFormat, output_format), sys.stdout)


def check_format(text: str) -> str:
    """The format of a command that has no records to show."""
    if text not in FORMATS:
        raise UsageError(f"unknown format {text!r}; formats are {', '.join(FORMATS)}")
    return text


def load(path: Path) -> dict[Matched, Record]:
    """The records of a file or folder by what they measured, as they stand: nothing is repaired.

    Of records with the same key the last one counts. UsageError: nothing there, a line that is no record, or one cell
    twice with another code or environment.
    """
    files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    records = [record for file in files for record in _read(file)]
    if not records:
        raise UsageError(f"{path} holds no records")
    found: dict[Matched, Record] = {}
    for record in latest(records).values():
        matched = record.experiment, record.cell.requested
        other = found.setdefault(matched, record)
        if other is not record:
            commits = " and ".join(str(one.environment.get("commit"))[:12] for one in (other, record))
            raise UsageError(
                f"{path} holds {record.cell.label} ({record.cell.workload}) twice, of commits {commits} or of "
                "environments that differ: name a file with one of them"
            )
    return found


def compare(before: dict[Matched, Record], after: dict[Matched, Record]) -> Comparison:
    """The changes of all cells that both sets hold; UsageError where there is none."""
    common = [matched for matched in before if matched in after]
    if not common:
        raise UsageError(f"no cell is in both: {_some(before)} stand against {_some(after)}")
    pairs = [(before[matched], after[matched]) for matched in common]
    changes = tuple(change for pair in pairs for change in changes_of(*pair))
    notes = [*_failures(pairs), *_differences(pairs), *_missing("A", before, after), *_missing("B", after, before)]
    return Comparison(changes, tuple(notes))


def changes_of(before: Record, after: Record) -> Iterator[Change]:
    """Every series of nanoseconds and every counted metric that both records hold."""
    from retbench.statistics import ratio_interval

    for name in before.samples:
        first, second = groups(before, name), groups(after, name)
        if name.endswith("_ns") and first and second:
            ratio = ratio_interval(first, second)
            if min(sum(map(len, series)) for series in (first, second)) < FEWEST_SAMPLES:
                ratio = replace(ratio, low=math.nan, high=math.nan)
            metric = TIMES.get(name, f"{name.removesuffix('_ns')}_ms")
            yield Change(after.cell, metric, "timed", _median_ms(first), _median_ms(second), ratio)
    for name, one in before.metrics.items():
        two = after.metrics.get(name)
        if is_counted(name) and one is not None and two is not None:
            yield exact_change(after.cell, name, one, two)


def is_counted(metric: str) -> bool:
    """Whether the same code gives the same number."""
    return metric in ("parameters", "flops") or (metric.endswith("_bytes") and metric not in SAMPLED_BYTES)


def exact_change(cell: Cell, metric: str, before: float, after: float) -> Change:
    """A change of what is counted, whose ratio has no width; from nothing to something it is infinite."""
    from retbench.statistics import Interval

    ratio = 1.0 if before == after else after / before if before else math.inf
    return Change(cell, metric, "exact", before, after, Interval(ratio, ratio, ratio))


def groups(record: Record, name: str) -> list[list[int]]:
    """Samples by process where there were several, else by round, else all in one: what resembles each other."""
    samples = record.samples.get(name, [])
    sizes = record.notes.get("process_samples", {}).get(name)
    rounds = record.notes.get("rounds", 1)
    if sizes is None and rounds and len(samples) % rounds == 0:
        sizes = [len(samples) // rounds] * rounds
    if sizes is None or sum(sizes) != len(samples):
        sizes = [len(samples)]
    ends = [sum(sizes[: at + 1]) for at in range(len(sizes))]
    return [samples[end - size : end] for end, size in zip(ends, sizes, strict=True) if size]


def _read(file: Path) -> Iterator[Record]:
    """Strictly: half a file would compare half of what was measured."""
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror or error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield Record.from_json(line.decode())
            except (RecordError, UnicodeDecodeError) as error:
                raise UsageError(f"{file}:{number}: {str(error)[:160]}") from error


def _median_ms(samples: Sequence[Sequence[int]]) -> float:
    from statistics import median

    return median(value for group in samples for value in group) / 1e6


def _failures(pairs: Sequence[tuple[Record, Record]]) -> Iterator[str]:
    for pair in pairs:
        for name, record in zip("AB", pair, strict=True):
            if record.status != "ok":
                yield f"{name}: {record.cell.label} ({record.cell.workload}) is {record.status}: {record.reason}"


def _differences(pairs: Sequence[tuple[Record, Record]]) -> Iterator[str]:
    """One line for each condition that differs, with its values in A and B."""
    conditions = [(*_conditions(before, after), *_backends(before, after)) for before, after in pairs]
    for name, one, two in dict.fromkeys(entry for entries in conditions for entry in entries):
        yield f"{name} differs: {one} in A, {two} in B"


def _conditions(before: Record, after: Record) -> Iterator[tuple[str, str, str]]:
    for name in dict.fromkeys([*before.environment, *after.environment]):
        one, two = (str(record.environment.get(name))[:60] for record in (before, after))
        if one != two and name not in ("fingerprint", "code"):  # hashes of what the others say
            yield name, one, two


def _backends(before: Record, after: Record) -> Iterator[tuple[str, str, str]]:
    if before.cell.backend != after.cell.backend:
        yield f"backend of {after.cell.system}", before.cell.backend, after.cell.backend


def _missing(name: str, of: dict[Matched, Record], other: dict[Matched, Record]) -> Iterator[str]:
    alone = {matched: record for matched, record in of.items() if matched not in other}
    if alone:
        yield f"only in {name}: {_some(alone)}"


def _some(records: dict[Matched, Record]) -> str:
    labels = [f"{record.cell.label} ({record.cell.workload})" for record in records.values()]
    return "; ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")
