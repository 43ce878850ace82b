"""Prefill: the time to the first token (TTFT) of a prompt of seq_len random token ids, and its exact peak memory."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from retbench.measure import PRECISION, Model, Part, Parts, Task
from retbench.quantities import format_bytes, format_duration
from retbench.statistics import median_interval
from retbench.timing import TRIVIAL_S, Sample, rate, sample, warm_up

SHORT = 512  # prompts up to this length are warmed up whole; longer ones by prefixes that foretell their time
MINIMUM_FOR_INTERVAL = 3
OVERRUN = 1.5  # a forecast is noisy: one this many times too long is still tried
SAMPLES_SHARE = 0.8  # of the time that is left; the rest is for memory


@dataclass(frozen=True)
class Forecast:
    """What a prefill of the whole prompt will take, or why there will be none; the runs that warmed it up."""

    expected_s: float
    skipped: str | None
    warm_up: list[Sample]


@torch.inference_mode()
def measure(model: Model, task: Task) -> Parts:
    """Yields the TTFT, or why it was not measured, then the peak memory."""
    yield from measure_forecast(model, task, forecast(model, task))


def forecast(model: Model, task: Task) -> Forecast:
    """Decides, before other work uses up the time, whether there will be enough memory and time."""
    reason = task.skip_prefill or _does_not_fit(task)
    if reason is not None:
        return Forecast(0.0, reason, [])
    samples, expected_s = _warm_up(model, task)
    if expected_s > _tolerated_s(task):
        left = format_duration(max(task.deadline.left_s, 0.0))
        reason = f"would take about {format_duration(expected_s)}, the cell has {left}: raise --budget"
    return Forecast(expected_s, reason, samples)


def measure_forecast(model: Model, task: Task, ahead: Forecast) -> Parts:
    """Yields the TTFT of at least one run, then the peak memory when there is time for one more."""
    if ahead.skipped is not None:
        yield {"metrics": {"ttft_ms": None, "ttft_status": "skipped", "ttft_reason": ahead.skipped}}
        return
    yield _timing_part(task, _samples(model, task, ahead.expected_s), ahead.warm_up)
    if ahead.expected_s < max(task.deadline.left_s, TRIVIAL_S):
        prompt = _prompt(model, task, task.cell.seq_len)
        peak = task.device.peak_memory(lambda: None, lambda _: model.prefill(prompt))
        yield {"metrics": {"prefill_peak_memory_bytes": model.weights_bytes() + peak.tensor_bytes}}


def _tolerated_s(task: Task) -> float:
    """What one prefill may be expected to take: somewhat more than is left, since the forecast is noisy."""
    return max(OVERRUN * task.deadline.left_s, TRIVIAL_S)


def _does_not_fit(task: Task) -> str | None:
    """Why the prompt cannot be processed in the memory that is free now, None when it can or nothing was predicted."""
    needed = task.predicted.get("prefill_peak_memory_bytes", 0) - task.predicted.get("weights_bytes", 0)
    free = task.device.free_bytes()
    if needed <= free:
        return None
    return f"needs {format_bytes(needed)} beside the weights, {format_bytes(free)} are free"


def _warm_up(model: Model, task: Task) -> tuple[list[Sample], float]:
    """Warm-up runs, and the seconds that one prefill of the whole prompt will take, at least.

    A long prompt is warmed up by prefixes, as long as the whole may still end in time: each bounds its time from below,
    and the last two foretell it as linear + quadratic.
    """
    length = task.cell.seq_len
    if length <= SHORT:
        prompt = _prompt(model, task, length)
        samples = warm_up(partial(model.prefill, prompt), task.device, task.deadline.fraction(0.5))
        return samples, samples[-1].wall_ns / 1e9
    samples = [sample(partial(model.prefill, _prompt(model, task, SHORT // 2)), task.device)]  # cold, foretells nothing
    for prefix in (SHORT // 2, length // 8, length // 4):
        samples.append(sample(partial(model.prefill, _prompt(model, task, prefix)), task.device))
        at_least_s = samples[-1].wall_ns / 1e9 * length / prefix
        if at_least_s > _tolerated_s(task):
            return samples, at_least_s
    eighth, quarter = (s.wall_ns / 1e9 for s in samples[2:])
    quadratic = max(32 * (quarter - 2 * eighth), 0.0)
    linear = max(8 * eighth - quadratic / 8, 0.0)
    return samples, max(linear + quadratic, at_least_s)


def _samples(model: Model, task: Task, expected_s: float) -> list[Sample]:
    """Repeats with different prompts until the median is precise or another one would end too late."""
    deadline, samples = task.deadline.fraction(SAMPLES_SHARE), list[Sample]()
    while not samples or (expected_s < deadline.left_s and not _precise(samples)):
        prompt = _prompt(model, task, task.cell.seq_len)
        samples.append(sample(partial(model.prefill, prompt), task.device))
    return samples


def _precise(samples: list[Sample]) -> bool:
    enough = len(samples) > MINIMUM_FOR_INTERVAL
    return enough and median_interval([[s.wall_ns for s in samples]]).relative_half_width <= PRECISION


def _timing_part(task: Task, samples: list[Sample], first: list[Sample]) -> Part:
    ttft = median_interval([[s.wall_ns / 1e6 for s in samples]])
    known = len(samples) >= MINIMUM_FOR_INTERVAL
    return {
        "metrics": {
            "ttft_ms": ttft.value,
            "ttft_ms_low": ttft.low if known else None,
            "ttft_ms_high": ttft.high if known else None,
            "ttft_status": "ok",
            "prefill_tokens_per_s": rate(task.cell.batch_size * task.cell.seq_len, ttft.value / 1e3),
        },
        "samples": {"prefill_ns": [s.wall_ns for s in samples], "prefill_cpu_ns": [s.cpu_ns for s in samples]},
        "warmup": {"prefill_discarded": len(first), "prefill_first_ns": first[0].wall_ns},
    }


def _prompt(model: Model, task: Task, length: int) -> Tensor:
    return task.tokens(model.config.vocab_size, task.cell.batch_size, length)
