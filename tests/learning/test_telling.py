"""What a child tells: how far it is once a second and at its end, and a curve of means."""

from typing import Any

import pytest

from retbench.learning.telling import STRETCHES, Teller, curve


def test_a_run_is_told_of_now_and_then_and_at_its_end() -> None:
    told: list[dict[str, Any]] = []
    teller = Teller(10, told.append)
    for step in range(1, 11):
        teller(step, 5.0 - step, 0.3)

    assert [message["made"]["step"] for message in told] == [1, 5, 9, 10]
    assert told[-1] == {"made": {"step": 10, "steps": 10, "loss": -5.0}}


@pytest.mark.parametrize("steps", [1, 63, 64, 130, 1000])
def test_a_curve_ends_with_the_last_tokens_and_keeps_the_mean(steps: int) -> None:
    points = curve([float(step) for step in range(steps)], 100)
    ends = [0, *(tokens // 100 for tokens, _ in points)]
    sums = [mean * (ends[at + 1] - ends[at]) for at, (_, mean) in enumerate(points)]

    assert points[-1][0] == steps * 100
    assert sum(sums) == pytest.approx(steps * (steps - 1) / 2)
    assert len(points) < 2 * STRETCHES
