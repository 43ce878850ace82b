"""Several cells measured in turn, beside what the machine can do: every round times each limit and each cell.

A machine that slows down slows all of a round down alike, so ratios within rounds hold where times drift.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from statistics import median
from typing import Protocol
from uuid import uuid4

import torch
from torch import Tensor

from models import SIZES, build
from models.flops import forward_flops
from models.language_model import LanguageModel
from retbench.devices import Device, find_device
from retbench.measure import PRECISION, TORCH_DTYPES, Part, Task, backend_of, forward_backward
from retbench.measure.compile import compile_cell
from retbench.measure.limits import Limit, fastest, products, readers
from retbench.measure.quantize import quantize
from retbench.measure.train_step import measure_in_turn
from retbench.spec import Cell
from retbench.statistics import Interval, median_interval
from retbench.timing import Deadline, rate, sample

ROUNDS = 7  # at least
MOST_READ_BYTES = 2**30  # of the probe: a step that reads more finds no more of it in a cache
MOST_ROWS = 2048  # of the probe's product
CALLS = 3  # timed calls of a visit, after one that is discarded; their median counts
LONG_S = 0.5  # a call this long is timed once a visit and warms itself up


class Workload(Protocol):
    """A cell ready to run: ``amount`` bytes, floating point operations or tokens a call, against ``limits``."""

    metric: str
    amount: int
    limits: list[Limit]

    def run(self) -> None: ...

    def speed(self, seconds: float) -> dict[str, float | int]:
        """What a call of so many seconds did, by metric."""

    def memory(self) -> dict[str, int]:
        """Bytes by metric, from a call that is not timed."""


@dataclass
class Decode:
    """A step at the last position of a synthetic state; bytes of weights and state against the read bandwidth."""

    model: LanguageModel
    task: Task
    metric = "tpot_ms"
    count: int = 0

    def __post_init__(self) -> None:
        cell = self.task.cell
        self.state = self.model.init_state(cell.batch_size, cell.seq_len)
        self.state.fill_(cell.seq_len - 1, cell.seed)
        self.pool = self.task.tokens(self.model.config.vocab_size, 64, cell.batch_size)
        self.amount = self.model.step_weights_bytes() + self.state.step_bytes()
        # As many bytes as a step reads: what part of them stays in a cache is then the same.
        self.limits = [_fastest_read(min(self.amount, MOST_READ_BYTES), cell.device)]

    def run(self) -> None:
        self.count += 1
        self.state.position = self.task.cell.seq_len - 1
        self.model.step(self.pool[self.count % len(self.pool)], self.state)

    def speed(self, seconds: float) -> dict[str, float | int]:
        return {"tokens_per_s": rate(self.task.cell.batch_size, seconds), "step_bytes": self.amount}

    def memory(self) -> dict[str, int]:
        peak = self.task.device.peak_memory(lambda: None, lambda _: self.run())
        return {"state_bytes": self.state.nbytes, "activations_bytes": peak.tensor_bytes}


@dataclass
class Prefill:
    """A prompt of the whole length; floating point operations against those of matrix products."""

    model: LanguageModel
    task: Task
    metric = "ttft_ms"

    def __post_init__(self) -> None:
        cell = self.task.cell
        self.amount = cell.batch_size * forward_flops(self.model.config, cell.seq_len, logits=1)
        self.limits = _product_limits(self.model, cell)

    def run(self) -> None:
        self.model.prefill(self._tokens())

    def speed(self, seconds: float) -> dict[str, float | int]:
        return {"flops": self.amount}

    def memory(self) -> dict[str, int]:
        tokens, states = self._tokens(), list[int]()
        peak = self.task.device.peak_memory(lambda: None, lambda _: states.append(self.model.prefill(tokens)[1].nbytes))
        return {"state_bytes": states[0], "activations_bytes": peak.tensor_bytes - states[0]}

    def _tokens(self) -> Tensor:
        return self.task.tokens(self.model.config.vocab_size, self.task.cell.batch_size, self.task.cell.seq_len)


@dataclass
class TrainStep:
    """Forward and backward over the whole length, the gradients of all parameters included."""

    model: LanguageModel
    task: Task
    metric = "train_step_ms"

    def __post_init__(self) -> None:
        cell = self.task.cell
        self.amount = 3 * cell.batch_size * forward_flops(self.model.config, cell.seq_len, logits=cell.seq_len)
        self.limits = _product_limits(self.model, cell)

    def run(self) -> None:
        tokens = self.task.tokens(self.model.config.vocab_size, self.task.cell.batch_size, self.task.cell.seq_len + 1)
        forward_backward(self.model, tokens)

    def speed(self, seconds: float) -> dict[str, float | int]:
        return {"flops": self.amount}

    def memory(self) -> dict[str, int]:
        peak = self.task.device.peak_memory(lambda: None, lambda _: self.run())
        return {"activations_bytes": peak.tensor_bytes}  # gradients included


@dataclass
class TrainTokens(TrainStep):
    """The same in tokens, for systems that are compared with each other and not with a limit."""

    def __post_init__(self) -> None:
        self.amount = self.task.cell.batch_size * self.task.cell.seq_len
        self.limits = []

    def speed(self, seconds: float) -> dict[str, float | int]:
        return {"tokens_per_s": rate(self.amount, seconds)}


WORKLOADS: dict[str, Callable[[LanguageModel, Task], Workload]] = {
    "decode": Decode,
    "prefill": Prefill,
    "train_step": TrainStep,
    "train_tokens": TrainTokens,
}


@dataclass
class Course:
    """What was timed of a cell: a time for each round, and of each of its limits."""

    at: int
    task: Task
    workload: Workload
    times_s: list[float] = field(default_factory=list)
    limit_times_s: dict[str, list[float]] = field(default_factory=dict)

    def visit(self) -> None:
        """Times each limit, then the cell."""
        for limit in self.workload.limits:
            self.limit_times_s.setdefault(limit.name, []).append(_visit_s(limit.run, self.task.device))
        self.times_s.append(_visit_s(self.workload.run, self.task.device))

    def fraction(self, limit: Limit) -> Interval:
        """The median over rounds of the rate of the cell / the rate of the limit."""
        pairs = zip(self.times_s, self.limit_times_s[limit.name], strict=True)
        return median_interval([[self.workload.amount * beside / limit.amount / own for own, beside in pairs]])

    def precise(self) -> bool:
        found = [self.fraction(limit) for limit in self.workload.limits] or [median_interval([self.times_s])]
        return all(interval.relative_half_width <= PRECISION for interval in found)

    def part(self) -> Part:
        name, time = self.workload.metric, median_interval([self.times_s])
        metrics = {name: 1e3 * time.value, f"{name}_low": 1e3 * time.low, f"{name}_high": 1e3 * time.high}
        limits = []
        for limit in self.workload.limits:
            fraction, beside_s = self.fraction(limit), median(self.limit_times_s[limit.name])
            ends = {"fraction": fraction.value, "fraction_low": fraction.low, "fraction_high": fraction.high}
            limits.append({"name": limit.name, "per_s": limit.amount / beside_s, **ends})
        return {
            "at": self.at,
            "metrics": {**metrics, **self.workload.speed(time.value), **self.workload.memory()},
            "samples": _nanoseconds({"round": self.times_s, **self.limit_times_s}),
            "notes": {"rounds": len(self.times_s), "limits": limits},
        }


@dataclass
class Models:
    """The models of cells that differ in the system, its weights and whether it is compiled, each built once."""

    built: dict[tuple[str, str, bool], tuple[LanguageModel, Part]] = field(default_factory=dict)

    def of(self, task: Task) -> tuple[LanguageModel, Part]:
        """The model of a cell, and the metrics and notes that it came with."""
        cell = task.cell
        key = cell.system, cell.quantize, cell.compile
        if key not in self.built:
            model = build(cell.system, cell.size, seed=cell.seed, **cell.overrides)
            part: Part = {"metrics": {}, "notes": {}}
            if cell.quantize != "none":
                part |= quantize(model, task)
            if cell.compile:
                part |= compile_cell(model, task)
            self.built[key] = model, part
        return self.built[key]


def measure(cells: Sequence[Cell], deadline: Deadline) -> Iterator[Part]:
    """Parts with ``at``, the place of their cell. All cells agree in size, dtype, device, threads and workload."""
    first = cells[0]
    device = find_device(first.device)
    torch.set_num_threads(first.threads)
    torch.set_default_dtype(TORCH_DTYPES[first.dtype])
    models, child = Models(), uuid4().hex
    with _mode(first.workload), torch.device(first.device):
        if first.workload == "limits":
            yield from (_machine_part(at, Task(cell, device, deadline, {})) for at, cell in enumerate(cells))
            return
        groups = [list(group) for _, group in groupby(enumerate(cells), key=lambda pair: _setting(pair[1]))]
        for number, group in enumerate(groups):
            ends = deadline.fraction(1 / (len(groups) - number))
            origin = {"child": child, "group": f"{child}/{number}"}  # records of a group share their rounds
            tasks = [(at, Task(cell, device, ends, {})) for at, cell in group]
            for part in measure_in_turn(tasks) if first.training else _group(tasks, models):
                yield {**part, "notes": {**part["notes"], **origin}}


def _group(tasks: Sequence[tuple[int, Task]], models: Models) -> Iterator[Part]:
    """Cells that are compared with each other: their rounds are interleaved."""
    courses, facts = list[Course](), list[tuple[LanguageModel, Part]]()
    for at, task in tasks:
        model, made = models.of(task)
        courses.append(Course(at, task, WORKLOADS[task.cell.workload](model, task)))
        courses[-1].workload.run()  # warms up: what is made once is made
        facts.append((model, made))
    deadline, rounds = tasks[0][1].deadline, 0
    while rounds < ROUNDS or (deadline.left_s > 0 and not all(course.precise() for course in courses)):
        for course in courses:
            course.visit()
        rounds += 1
    for course, (model, made) in zip(courses, facts, strict=True):
        part = course.part()
        part["metrics"] |= {**made["metrics"], "weights_bytes": model.weights_bytes()}
        kinds = ("weights_bytes", "state_bytes", "activations_bytes")
        part["metrics"]["peak_memory_bytes"] = sum(part["metrics"].get(kind, 0) for kind in kinds)
        part["notes"] |= made["notes"]
        yield {**part, "cell": {"backend": backend_of(model), "form": _form(model, course.task.cell)}}


def _machine_part(at: int, task: Task) -> Part:
    """The limits themselves, all ways in turn."""
    width = SIZES[task.cell.size].d_model
    # A gibibyte for a width of 2048.
    limits = readers(256 * width**2) + products(task.cell.seq_len, width, TORCH_DTYPES[task.cell.dtype])
    times_s: dict[str, list[float]] = {limit.name: [] for limit in limits}
    for _ in range(ROUNDS):
        for limit in limits:
            times_s[limit.name].append(_visit_s(limit.run, task.device))
    found = []
    for limit in limits:
        speed = median_interval([[limit.amount / seconds for seconds in times_s[limit.name]]])
        found.append({"name": limit.name, "per_s": speed.value, "per_s_low": speed.low, "per_s_high": speed.high})
    return {"at": at, "samples": _nanoseconds(times_s), "notes": {"rounds": ROUNDS, "limits": found}}


@lru_cache(maxsize=2)  # cells that read much share one buffer
def _fastest_read(nbytes: int, device: str) -> Limit:
    return fastest(readers(nbytes), find_device(device))


def _product_limits(model: LanguageModel, cell: Cell) -> list[Limit]:
    """Products as wide as the model's FFN: torch.mm, and the packed one where there is one."""
    rows = min(cell.batch_size * cell.seq_len, MOST_ROWS)
    found = products(rows, model.config.d_model, TORCH_DTYPES[cell.dtype])
    return [limit for limit in found if limit.name in ("torch.mm", "packed")]


def _visit_s(run: Callable[[], object], device: Device) -> float:
    """The median of CALLS calls after a first one that brings memory near; the first one where it is long."""
    first = sample(run, device)
    if first.wall_ns >= 1e9 * LONG_S:
        return first.wall_ns / 1e9
    return median(sample(run, device).wall_ns for _ in range(CALLS)) / 1e9


def _nanoseconds(times_s: dict[str, list[float]]) -> dict[str, list[int]]:
    return {f"{name}_ns": [round(1e9 * seconds) for seconds in times] for name, times in times_s.items()}


def _setting(cell: Cell) -> tuple[int, int]:
    """What makes cells comparable within a child."""
    return cell.seq_len, cell.batch_size


def _mode(workload: str) -> AbstractContextManager[object]:
    return nullcontext() if workload.startswith("train") else torch.inference_mode()


def _form(model: LanguageModel, cell: Cell) -> str:
    return model.decode_form if cell.workload == "decode" else model.training_form
