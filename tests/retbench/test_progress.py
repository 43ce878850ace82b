"""What a user sees while a sweep runs: plain lines in a file or pipe, a live table on a terminal."""

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import pytest
from rich.console import Console, RenderableType
from rich.text import Text

from retbench.progress import Progress, summary
from retbench.record import Record, Status
from tests.retbench import EXAMPLE

OK = replace(
    EXAMPLE,
    metrics={
        "tpot_ms": 12.34,
        "tpot_ms_low": 12.0,
        "tpot_ms_high": 13.0,
        "tokens_per_s": 81.0,
        "peak_memory_bytes": 512 * 2**20,
    },
)
FAILED = replace(EXAMPLE, status="oom", reason="can't allocate [8] bytes", metrics={})


def table(records: Sequence[Record], width: int) -> RenderableType:
    return Text(f"table of {len(records)} at {width}")


def shown(terminal: bool, width: int = 80) -> str:
    """What a sweep of two cells, the second of which fails, writes."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, color_system="standard" if terminal else None)
    with Progress(2, table, console) as progress:
        progress.started(OK.cell, left_s=90.0)
        progress.finished(OK, reused=False)
        progress.started(FAILED.cell, left_s=0.0)
        progress.finished(FAILED, reused=False)
    return out.getvalue()


def test_elsewhere_than_on_a_terminal_every_step_is_a_plain_line() -> None:
    assert shown(terminal=False).splitlines() == [
        "[1/2] retnet small, batch 1, length 8192 ... about 1m30s left",
        "[1/2] retnet small, batch 1, length 8192: 12.3 ms a token (12.0 to 13.0), 81.0 tokens/s, 512.00 MiB",
        "[2/2] retnet small, batch 1, length 8192 ... over its budget, ending soon",
        "[2/2] retnet small, batch 1, length 8192: oom, can't allocate [8] bytes",
    ]


def test_cells_that_are_measured_in_turn_are_counted_with_the_first_of_them() -> None:
    out = io.StringIO()
    with Progress(3, table, Console(file=out, width=200)) as progress:
        progress.started(OK.cell, left_s=90.0, others=2)

    assert out.getvalue() == "[1/3] retnet small, batch 1, length 8192 and 2 more in turn ... about 1m30s left\n"


def test_a_line_is_neither_wrapped_nor_coloured_however_narrow_the_console() -> None:
    assert shown(terminal=False, width=20) == shown(terminal=False)
    assert "\x1b" not in shown(terminal=False)


def test_on_a_terminal_the_table_so_far_is_live_and_gone_at_the_end() -> None:
    text = shown(terminal=True)

    assert "table of 1 at 80" in text
    assert "about 1m30s left" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is hidden, and shown again
    assert text.rstrip().endswith("\x1b[2K")  # the last lines are erased


def test_the_terminal_is_put_right_when_the_sweep_is_interrupted() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80)

    with pytest.raises(KeyboardInterrupt), Progress(2, table, console) as progress:
        progress.started(OK.cell, left_s=90.0)
        raise KeyboardInterrupt

    assert "\x1b[?25h" in out.getvalue()


def test_a_cell_that_was_stored_already_is_said_to_be() -> None:
    out = io.StringIO()
    with Progress(1, table, Console(file=out, width=200)) as progress:
        progress.finished(OK, reused=True)

    assert out.getvalue().endswith("512.00 MiB (stored)\n")


@pytest.mark.parametrize("status", [status for status in get_args(Status) if status != "ok"])
def test_every_failure_is_summarised_with_its_reason(status: Status) -> None:
    assert summary(replace(FAILED, status=status)) == f"{status}, can't allocate [8] bytes"
