"""Work in a copy of the process: its files are there, its failures come back."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from retbench.report.beside import beside


def write(path: Path) -> None:
    path.write_text(str(os.getpid()))


def test_both_have_ended_after_the_block(tmp_path: Path) -> None:
    with beside(partial(write, tmp_path / "theirs")):
        write(tmp_path / "mine")

    assert (tmp_path / "theirs").read_text() != (tmp_path / "mine").read_text()


def test_its_oserror_is_raised_with_the_name_of_the_file(tmp_path: Path) -> None:
    missing = tmp_path / "none" / "file"

    with pytest.raises(FileNotFoundError) as error, beside(partial(write, missing)):
        pass
    assert error.value.filename == str(missing)


def test_one_that_was_killed_is_no_success() -> None:
    killed = pytest.raises(ChildProcessError, match="ended with -9")
    with killed, beside(lambda: os.kill(os.getpid(), signal.SIGKILL)):
        pass


def test_a_block_that_fails_ends_it(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with pytest.raises(ZeroDivisionError), beside(signal.pause):
        os.close(writer)
        1 / 0  # noqa: B018

    assert os.read(reader, 1) == b""  # no process holds the other end any more
