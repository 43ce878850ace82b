"""Decode at depth: single steps timed at several contexts, exact memory, the first token's time from ``prefill``."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import numpy as np
import torch

from models.language_model import State
from retbench.devices import MemoryPeak, Step
from retbench.measure import PRECISION, Model, Part, Parts, Task, prefill
from retbench.spec import Cell
from retbench.statistics import Interval, median_interval, percentile, slope_interval
from retbench.timing import TRIVIAL_S, Deadline, Sample, rate, sample, warm_up

DECODE_SHARE = 0.8  # of the time that prefill leaves; the rest is for memory
PLAIN = "plain"  # the model's own step
ROUNDS = 5  # at least, where time allows: their spread is what the interval is made of


@dataclass
class Depth:
    """The samples of one context: a group for every visit."""

    context: int
    groups: list[list[Sample]] = field(default_factory=list)
    energy_mj: float | None = None  # of the last visit, a step

    def wall_ms(self) -> list[list[float]]:
        return [[s.wall_ns / 1e6 for s in group] for group in self.groups]

    def tpot_ms(self) -> Interval:
        return median_interval(self.wall_ms())

    def samples(self) -> dict[str, list[int]]:
        flat = [s for group in self.groups for s in group]
        return {"step_ns": [s.wall_ns for s in flat], "cpu_ns": [s.cpu_ns for s in flat]}

    def summary(self) -> Part:
        tpot = self.tpot_ms()
        interval = {"tpot_ms": tpot.value, "tpot_ms_low": tpot.low, "tpot_ms_high": tpot.high}
        return {"context": self.context, **interval, **self.samples()}

    def add_energy(self, before: float | None, after: float | None) -> None:
        """The device's counter before and after the last visit."""
        if before is not None and after is not None:
            self.energy_mj = (after - before) / len(self.groups[-1])


@torch.inference_mode()
def measure(model: Model, task: Task) -> Parts:
    """Yields the timing, then the exact memory, then what prefill yields, whose time is set apart first."""
    seq_len = task.cell.seq_len
    depths = [Depth(context) for context in sorted({1, seq_len // 4, seq_len // 2, seq_len} - {0}, reverse=True)]
    ahead = prefill.forecast(model, task)
    reserved_s = 0.0 if ahead.skipped else max(ahead.expected_s, task.prefill_s)
    decode_s = max(DECODE_SHARE * (task.deadline.left_s - reserved_s), TRIVIAL_S)
    yield _time(model, task, depths, Deadline(decode_s))
    yield _memory(model, task, depths)
    yield from prefill.measure_forecast(model, task, ahead)


def _time(model: Model, task: Task, depths: list[Depth], deadline: Deadline) -> Part:
    """Visits every depth in turn, so that a machine that slows down slows all of them down alike."""
    cell, longest = task.cell, depths[0]
    state = model.init_state(cell.batch_size, cell.seq_len)
    state.fill_(cell.seq_len - 1, cell.seed)
    states = {depth.context: state.sized(depth.context) for depth in depths}
    ways, notes = _ways(model, task, states)
    steppers = {name: _stepper(model, task, states, way) for name, way in ways.items()}
    warm = {name: warm_up(partial(stepper, cell.seq_len), task.device, deadline) for name, stepper in steppers.items()}
    step_ms = {name: median(s.wall_ns for s in samples[-3:]) / 1e6 for name, samples in warm.items()}
    fastest = min(step_ms, key=lambda name: step_ms[name])
    step, first = steppers[fastest], warm[fastest]
    steps = _steps_per_visit(step_ms[fastest] / 1e3, deadline)
    while not longest.groups or not _finished(depths, deadline):
        for depth in depths:
            step(depth.context)  # brings this depth's cache near again; discarded
            before = task.device.energy_mj()
            depth.groups.append([sample(partial(step, depth.context), task.device) for _ in range(steps)])
            depth.add_energy(before, task.device.energy_mj())
    contexts = [{**depth.summary(), "step_bytes": _step_bytes(model, states, depth)} for depth in depths[::-1]]
    return {
        "metrics": {
            **_metrics(cell, depths[::-1]),
            "step_bytes": contexts[-1]["step_bytes"],
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
        "contexts": contexts,
        "samples": longest.samples(),
        "warmup": {"discarded": len(first), "first_ns": first[0].wall_ns},
        "notes": {
            **notes,
            **({"warm_step_ms": step_ms} if len(step_ms) > 1 else {}),
            "state_fill": "synthetic: one random token repeated",
            "rounds": len(longest.groups),
        },
        "cell": {} if fastest == PLAIN else {"backend": f"{model.backend}+{fastest}"},
    }


def _ways(model: Model, task: Task, states: dict[int, State]) -> tuple[dict[str, dict[int, Step]], Part]:
    """The ways to step through the state of every context, by name, and a note on why there is no other than plain."""
    ways: dict[str, dict[int, Step]] = {PLAIN: {n: partial(model.step, state=state) for n, state in states.items()}}
    try:
        for context, state in states.items():
            for name, step in task.device.faster_steps(model, state).items():
                ways.setdefault(name, {})[context] = step
    except RuntimeError as error:
        return {PLAIN: ways[PLAIN]}, {"plain_step": str(error).partition("\n")[0]}
    return ways, {}


def _stepper(model: Model, task: Task, states: dict[int, State], steps: dict[int, Step]) -> Callable[[int], None]:
    """A function that makes one step at a context with a token that the last step did not have."""
    pool = task.tokens(model.config.vocab_size, 64, task.cell.batch_size)
    count = 0

    def step(context: int) -> None:
        nonlocal count
        count += 1
        states[context].position = context - 1
        steps[context](pool[count % len(pool)])

    return step


def _step_bytes(model: Model, states: dict[int, State], depth: Depth) -> int:
    """Bytes that a step at this depth must move: weights and state."""
    states[depth.context].position = depth.context - 1
    return model.step_weights_bytes() + states[depth.context].step_bytes()


def _steps_per_visit(step_s: float, deadline: Deadline) -> int:
    """As many timed steps a visit as let ROUNDS visits of all depths end in time, between 2 and 16."""
    round_s = 2.5 * step_s  # the depths are 1, 1/2, 1/4 and nearly 0 of the context
    return max(2, min(16, int(deadline.left_s / ROUNDS / round_s) - 1))


def _finished(depths: list[Depth], deadline: Deadline) -> bool:
    precise = len(depths[0].groups) >= ROUNDS and all(d.tpot_ms().relative_half_width <= PRECISION for d in depths)
    return precise or deadline.left_s <= 0


def _metrics(cell: Cell, depths: list[Depth]) -> dict[str, float | None]:
    """What the samples of all depths, shallowest first, say of the cell."""
    tpots = [depth.tpot_ms() for depth in depths]
    last, wall_ms = tpots[-1], [ms for group in depths[-1].wall_ms() for ms in group]
    metrics = {
        "tpot_ms": last.value,
        "tpot_ms_low": last.low,
        "tpot_ms_high": last.high,
        "tpot_ms_p90": percentile(wall_ms, 90),
        "tpot_ms_p99": percentile(wall_ms, 99),
        "tokens_per_s": rate(cell.batch_size, last.value / 1e3),
        "tokens_per_s_mean": _mean_rate(cell.batch_size, [d.context for d in depths], [t.value for t in tpots]),
        "energy_mj_per_token": None if depths[-1].energy_mj is None else depths[-1].energy_mj / cell.batch_size,
    }
    if len(depths) > 1:
        slope = slope_interval([d.context for d in depths], [d.wall_ms() for d in depths])
        for suffix, value in (("", slope.value), ("_low", slope.low), ("_high", slope.high)):
            metrics[f"tpot_slope_ms_per_1k_tokens{suffix}"] = 1024 * value
    return metrics


def _mean_rate(batch_size: int, contexts: list[int], tpots_ms: list[float]) -> float:
    """Tokens/s over positions 1..seq_len, the time of each interpolated between the measured contexts."""
    total_ms = float(np.interp(np.arange(1, contexts[-1] + 1), contexts, tpots_ms).sum())
    return rate(batch_size * contexts[-1], total_ms / 1e3)


def _memory(model: Model, task: Task, depths: list[Depth]) -> Part:
    """One untimed step a depth, with a cache of just that depth."""
    weights_bytes, contexts = model.weights_bytes(), []
    for depth in reversed(depths):
        peak, state_bytes = _step_peak(model, task, depth.context)
        peak_bytes = weights_bytes + peak.tensor_bytes
        contexts.append({"context": depth.context, "peak_memory_bytes": peak_bytes, "state_bytes": state_bytes})
    metrics = {  # of the last, which is the whole length
        "peak_memory_bytes": peak_bytes,
        "weights_bytes": weights_bytes,
        "state_bytes": state_bytes,
        "activations_bytes": peak.tensor_bytes - state_bytes,
        **peak.counters,
    }
    return {"metrics": metrics, "contexts": contexts}


def _step_peak(model: Model, task: Task, context: int) -> tuple[MemoryPeak, int]:
    """The peak of state and activations in a step at a context, and the bytes of the state after it."""
    token = task.tokens(model.config.vocab_size, task.cell.batch_size)
    states: list[State] = []

    def prepare() -> State:
        states.append(model.init_state(task.cell.batch_size, context))
        states[0].fill_(context - 1)
        return states[0]

    peak = task.device.peak_memory(prepare, lambda state: model.step(token, state))
    return peak, states[0].nbytes
