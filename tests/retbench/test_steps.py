"""Whatever a step does, all that it says is passed on, its end is told, and nothing of it is left running."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from retbench import steps
from retbench.environment import ROOT
from retbench.steps import Ended, run_verb
from tests.retbench.conftest import is_running, wait_for_end

TELL = "import os, pathlib; pathlib.Path('pid').write_text(str(os.getpid()))\n"  # to the folder of the step


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose ``retbench`` stands in for ours."""
    found = tmp_path / "root"
    (found / "retbench").mkdir(parents=True)
    (found / "retbench" / "__init__.py").touch()
    monkeypatch.setattr(steps, "ROOT", found)
    return found


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, even where a shell has told this process to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def run(root: Path, code: str, *arguments: str, timeout_s: float = 60.0) -> tuple[Ended, str]:
    """How ``code`` ended as a verb, and what it said."""
    (root / "retbench" / "__main__.py").write_text(code)
    heard = list[bytes]()
    ended = run_verb(arguments, root.parent, heard.append, timeout_s)
    return ended, b"".join(heard).decode()


def test_what_a_verb_says_on_both_streams_is_heard_in_order(root: Path) -> None:
    code = "import sys\nprint('a', *sys.argv[1:])\nprint('b', file=sys.stderr)\nprint('c')"

    ended, said = run(root, code, "inference", "--seq-len", "1k")

    assert (ended.outcome, ended.reason) == ("done", None)
    assert said == "a inference --seq-len 1k\nb\nc\n"


def test_it_runs_in_the_folder_whose_own_packages_do_not_hide_ours(root: Path) -> None:
    (root.parent / "retbench").mkdir()
    (root.parent / "retbench" / "__init__.py").touch()
    (root.parent / "retbench" / "__main__.py").write_text("raise SystemExit('the wrong retbench')")

    _, said = run(root, "import os; print(os.getcwd())")

    assert said == f"{root.parent}\n"


def test_a_verb_that_fails_is_quoted(root: Path) -> None:
    ended, said = run(root, "import sys\nprint('retbench: unknown system')\nprint()\nsys.exit(2)")

    assert (ended.outcome, ended.reason) == ("failed", "exit status 2: retbench: unknown system")
    assert said.endswith("\n\n")


def test_a_verb_that_says_nothing_and_is_killed_is_told(root: Path) -> None:
    ended, _ = run(root, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")

    assert (ended.outcome, ended.reason) == ("failed", "SIGKILL: it said nothing")


@pytest.mark.usefixtures("interruptible")
def test_a_verb_that_hangs_is_interrupted_and_its_last_words_are_heard(root: Path) -> None:
    code = TELL + "import time\ntry:\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    print('2 of 3 are stored')"

    ended, said = run(root, code, timeout_s=1)

    assert (ended.outcome, ended.reason) == ("timeout", "not done after 1 s")
    assert said == "2 of 3 are stored\n"
    assert not is_running(int((root.parent / "pid").read_text()))


def test_a_verb_that_ignores_the_interrupt_is_killed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "GRACE_S", 0.1)
    code = TELL + "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(600)"

    ended, _ = run(root, code, timeout_s=1)

    assert ended.outcome == "timeout"
    assert not is_running(int((root.parent / "pid").read_text()))


def test_a_process_that_the_verb_left_behind_is_killed(root: Path) -> None:
    code = "import subprocess\nprint(subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL, stderr=-3).pid)"

    ended, said = run(root, code)

    assert ended.outcome == "done"
    wait_for_end(int(said))


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_of_the_parent_interrupts_the_verb(root: Path) -> None:
    code = "import os, pathlib, signal, time\ntry:\n    os.kill(os.getppid(), signal.SIGINT)\n    time.sleep(600)\n"
    code += "except KeyboardInterrupt:\n    pathlib.Path('interrupted').touch()"

    with pytest.raises(KeyboardInterrupt):
        run(root, code)

    assert (root.parent / "interrupted").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_the_verb_dies_with_a_parent_that_is_killed(root: Path) -> None:
    (root / "retbench" / "__main__.py").write_text(TELL + "import time; time.sleep(600)")
    code = "import sys; from pathlib import Path; from retbench import steps\nsteps.ROOT = Path(sys.argv[1])\n"
    code += "steps.run_verb([], steps.ROOT.parent, print, 600)"
    pid = root.parent / "pid"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(root)], env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as parent:
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.01)
        parent.kill()

    wait_for_end(int(pid.read_text()))


def test_the_parent_sleeps_while_a_verb_runs(root: Path) -> None:
    before = time.process_time()

    ended, _ = run(root, "import time; time.sleep(1)")

    assert ended.seconds >= 1
    assert time.process_time() - before < 0.2  # CPU seconds: a parent that polls would burn the whole second
