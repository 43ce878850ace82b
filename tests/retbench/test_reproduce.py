"""retbench reproduce: its plan, its order, what it says of steps that fail, and what stops it. Steps are stand-ins."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from retbench import cli, reproduce
from retbench.preset import EXTRAS
from retbench.steps import Ended, Hear

PRESET = """
summary = "three steps"
[[steps]]
name = "first"
command = "inference --seq-len 1k"
takes = "3m"
budget = "2m"
[[steps]]
name = "second"
command = "complexity"
takes = "2m"
budget = "1m"
[[steps]]
name = "third"
command = "training-cost --fit"
takes = "1m"
"""
DONE = Ended("done", None, 1.0)


@dataclass(frozen=True)
class Finished:
    """How a command ended and what it wrote."""

    status: int
    out: str
    err: str


@dataclass
class Verbs:
    """Answers instead of processes; what is not in ``ends`` is done."""

    ends: dict[str, Ended | BaseException] = field(default_factory=dict)  # by verb
    asked: list[tuple[Sequence[str], Path]] = field(default_factory=list)

    def run(self, arguments: Sequence[str], folder: Path, hear: Hear, timeout_s: float) -> Ended:
        self.asked.append((arguments, folder))
        hear(f"{arguments[0]} at work\n".encode())
        end = self.ends.get(arguments[0], DONE)
        if isinstance(end, BaseException):
            raise end
        return end


Run = Callable[..., Finished]


@pytest.fixture
def verbs(monkeypatch: pytest.MonkeyPatch) -> Verbs:
    stand_in = Verbs()
    monkeypatch.setattr(reproduce, "run_verb", stand_in.run)
    return stand_in


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verbs: Verbs) -> Run:
    """Runs reproduce with the preset above, in an empty folder and this process."""
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(PRESET)

    def run_command(*arguments: str, preset: str = "mine.toml") -> Finished:
        monkeypatch.setattr(sys, "argv", ["retbench", "reproduce", "--preset", preset, *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return Finished(int(caught.value.code or 0), *capsys.readouterr())

    return run_command


def test_a_dry_run_shows_the_steps_with_their_times_and_writes_nothing(run: Run, verbs: Verbs) -> None:
    done = run("--dry-run")

    assert (done.status, done.err, verbs.asked) == (0, "", [])
    assert [line.split()[:2] for line in done.out.splitlines()[2:5]] == [
        ["3m", "first"],
        ["2m", "second"],
        ["1m", "third"],
    ]
    assert "retbench inference --seq-len 1k --budget 120s" in done.out
    assert "3 steps, about 6m on two cores" in done.out
    assert "a step is ended, as one that hangs, after 5 times its own and 5m more" in " ".join(done.out.split())
    assert sorted(path.name for path in Path().iterdir()) == ["mine.toml"]


def test_a_package_that_a_step_needs_is_missed_before_anything_runs(
    run: Run, verbs: Verbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("needy.toml").write_text(PRESET + 'needs = "no_such_package"\n', encoding="utf-8")
    monkeypatch.setitem(EXTRAS, "no_such_package", "text")
    refused, planned = run(preset="needy.toml"), run("--dry-run", preset="needy.toml")
    others = run("--only", "first,second", preset="needy.toml")

    assert refused.status == 2
    assert "third need no_such_package: pip install 'retbench[text]'" in refused.err
    assert "no_such_package" in planned.out
    assert (planned.status, others.status) == (0, 0)
    assert len(verbs.asked) == 2


def test_the_steps_run_in_order_in_the_folder_and_a_table_ends_them(run: Run, verbs: Verbs) -> None:
    done = run("--out", "there")

    assert done.status == 0
    assert [arguments[0] for arguments, _ in verbs.asked] == ["inference", "complexity", "training-cost"]
    assert {folder for _, folder in verbs.asked} == {Path("there")}
    assert [line.split() for line in done.out.splitlines() if line.endswith("done")] == [
        ["first", "3m", "1s", "done"],
        ["second", "2m", "1s", "done"],
        ["third", "1m", "1s", "done"],
    ]


def test_what_is_said_goes_to_stderr_and_to_a_log_that_grows(run: Run) -> None:
    first, second = run("--only", "first"), run("--only", "third")

    log = Path("results", "reproduce-mine.log").read_text()
    assert log == first.err + second.err
    assert first.err.splitlines() == [
        "[1/1] first: retbench inference --seq-len 1k --budget 120s ... about 3m left",
        "inference at work",
        "[1/1] first: done in 1s",
    ]


def test_a_step_that_fails_is_told_and_the_rest_goes_on(run: Run, verbs: Verbs) -> None:
    verbs.ends["complexity"] = Ended("failed", "exit status 2: retbench: no room", 2.0)

    done = run()

    assert done.status == 1
    assert len(verbs.asked) == 3
    assert "[2/3] second: failed after 2s, exit status 2: retbench: no room" in done.err
    assert "- second: exit status 2: retbench: no room\n- the same command runs what is missing" in done.out


def test_only_some_steps_run_in_their_own_order(run: Run, verbs: Verbs) -> None:
    done = run("--only", "third,first")

    assert done.status == 0
    assert [arguments[0] for arguments, _ in verbs.asked] == ["inference", "training-cost"]


def test_a_budget_is_for_all_steps(run: Run, verbs: Verbs) -> None:
    run("--budget", "9m")

    assert [arguments for arguments, _ in verbs.asked] == [
        ["inference", "--seq-len", "1k", "--budget", "240s"],
        ["complexity", "--budget", "120s"],
        ["training-cost", "--fit"],
    ]


def test_an_interrupt_ends_it_and_says_how_to_go_on(run: Run, verbs: Verbs) -> None:
    verbs.ends["complexity"] = KeyboardInterrupt()

    done = run()

    assert done.status == 130
    assert len(verbs.asked) == 2
    assert done.err.splitlines()[-1] == "interrupted in second; the same command continues"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "secnod"], "unknown step 'secnod'; did you mean 'second'? steps are first, second, third"),
        (["--only", ","], "no step given; steps are all, first, second, third"),
        (["--budget", "soon"], "--budget 'soon' is not a duration"),
        (["--budget", "2m"], "--budget 2m is too short for mine: at least"),
        (["--only", "third", "--budget", "9m"], "--budget changes nothing"),
        (["--out", "mine.toml"], "cannot write mine.toml/results/reproduce-mine.log: "),
    ],
)
def test_bad_input_is_one_line_and_nothing_runs(arguments: list[str], said: str, run: Run, verbs: Verbs) -> None:
    done = run(*arguments)

    assert (done.status, verbs.asked) == (2, [])
    assert done.err.startswith(f"retbench: {said}")
    assert done.err.count("\n") == 1


def test_a_wrong_preset_is_one_line(run: Run) -> None:
    Path("mine.toml").write_text(PRESET.replace("complexity", "complicity"))

    done = run()

    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("retbench: preset mine.toml, step 2 (second): unknown verb 'complicity'; did you mean")


def test_a_preset_cannot_hold_itself(run: Run) -> None:
    Path("mine.toml").write_text(PRESET.replace('"complexity"', '"reproduce --preset mine.toml"'))

    done = run()

    assert done.status == 2
    assert "unknown verb 'reproduce'" in done.err
