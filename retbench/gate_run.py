"""Runs a gate: counts and times the cells of two versions in processes of their own, in pairs, until it is clear."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

import numpy as np

from retbench import isolate
from retbench.environment import sha256
from retbench.errors import UsageError
from retbench.gate import Judged, Pair, Verdict, judge_count, judge_times
from retbench.isolate import Outcome
from retbench.record import Record, Status
from retbench.revision import Version
from retbench.spec import Cell
from retbench.statistics import median_interval
from retbench.timing import Deadline

TIME = "time"  # the timed metric; the others are counted
COUNTED = (
    "parameters",
    "flops",
    "weights_bytes",
    "state_bytes",
    "peak_memory_bytes",
    "allocated_bytes",
    "torch_peak_memory_bytes",
    "torch_allocated_bytes",
)
METRICS = (TIME, *COUNTED)
PROCESS_S = 300.0  # beyond it a process hangs
SERIES = ("work_ns", "reference_ns")

Execute = Callable[[Version, Cell, str], Outcome]  # the last: "timed" or "counted"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Process:
    """What one process measured of a cell: calls of it, as many after each call of the reference workload."""

    work_ns: Sequence[int]
    reference_ns: Sequence[int]

    def __post_init__(self) -> None:
        if not self.reference_ns or not self.work_ns or len(self.work_ns) % len(self.reference_ns):
            raise ValueError(f"{len(self.work_ns)} calls beside {len(self.reference_ns)} of the reference")

    def relative(self) -> list[float]:
        """The calls as multiples of the reference workload beside them: what slowed both down is gone."""
        calls = len(self.work_ns) // len(self.reference_ns)
        return [ns / self.reference_ns[at // calls] for at, ns in enumerate(self.work_ns)]


@dataclass
class Side:
    """What is known of a cell in one version."""

    counts: list[dict[str, int]] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    resolved: dict[str, str] = field(default_factory=dict)  # fields of the cell that were chosen when it ran
    notes: dict[str, Any] = field(default_factory=dict)
    status: Status = "ok"
    reason: str | None = None
    interference: list[dict[str, float]] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """What a process sent; the first failure stays."""
        if outcome.status != "ok":
            self.status, self.reason = outcome.status, outcome.reason
            return
        for message in outcome.messages:
            self.resolved |= message.get("cell", {})
            self.notes |= message.get("notes", {})
            if "metrics" in message:
                self.counts.append(message["metrics"])
            if "samples" in message:
                self.processes.append(Process(*(message["samples"][name] for name in SERIES)))
            if "interference" in message:
                self.interference.append(message["interference"])

    def median_ms(self) -> float | None:
        """The median over processes of their median call."""
        medians = [float(np.median(process.work_ns)) for process in self.processes]
        return float(np.median(medians)) / 1e6 if medians else None

    def record(self, experiment: str, cell: Cell, version: Version) -> Record:
        """The record of this side, every sample in it."""
        metrics: dict[str, Any] = dict(self.counts[0]) if self.counts else {}
        samples = {name: [list(getattr(process, name)) for process in self.processes] for name in SERIES}
        if self.processes:
            work = median_interval([[ns / 1e6 for ns in group] for group in samples["work_ns"]])
            metrics |= {"work_ms": work.value, "work_ms_low": work.low, "work_ms_high": work.high}
            metrics["reference_ms"] = float(np.median(np.concatenate(samples["reference_ns"]))) / 1e6
        sizes = {name: [len(group) for group in groups] for name, groups in samples.items()}
        environment = version.environment
        return Record(
            experiment=experiment,
            cell=replace(cell, **self.resolved),  # type: ignore[arg-type]
            status=self.status,
            reason=self.reason,
            key=sha256([experiment, cell.to_dict(), environment["code"], environment["fingerprint"]]),
            created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            environment=environment,
            metrics=metrics,
            samples={name: [ns for group in groups for ns in group] for name, groups in samples.items()},
            notes={**self.notes, "process_samples": sizes, "interference": self.interference},
        )

    @classmethod
    def of(cls, record: Record) -> "Side":
        """What a stored record of a gate says; UsageError where it is none."""
        try:
            series = [_split(record.samples[name], record.notes["process_samples"][name]) for name in SERIES]
            processes = [Process(*both) for both in zip(*series, strict=True)]
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"the record of {record.cell.label} is none of a gate: {error!r}") from error
        counts = {name: record.metrics[name] for name in COUNTED if name in record.metrics}
        return cls([counts], processes, notes=record.notes, status=record.status, reason=record.reason)


@dataclass
class Course:
    """A cell, what both versions made of it, and whether the base is a stored one."""

    cell: Cell
    base: Side
    head: Side
    stored: bool = False

    def pairs(self) -> list[Pair]:
        """Processes side by side, each relative to its reference: that also takes out the drift since a stored base."""
        both = zip(self.base.processes, self.head.processes, strict=False)
        return [Pair(base.relative(), head.relative()) for base, head in both]

    def verdict(self) -> Verdict | None:
        """What is known before numbers are compared: a failure, or a cell that the base has never measured."""
        if self.base.status != "ok" and self.head.status == "ok" and not self.base.counts:
            return "new"
        return None if self.base.status == self.head.status == "ok" else "failed"


@dataclass(frozen=True)
class Row:
    """The verdict on one metric of one cell; ``metric`` is empty where the cell as a whole has a verdict."""

    cell: Cell
    metric: str
    verdict: Verdict
    base: float | None = None
    head: float | None = None
    judged: Judged | None = None
    pairs: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Gate:
    """What to compare, by which metrics, and when to look."""

    courses: Sequence[Course]
    versions: Sequence[Version]  # base and head, or head alone where the base is stored
    metrics: Sequence[str]
    allowed: Sequence[str]
    margin: float
    pairs: int  # before the first look; as many again, twice as many ... before the next
    seed: int = 0

    def run(self, deadline: Deadline, say: Say, execute: "Execute | None" = None) -> list[Row]:
        """A row for every metric of every cell; raises nothing for what fails, which is a row."""
        run = execute or run_brief
        for course in self.courses:
            self._count(course, run)
            say(f"{course.cell.label} ({course.cell.workload}): {course.verdict() or 'counted'}")
        judged = self._time(deadline, say, run) if TIME in self.metrics else {}
        return [row for course in self.courses for row in self._rows(course, judged.get(course.cell))]

    def _count(self, course: Course, execute: Execute) -> None:
        """Once and, where something differs, once more: a difference must be there again."""
        for _ in range(2):
            for version in self.versions:
                _side(course, version).add(execute(version, course.cell, "counted"))
            if course.verdict() or not course.base.counts or course.base.counts[-1] == course.head.counts[-1]:
                return

    def _time(self, deadline: Deadline, say: Say, execute: Execute) -> dict[Cell, Judged]:
        """Pairs of every cell, then of those that are inconclusive, in random order, until the time is up."""
        generator = np.random.default_rng(self.seed)
        judged = dict[Cell, Judged]()
        look, target, cost_s = 1, self.pairs, 0.0
        while True:
            while (todo := self._todo(judged, target)) and deadline.left_s > cost_s:
                for at in generator.permutation(len(todo)):
                    before_s = deadline.left_s
                    self._add_pair(todo[at], generator, execute)
                    cost_s = before_s - deadline.left_s
                    if deadline.left_s < cost_s:
                        break
            courses = {course.cell: course.pairs() for course in self.courses if course.verdict() is None}
            now = judge_times(courses, self.margin, look)
            judged |= {cell: one for cell, one in now.items() if _open(judged.get(cell))}
            left = self._todo(judged, target * 2)
            undecided = sum(_open(judged.get(cell)) for cell in courses)
            say(f"look {look}: {undecided} of {len(courses)} cells inconclusive, {max(deadline.left_s, 0):.0f} s left")
            if not left or deadline.left_s <= cost_s:
                return judged
            look, target = look + 1, target * 2

    def _todo(self, judged: dict[Cell, Judged], target: int) -> list[Course]:
        """The cells that more pairs could decide and that have fewer than ``target``."""
        return [
            course
            for course in self.courses
            if course.verdict() is None and _open(judged.get(course.cell)) and len(course.head.processes) < target
            if not course.stored or len(course.head.processes) < len(course.base.processes)
        ]

    def _add_pair(self, course: Course, generator: np.random.Generator, execute: Execute) -> None:
        for at in generator.permutation(len(self.versions)):
            _side(course, self.versions[at]).add(execute(self.versions[at], course.cell, "timed"))

    def _rows(self, course: Course, judged: Judged | None) -> Iterable[Row]:
        cell, base, head = course.cell, course.base, course.head
        known = course.verdict()
        if known:
            failures = [f"{name} {side.status}: {side.reason}" for name, side in (("base", base), ("head", head))]
            yield Row(cell, "", known, reason="; ".join(text for text in failures if " ok: " not in text))
            return
        if TIME in self.metrics:
            pairs, reason = len(course.pairs()), "" if judged else "no time for a pair: raise --budget"
            verdict = judged.verdict if judged else "inconclusive"
            yield Row(cell, TIME, verdict, base.median_ms(), head.median_ms(), judged, pairs, reason)
        for metric in self.metrics:
            if metric in base.counts[0] and metric in head.counts[0]:
                runs = [[counts[metric] for counts in side.counts] for side in (base, head)]
                counted = judge_count(runs[0], runs[1], metric in self.allowed)
                yield Row(cell, metric, counted.verdict, runs[0][0], runs[1][0], counted)


def measure_alone(
    courses: Sequence[Course], version: Version, processes: int, deadline: Deadline, execute: Execute
) -> None:
    """Fills the head side of every course, for a baseline: counts, then processes in turn as long as time lasts."""
    for course in courses:
        course.head.add(execute(version, course.cell, "counted"))
    for _ in range(processes):
        for course in courses:
            if course.head.status == "ok" and deadline.left_s > 0:
                course.head.add(execute(version, course.cell, "timed"))


def run_brief(version: Version, cell: Cell, part: str) -> Outcome:
    """A process of that version."""
    request = {"task": "brief", "cell": cell.to_dict(), "part": part}
    return isolate.run_worker(request, cell.threads, PROCESS_S, version.python, version.root)


def _side(course: Course, version: Version) -> Side:
    return course.base if version.name == "base" else course.head


def _open(judged: Judged | None) -> bool:
    return judged is None or judged.verdict == "inconclusive"


def _split(samples: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
    """Samples cut into pieces of these sizes; ValueError where they do not fit."""
    ends = list(accumulate(sizes))
    if ends[-1:] != [len(samples)] and samples:
        raise ValueError(f"{len(samples)} samples of processes with {sizes}")
    return [samples[end - size : end] for end, size in zip(ends, sizes, strict=True)]
