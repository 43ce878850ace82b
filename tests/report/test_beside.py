"""Work in a copy of the process: its files are there, its failures come back."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from retbench.environment import ROOT
from retbench.report.beside import beside
from tests.retbench.conftest import wait_for_end

WORKS_ON = """
import os, signal
from retbench.report.beside import beside

def work():
    os.write(1, f"{os.getpid()}\\n".encode())
    signal.pause()

with beside(work):
    signal.pause()
"""


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


@pytest.mark.skipif(sys.platform != "linux", reason="no fork is made elsewhere")
def test_it_does_not_outlive_a_parent_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", WORKS_ON], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()

    wait_for_end(child)


def test_a_block_that_fails_ends_it(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with pytest.raises(ZeroDivisionError), beside(signal.pause):
        os.close(writer)
        1 / 0  # noqa: B018

    assert os.read(reader, 1) == b""  # no process holds the other end any more
