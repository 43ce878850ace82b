"""Decides whether this working tree is slower or needs more memory than a base, and says so by its exit status.

0 ok or improved, 1 regressed, 2 bad input, 3 inconclusive, 4 nothing comparable, 5 a required cell failed. Base and
head run in pairs of processes, one thread each on a CPU; times are CPU time there and event time on CUDA. What can be
counted is compared to the byte.
"""

import os
import signal
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
from retbench.compare import check_format, load
from retbench.devices import Device
from retbench.environment import NOT_IDENTIFYING
from retbench.errors import UsageError
from retbench.options import Grid
from retbench.quantities import parse_duration
from retbench.registry import choose
from retbench.spec import Cell

if TYPE_CHECKING:
    from retbench.gate_run import Course, Gate
    from retbench.record import Record
    from retbench.revision import Version

WORKLOADS = {"inference": ("decode", "prefill"), "training": ("train_step",)}
DEFAULT_BASE = "origin/main"
MOST_MARGIN = 1.0
LOOKS = 3  # that a baseline has processes for

BaseRef = Annotated[str, typer.Option(help=f"The commit to compare with; {DEFAULT_BASE} without --baseline.")]
Baseline = Annotated[Path | None, typer.Option(help="Compare with the records in this file instead.")]
Update = Annotated[bool, typer.Option("--update-baseline", help="Measure and write the file of --baseline.")]
Experiments = Annotated[str, typer.Option("--experiment", help=f"Comma-separated: {', '.join(WORKLOADS)}.")]
Margin = Annotated[str, typer.Option(help="What is tolerated of times, such as 5%.")]
Pairs = Annotated[
    int, typer.Option(min=2, help="Pairs of processes before a first verdict; doubled while inconclusive.")
]
Metrics = Annotated[str, typer.Option("--metric", help="Comma-separated: time and what is counted; all by default.")]
Allow = Annotated[str, typer.Option(help="Counted metrics that may grow, comma-separated: an intended change.")]
Inconclusive = Annotated[str, typer.Option(help="Whether an inconclusive gate is to pass or fail.")]


def command(
    base_ref: BaseRef = "",
    baseline: Baseline = None,
    update_baseline: Update = False,
    experiment: Experiments = "inference",
    systems: options.Systems = "retnet,transformer",
    size: options.Size = "mini",
    seq_len: options.SeqLen = "512",
    batch_size: options.BatchSize = "1",
    dtype: options.DtypeName = "auto",
    device: options.DeviceName = "auto",
    margin: Margin = "5%",
    pairs: Pairs = 10,
    budget: options.Budget = "10m",
    metric: Metrics = "all",
    allow: Allow = "",
    inconclusive: Inconclusive = "fail",
    out: options.Out = Path(),
    seed: options.Seed = 0,
    output_format: FormatName = "table",
) -> int:
    check_format(output_format)
    if base_ref and baseline:
        raise UsageError("--base-ref and --baseline exclude each other: compare with a commit or with stored records")
    if update_baseline and not baseline:
        raise UsageError("--update-baseline needs --baseline FILE, which it writes")
    choose(inconclusive, ("pass", "fail"), "--inconclusive value")
    grid = Grid(seq_len, batch_size, systems, size, dtype, device, 1, "", seed)
    chosen_device, cells = _cells(grid, choose(experiment, WORKLOADS, "experiment"))
    tolerated, budget_s = parse_margin(margin), parse_duration(budget, "--budget")

    from retbench.gate_run import METRICS, TIME, Gate

    metrics = choose(metric, METRICS, "metric")
    counted = [name for name in METRICS if name != TIME]
    allowed = choose(allow, counted, "--allow metric") if allow else []
    with _workplace() as folder:
        versions = _versions(base_ref, baseline, folder, chosen_device)
        courses = _courses(cells, baseline if not update_baseline else None, versions[-1])
        gate = Gate(courses, versions, metrics, allowed, tolerated, pairs, seed)
        if update_baseline:
            return _update(cast(Path, baseline), gate, budget_s)
        return _decide(gate, budget_s, inconclusive == "pass", out, chosen_device, output_format, str(baseline or ""))


def parse_margin(text: str) -> float:
    """``5%`` or ``0.05`` -> 0.05. Raises UsageError."""
    number = text.strip()
    try:
        margin = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        margin = -1.0
    if not 0 <= margin <= MOST_MARGIN:
        raise UsageError(f"--margin {text!r} is no share from 0% to {MOST_MARGIN:.0%}, such as 5% or 0.05")
    return margin


def _cells(grid: Grid, experiments: Sequence[str]) -> tuple[Device, list[Cell]]:
    device, cells = grid.cells("decode")
    workloads = [workload for name in experiments for workload in WORKLOADS[name]]
    return device, [replace(cell, workload=workload) for workload in workloads for cell in cells]


@contextmanager
def _workplace() -> Iterator[Path]:
    """A temporary folder that is gone afterwards, also where a CI job is cancelled by SIGTERM."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with TemporaryDirectory(prefix="retbench-gate-") as folder:
            yield Path(folder)
    finally:
        signal.signal(signal.SIGTERM, before)


def _versions(base_ref: str, baseline: Path | None, folder: Path, device: Device) -> "list[Version]":
    from retbench import revision

    head = revision.head(folder, device, threads=1)
    if baseline:
        return [head]
    return [revision.base(base_ref or DEFAULT_BASE, folder, device, threads=1), head]


def _courses(cells: Sequence[Cell], baseline: Path | None, head: "Version") -> "list[Course]":
    """The cells, those of a baseline with what it holds of them; UsageError where it was measured elsewhere."""
    from retbench.gate_run import Course, Side

    if baseline is None:
        return [Course(cell, Side(), Side()) for cell in cells]
    stored = {record.cell.requested: record for (name, _), record in load(baseline).items() if name == "gate"}
    if not stored:
        raise UsageError(f"{baseline} holds no records of a gate; make it by --update-baseline")
    for record in stored.values():
        _check_conditions(baseline, record, head)
    absent = Side(status="skipped", reason=f"{baseline} does not hold it")
    return [
        Course(cell, Side.of(stored[cell]) if cell in stored else replace(absent), Side(), stored=True)
        for cell in cells
    ]


def _check_conditions(baseline: Path, record: "Record", head: "Version") -> None:
    there, here = record.environment, head.environment
    if there["fingerprint"] == here["fingerprint"]:
        return
    names = [name for name in dict.fromkeys([*there, *here]) if name not in ("fingerprint", *NOT_IDENTIFYING)]
    both = [(name, there.get(name), here.get(name)) for name in names]
    fields = "; ".join(f"{name} {one} there, {two} here" for name, one, two in both if one != two)
    raise UsageError(f"{baseline} was measured under other conditions: {fields}; use --base-ref")


def _decide(
    gate: "Gate", budget_s: float, passes: bool, out: Path, device: Device, output_format: str, baseline: str
) -> int:
    """Runs the gate, stores its records, writes its reports and returns the exit status."""
    from retbench.gate import exit_status
    from retbench.gate_run import TIME
    from retbench.report.gate_outputs import annotations, write_all
    from retbench.report.gate_table import backend_notes, gate_table
    from retbench.report.tables import Format, render
    from retbench.store import Store, results_path
    from retbench.timing import Deadline

    paths = {name: results_path(out, device.slug(), experiment) for name, experiment in _EXPERIMENTS.items()}
    stores = {version.name: Store(paths[version.name]) for version in gate.versions}
    for store in stores.values():
        store.check_writable()
    rows = gate.run(Deadline(budget_s), _say)
    status = exit_status([row.verdict for row in rows], passes)
    for version in gate.versions:
        for course in gate.courses:
            side = course.base if version.name == "base" else course.head
            stores[version.name].append(side.record(_EXPERIMENTS[version.name], course.cell, version))
    title = f"{baseline or gate.versions[0].label} against {gate.versions[-1].label}: {_OUTCOMES[status]}"
    rule = (
        f"a time regressed where it surely exceeds {1 + gate.margin:g} of the base, by Holm's correction over cells; "
        "ratios are of times relative to the reference workload in the same process"
    )
    table = gate_table(rows, title, [*([rule] if TIME in gate.metrics else []), *backend_notes(gate.courses)])
    files = write_all(rows, table, out / "reports" / "gate", os.environ)
    render(table, cast(Format, output_format), sys.stdout)
    if os.environ.get("GITHUB_ACTIONS"):
        _say("\n".join(annotations(rows)))
    _say(f"records: {paths['head']}; reports: {', '.join(map(str, files))}")
    return status


_EXPERIMENTS = {"head": "gate", "base": "gate-base"}
_OUTCOMES = ("ok", "regressed", "bad input", "inconclusive", "nothing comparable", "a cell failed")


def _update(path: Path, gate: "Gate", budget_s: float) -> int:
    """Writes a baseline, whole or not at all: only if every cell was measured."""
    from retbench.gate import FAILED
    from retbench.gate_run import measure_alone, run_brief
    from retbench.timing import Deadline

    version = gate.versions[-1]
    measure_alone(gate.courses, version, gate.pairs * 2 ** (LOOKS - 1), Deadline(budget_s), run_brief)
    failed = [course for course in gate.courses if course.head.status != "ok" or not course.head.processes]
    for course in failed:
        _say(f"{course.cell.label} ({course.cell.workload}): {course.head.reason or 'no time for it: raise --budget'}")
    if failed:
        return FAILED
    records = [course.head.record("gate", course.cell, version) for course in gate.courses]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        new.write_text("".join(record.to_json() + "\n" for record in records), encoding="utf-8")
        new.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    _say(f"{path}: {len(records)} cells, {min(len(course.head.processes) for course in gate.courses)} processes each")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
