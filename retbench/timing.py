"""The only place that reads a clock: single samples, warm-up, deadlines."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from retbench.devices import Device

TRIVIAL_S = 1.0  # what takes no longer is never left out for want of time
CLOSE = 1.1  # warm-up ends when three samples lie within 10 % of each other ...
SETTLED = 0.95  # ... or, where noise prevents that, when they are no longer 5 % faster than the three before
MAX_WARM_UP = 30


@dataclass(frozen=True)
class Sample:
    """One timed call, nanoseconds: wall clock until the device is idle, and CPU time of the whole process."""

    wall_ns: int
    cpu_ns: int


@dataclass(frozen=True)
class Deadline:
    """A moment after which nothing new is started."""

    seconds: float
    started: float = field(default_factory=lambda: time.monotonic())

    @property
    def left_s(self) -> float:
        return self.started + self.seconds - time.monotonic()

    def fraction(self, share: float) -> "Deadline":
        """A deadline at ``share`` of what is left."""
        return Deadline(share * max(self.left_s, 0.0))


class Stopwatch:
    """Seconds between calls of ``lap``, the first one since it was made, the device idle at each."""

    def __init__(self, device: Device) -> None:
        self.laps_s: list[float] = []
        self._device = device
        self._device.synchronize()
        self._last = time.perf_counter()

    def lap(self) -> None:
        self._device.synchronize()
        now = time.perf_counter()
        self.laps_s.append(now - self._last)
        self._last = now


def sample(run: Callable[[], object], device: Device) -> Sample:
    """Times one call, the device idle before and after."""
    device.synchronize()
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    run()
    device.synchronize()
    return Sample(time.perf_counter_ns() - wall, time.process_time_ns() - cpu)


def warm_up(
    run: Callable[[], object], device: Device, deadline: Deadline, agreed: Callable[[bool], bool] = bool
) -> list[Sample]:
    """Runs until the time has settled, at least four times unless the deadline passes; these samples are discarded.

    ``agreed`` makes one decision of those of several processes.
    """
    samples = [sample(run, device)]
    while agreed(len(samples) < MAX_WARM_UP and deadline.left_s > 0 and not _settled([s.wall_ns for s in samples])):
        samples.append(sample(run, device))
    return samples


def rate(count: int, seconds: float) -> float:
    """``count`` a second; raises ValueError for nothing counted or no time, which is no rate."""
    if count <= 0 or seconds <= 0:
        raise ValueError(f"no rate from {count} in {seconds} s")
    return count / seconds


def _settled(wall_ns: list[int]) -> bool:
    """Whether, the first call apart, the last three are close together or no longer faster than the three before."""
    warm = wall_ns[1:]
    if len(warm) < 6:
        return len(warm) >= 3 and max(warm[-3:]) <= CLOSE * min(warm[-3:])
    return median(warm[-3:]) >= SETTLED * median(warm[-6:-3])
