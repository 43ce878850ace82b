"""Warm-up ends when the time has settled, deadlines end the rest, and a rate of nothing is an error; no real clock."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

import pytest

from retbench import timing
from retbench.devices import Device
from retbench.timing import MAX_WARM_UP, Deadline, Sample, rate, sample, warm_up


@dataclass
class Clock:
    """Stands in for the time module: moves when told to, its CPU clock at half the speed."""

    now_ns: int = 0
    synchronized_at: list[int] = field(default_factory=list)

    def perf_counter_ns(self) -> int:
        return self.now_ns

    def process_time_ns(self) -> int:
        return self.now_ns // 2

    def monotonic(self) -> float:
        return self.now_ns / 1e9

    def synchronize(self) -> None:
        """The device's part: notes when it was called."""
        self.synchronized_at.append(self.now_ns)

    def calls(self, durations: Iterable[int]) -> "Calls":
        return Calls(self, iter(durations))


@dataclass
class Calls:
    """A function whose calls take these nanoseconds, one after the other."""

    clock: Clock
    durations: Iterable[int]

    def __call__(self) -> None:
        self.clock.now_ns += next(iter(self.durations))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stand_in = Clock()
    monkeypatch.setattr(timing, "time", stand_in)
    return stand_in


def warmed(clock: Clock, durations: Iterable[int], seconds: float = 3600.0) -> list[int]:
    samples = warm_up(clock.calls(durations), cast(Device, clock), Deadline(seconds, started=clock.monotonic()))
    return [one.wall_ns for one in samples]


def test_a_sample_holds_wall_and_cpu_time_from_idle_to_idle(clock: Clock) -> None:
    one = sample(clock.calls([1000]), cast(Device, clock))

    assert one == Sample(wall_ns=1000, cpu_ns=500)
    assert clock.synchronized_at == [0, 1000]


def test_work_that_is_only_submitted_counts_until_the_device_is_idle(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish() -> None:
        clock.now_ns += 500

    monkeypatch.setattr(clock, "synchronize", finish)

    assert sample(clock.calls([10]), cast(Device, clock)).wall_ns == 510


def test_a_slow_start_is_discarded_and_its_first_call_kept(clock: Clock) -> None:
    assert warmed(clock, [9000, 1000, 1000, 1000, 1000]) == [9000, 1000, 1000, 1000]


def test_several_slow_calls_are_waited_for(clock: Clock) -> None:
    slow = [9000, 8000, 6000, 4000, 3000]

    assert warmed(clock, slow + [1000] * 30)[:5] == slow
    assert clock.now_ns >= sum(slow) + 3 * 1000  # the last three are of the settled time


def test_warm_up_takes_four_calls_at_least(clock: Clock) -> None:
    assert warmed(clock, [1000] * 30) == [1000] * 4


def test_warm_up_ends_under_noise(clock: Clock) -> None:
    noisy = [1000, 1500] * 30

    assert len(warmed(clock, noisy)) <= 8


def test_warm_up_goes_on_while_calls_become_faster_and_ends_at_its_limit(clock: Clock) -> None:
    faster = [int(10**9 * 0.8**n) for n in range(100)]

    assert warmed(clock, faster) == faster[:MAX_WARM_UP]


def test_warm_up_ends_at_the_deadline_after_one_call(clock: Clock) -> None:
    assert warmed(clock, [10**9] * 30, seconds=0.5) == [10**9]
    assert warmed(clock, [10**9] * 30, seconds=-1.0) == [10**9]


def test_a_deadline_tells_what_is_left_and_shares_it_out(clock: Clock) -> None:
    deadline = Deadline(10.0, started=clock.monotonic())
    clock.now_ns += 4 * 10**9

    assert deadline.left_s == 6.0
    assert deadline.fraction(0.5).seconds == 3.0


def test_a_deadline_that_has_passed_has_nothing_to_share(clock: Clock) -> None:
    deadline = Deadline(10.0, started=clock.monotonic())
    clock.now_ns += 14 * 10**9

    assert deadline.left_s == -4.0
    assert deadline.fraction(0.5).seconds == 0.0


def test_a_rate_is_a_count_a_second() -> None:
    assert rate(30, 1.5) == 20.0


@pytest.mark.parametrize(("count", "seconds"), [(0, 1.0), (-1, 1.0), (1, 0.0), (1, -1.0), (0, 0.0)])
def test_a_rate_of_nothing_or_in_no_time_is_an_error(count: int, seconds: float) -> None:
    with pytest.raises(ValueError, match=f"no rate from {count} in {seconds} s"):
        rate(count, seconds)
