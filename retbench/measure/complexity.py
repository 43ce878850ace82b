"""Complexity: one system's decode step, prefill and training step over lengths that double up to seq_len.

Memory is exact, in passes of its own; times are visited in rounds over all lengths, so that a machine that slows down
slows all of them.
"""

# B batch, T positions, V vocabulary

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median

from models.language_model import LanguageModel
from retbench.measure import Part, Parts, Task, forward_backward, parallelism
from retbench.quantities import format_bytes, format_duration
from retbench.statistics import median_interval
from retbench.timing import TRIVIAL_S, Deadline, sample

SHORTEST = 256
LEAST_GROWTH, MOST_GROWTH = 2.5, 4.5  # of time or bytes when the length doubles: linear or quadratic, and some noise
MEMORY_SHARE = 0.9  # of the free memory that a run may be expected to need
FIRST_ROUND_SHARE = 0.6  # of the time; the rest repeats what was measured
VISIT_S = 0.1  # of timed runs a visit, where one run is shorter
MOST_RUNS = 16  # a visit
CHEAP_VISITS = 5  # in each later round, to lengths where one run takes no longer than a visit shall

Run = Callable[[], object]


@dataclass
class Series:
    """One kind of run over the lengths measured so far, and why there are no longer ones.

    The first visits are made as the lengths grow, which may be minutes; they count only where there were no later ones.
    """

    kind: str
    prepare: Callable[[int], Run]  # length -> what is timed
    first: dict[int, list[float]] = field(default_factory=dict)  # ms of the first visit
    later: dict[int, list[list[float]]] = field(default_factory=dict)  # ms, a group for every visit in later rounds
    peak_bytes: dict[int, int] = field(default_factory=dict)
    stopped: str | None = None

    def run_s(self, length: int) -> float:
        """Seconds that a run of a length measured took when it was first visited."""
        return median(self.first[length]) / 1e3

    def expected(self) -> tuple[float, int]:
        """Seconds and bytes that a run of the next length will take at most."""
        if not self.first:
            return 0.0, 0
        seconds = [self.run_s(length) for length in sorted(self.first)]
        return _doubled(seconds), int(_doubled([self.peak_bytes[length] for length in sorted(self.first)]))


def _doubled(values: Sequence[float]) -> float:
    """The last of the values at lengths that double grows as much again, and some more, or as much as may be."""
    *_, before, last = [values[0] / MOST_GROWTH, *values]
    return last * min(max(1.25 * last / before, LEAST_GROWTH), MOST_GROWTH)


def measure(model: LanguageModel, task: Task) -> Parts:
    """Yields the bytes and times of every length when it is done, then how parallel training is, then all times."""
    series = [
        Series("decode", partial(_decode, model, task)),
        Series("prefill", partial(_prefill, model, task)),
        Series("train", partial(_train, model, task)),
    ]
    first_round = task.deadline.fraction(FIRST_ROUND_SHARE)
    _decode(model, task, 1)()  # makes what a model makes once and keeps: no length has it in its peak
    for length in lengths(task.cell.seq_len):
        for one in series:
            if _possible(one, task, first_round):
                _visit_first(one, model, task, length)
        if any(length in one.first for one in series):
            yield {"contexts": [{**_bytes(series, model, task, length), **_times(series, length)}]}
    yield {"metrics": parallelism.measure(model, task, first_round)}
    while _repeat(series, task):
        pass
    yield {
        "contexts": [_times(series, length) for length in sorted({n for one in series for n in one.first})],
        "metrics": {"parameters": sum(parameter.numel() for parameter in model.parameters())},
        "notes": {f"{one.kind}_stopped": one.stopped for one in series if one.stopped},
    }


def lengths(longest: int) -> list[int]:
    """The longest, its half and so on down to about ``SHORTEST``, shortest first."""
    found = [longest]
    while found[-1] >= 2 * SHORTEST:
        found.append(found[-1] // 2)
    return found[::-1]


def _possible(series: Series, task: Task, deadline: Deadline) -> bool:
    """Whether the next length may be run; a series that was stopped once is not taken up again."""
    if series.stopped is None:
        expected_s, expected_bytes = series.expected()
        free, left_s = int(MEMORY_SHARE * task.device.free_bytes()), max(deadline.left_s, TRIVIAL_S)
        if expected_bytes > free:
            series.stopped = f"may need {format_bytes(expected_bytes)}, {format_bytes(free)} are free"
        elif 2 * expected_s > left_s:  # once for its memory and once for its time
            series.stopped = f"may take {format_duration(2 * expected_s)}, {format_duration(left_s)} are left"
    return series.stopped is None


def _visit_first(series: Series, model: LanguageModel, task: Task, length: int) -> None:
    """The exact memory, which warms up as well, then a timed visit."""
    peak = task.device.peak_memory(lambda: series.prepare(length), lambda run: run())
    series.peak_bytes[length] = model.weights_bytes() + peak.tensor_bytes
    series.first[length] = _visit(series, task, length)


def _visit(series: Series, task: Task, length: int) -> list[float]:
    """The ms of one run that counts only if it is long, else as many as fit into ``VISIT_S`` after it."""
    run = series.prepare(length)
    first_ms = sample(run, task.device).wall_ns / 1e6
    count = min(MOST_RUNS, int(1e3 * VISIT_S / first_ms))
    group = [sample(run, task.device).wall_ns / 1e6 for _ in range(count)]
    return group or [first_ms]


def _repeat(series: list[Series], task: Task) -> bool:
    """One more round over the lengths, several over the cheap ones; says whether there was time for any visit."""
    points = sorted([(one.run_s(length), length, one) for one in series for length in one.first], key=lambda p: p[:2])
    cheap, dear = ([point for point in points if (point[0] <= VISIT_S) == kind] for kind in (True, False))
    visited = False
    for run_s, length, one in [*CHEAP_VISITS * cheap, *dear]:
        if 2 * max(run_s, VISIT_S) < task.deadline.left_s:
            one.later.setdefault(length, []).append(_visit(one, task, length))
            visited = True
    return visited


def _decode(model: LanguageModel, task: Task, length: int) -> Run:
    """One step after ``length`` - 1 tokens, with a state of random values."""
    state = model.init_state(task.cell.batch_size, length)
    state.fill_(length - 1, task.cell.seed)
    token = task.tokens(model.config.vocab_size, task.cell.batch_size)

    def run() -> None:
        state.position = length - 1
        model.step(token, state)

    return run


def _prefill(model: LanguageModel, task: Task, length: int) -> Run:
    prompt = task.tokens(model.config.vocab_size, task.cell.batch_size, length)
    return lambda: model.prefill(prompt)


def _train(model: LanguageModel, task: Task, length: int) -> Run:
    """Forward and backward over ``length`` positions."""
    tokens = task.tokens(model.config.vocab_size, task.cell.batch_size, length + 1)
    return lambda: forward_backward(model, tokens)


def _bytes(series: list[Series], model: LanguageModel, task: Task, length: int) -> Part:
    """Exact bytes of one length."""
    state = model.init_state(task.cell.batch_size, length)
    state.fill_(length)
    peaks = {f"{one.kind}_peak_memory_bytes": one.peak_bytes[length] for one in series if length in one.peak_bytes}
    return {"context": length, "state_bytes": state.nbytes, "step_bytes": state.step_bytes(), **peaks}


def _times(series: list[Series], length: int) -> Part:
    """The median of every kind at one length with its interval and the samples of every visit, ms."""
    part: Part = {"context": length}
    for one in series:
        if length in one.first:
            groups = one.later.get(length) or [one.first[length]]
            interval = median_interval(groups)
            part |= {f"{one.kind}_ms": interval.value, f"{one.kind}_ms_groups": groups}
            part |= {f"{one.kind}_ms_low": interval.low, f"{one.kind}_ms_high": interval.high}
    return part
