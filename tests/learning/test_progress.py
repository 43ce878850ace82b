"""A training run on stderr: plain lines now and then, one live line on a terminal."""

from io import StringIO

from rich.console import Console

from retbench.learning.progress import TrainingProgress
from tests.learning.test_run import RUN


def shown(seconds: float, terminal: bool) -> str:
    file = StringIO()
    with TrainingProgress(RUN, Console(file=file, force_terminal=terminal, width=100)) as progress:
        for step in range(1, RUN.steps + 1):
            progress.made(step, 5.0 - step / 10, seconds)
    return file.getvalue()


def test_lines_tell_the_loss_the_speed_and_the_time_left() -> None:
    lines = shown(2.0, terminal=False).splitlines()

    assert lines[0] == "step 1/11, loss 4.900, 50 tokens/s, about 20s left"
    assert [line.split("/")[0] for line in lines] == ["step 1", "step 6", "step 11"]


def test_a_fast_run_is_not_noisy() -> None:
    assert len(shown(0.01, terminal=False).splitlines()) == 2


def test_a_terminal_shows_every_step_in_place() -> None:
    text = shown(0.01, terminal=True)

    assert "step 7/11" in text
    assert "loss 3.900" in text
