"""Warm-up ends when the time has settled, deadlines end the rest, and a rate of nothing is an error; no real clock."""

from collections.abc import Callable, Iterable
from typing import cast

import pytest

from retbench.devices import Device
from retbench.timing import MAX_WARM_UP, Deadline, Sample, rate, sample, warm_up
from tests.retbench.conftest import Clock


def calls(clock: Clock, durations: Iterable[int]) -> Callable[[], None]:
    """A function whose calls take these nanoseconds, one after the other."""
    left = iter(durations)

    def call() -> None:
        clock.now_ns += next(left)

    return call


def warmed(clock: Clock, durations: Iterable[int], seconds: float = 3600.0) -> list[int]:
    samples = warm_up(calls(clock, durations), cast(Device, clock), Deadline(seconds))
    return [one.wall_ns for one in samples]


def test_a_sample_holds_wall_and_cpu_time_from_idle_to_idle(clock: Clock) -> None:
    one = sample(calls(clock, [1000]), cast(Device, clock))

    assert one == Sample(wall_ns=1000, cpu_ns=500)
    assert clock.synchronized_at == [0, 1000]


def test_work_that_is_only_submitted_counts_until_the_device_is_idle(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish() -> None:
        clock.now_ns += 500

    monkeypatch.setattr(clock, "synchronize", finish)

    assert sample(calls(clock, [10]), cast(Device, clock)).wall_ns == 510


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
    deadline = Deadline(10.0)
    clock.now_ns += 4 * 10**9

    assert deadline.left_s == 6.0
    assert deadline.fraction(0.5).seconds == 3.0


def test_a_deadline_that_has_passed_has_nothing_to_share(clock: Clock) -> None:
    deadline = Deadline(10.0)
    clock.now_ns += 14 * 10**9

    assert deadline.left_s == -4.0
    assert deadline.fraction(0.5).seconds == 0.0


def test_a_rate_is_a_count_a_second() -> None:
    assert rate(30, 1.5) == 20.0


@pytest.mark.parametrize(("count", "seconds"), [(0, 1.0), (-1, 1.0), (1, 0.0), (1, -1.0), (0, 0.0)])
def test_a_rate_of_nothing_or_in_no_time_is_an_error(count: int, seconds: float) -> None:
    with pytest.raises(ValueError, match=f"no rate from {count} in {seconds} s"):
        rate(count, seconds)
