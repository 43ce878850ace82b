"""retbench gate: what it prints, what it leaves, and an exit status for everything that can come of it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from retbench import cli
from retbench.isolate import Outcome
from retbench.store import Store
from tests.retbench.conftest import Clock
from tests.retbench.gate_fixtures import COUNTS, Processes, git, processes, repository

__all__ = ["processes", "repository"]

BROKEN = Outcome("timeout", "not done after 300 s", [])
Run = Callable[..., int]


@pytest.fixture
def run(repository: Path, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command over two cells of a tiny system; returns the exit status."""
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)

    def gate(*words: str, base_ref: str = "main~1") -> int:
        base = ["--base-ref", base_ref] if base_ref else []
        small = ["--systems", "retnet", "--size", "tiny", "--seq-len", "16", "--device", "cpu", "--dtype", "fp32"]
        monkeypatch.setattr(sys, "argv", ["retbench", "gate", *base, *small, "--out", str(tmp_path), *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return gate


def test_the_same_speed_and_bytes_pass(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    status = run("--format", "md")

    lines = capsys.readouterr().out.splitlines()
    assert status == 0
    assert lines[0].endswith(": ok")
    assert sum("| time |" in line and "| ok | 10 |" in line for line in lines) == 2
    assert "- 10 counted metrics are the same to the byte" in lines


def test_an_improvement_passes(run: Run, processes: Processes) -> None:
    processes.factors = {"head": 0.7}
    processes.counts = {"head": {**COUNTS, "peak_memory_bytes": 500}}

    assert run() == 0


def test_a_slowdown_is_a_regression(run: Run, processes: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    processes.factors = {"head": 1.3}

    assert run() == 1
    assert capsys.readouterr().out.count("regressed") >= 3  # the title and both cells


def test_a_byte_more_is_a_regression_and_may_be_allowed(run: Run, processes: Processes) -> None:
    processes.counts = {"head": {**COUNTS, "state_bytes": 65}}

    assert run() == 1
    assert run("--allow", "state_bytes") == 0
    assert run("--metric", "time") == 0


def test_a_slowdown_within_the_margin_passes(run: Run, processes: Processes) -> None:
    processes.factors = {"head": 1.3}

    assert run("--margin", "50%") == 0


@pytest.mark.parametrize(("choice", "status"), [("fail", 3), ("pass", 0)])
def test_noise_is_inconclusive(run: Run, processes: Processes, clock: Clock, choice: str, status: int) -> None:
    processes.noise, processes.before = 0.6, clock.pass_100_ms

    assert run("--budget", "5s", "--inconclusive", choice) == status


def test_a_base_that_cannot_be_measured_leaves_nothing_to_compare(run: Run, processes: Processes) -> None:
    processes.outcomes = {("base", "counted"): BROKEN}

    assert run() == 4


@pytest.mark.parametrize("part", ["counted", "timed"])
def test_a_head_that_fails_is_a_failed_cell(
    run: Run, processes: Processes, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    processes.outcomes = {("head", part): BROKEN}

    assert run() == 5
    assert "head timeout: not done after 300 s" in " ".join(capsys.readouterr().out.split())


def test_the_workplace_is_gone_afterwards(run: Run, processes: Processes, repository: Path) -> None:
    roots: list[str] = []
    answer = processes.run_worker

    def noting(*arguments: object, **options: object) -> Outcome:
        roots.append(str(arguments[4]))
        return answer(*arguments, **options)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retbench.isolate.run_worker", noting)
        run("--metric", "parameters")

    assert roots
    assert not any(Path(root).parent.exists() for root in roots)
    assert len(git(repository, "worktree", "list").splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--margin", "5 apples"], "--margin '5 apples' is no share"),
        (["--margin", "-1%"], "--margin '-1%' is no share"),
        (["--margin", "nan"], "--margin 'nan' is no share"),
        (["--metric", "speed"], "unknown metric 'speed'"),
        (["--allow", "time"], "unknown --allow metric 'time'"),
        (["--systems", "retnt"], "did you mean 'retnet'"),
        (["--experiment", "speed"], "unknown experiment 'speed'"),
        (["--inconclusive", "maybe"], "unknown --inconclusive value 'maybe'"),
        (["--budget", "soon"], "--budget"),
        (["--pairs", "1"], "pairs"),
        (["--format", "xml"], "unknown format 'xml'"),
        (["--base-ref", "nowhere"], "--base-ref 'nowhere' is no commit"),
        (["--baseline", "x.jsonl"], "exclude each other"),
        (["--update-baseline"], "--update-baseline needs --baseline FILE"),
        (["--out", "/dev/null/x"], "cannot write"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    run: Run, processes: Processes, words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2

    said = capsys.readouterr()
    assert reason in said.err
    assert (said.out, said.err.count("\n"), processes.asked) == ("", 1, [])


def test_records_of_both_sides_are_stored(run: Run, tmp_path: Path) -> None:
    run()

    contents = {path.stem: Store(path).read() for path in tmp_path.glob("results/*/*.jsonl")}
    assert contents.keys() == {"gate", "gate-base"}
    assert all(len(found.records) == 2 and found.problems == () for found in contents.values())


def test_reports_are_written_for_machines(run: Run, processes: Processes, tmp_path: Path) -> None:
    processes.factors, processes.counts = {"head": 1.3}, {"head": {**COUNTS, "state_bytes": 65}}

    run()

    folder = tmp_path / "reports" / "gate"
    suite = ElementTree.parse(folder / "junit.xml").getroot()
    entries = json.loads((folder / "benchmark.json").read_text())
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("12", "4", "0")
    assert {failure.get("message", "")[:10] for failure in suite.iter("failure")} == {"regressed:"}
    assert all({"name", "unit", "value"} <= entry.keys() for entry in entries)
    assert {entry["unit"] for entry in entries} == {"ms", "bytes", "count"}
    assert "regressed" in (folder / "gate.md").read_text()


def test_in_a_github_job_it_annotates_and_summarises(
    run: Run, processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    processes.factors = {"head": 1.3}

    run()

    annotations = [line for line in capsys.readouterr().err.splitlines() if line.startswith("::")]
    assert len(annotations) == 2
    assert annotations[0].startswith(
        "::error title=regressed%2C decode retnet tiny%2C batch 1%2C length 16%2C fp32::time 1."
    )
    assert summary.read_text() == (tmp_path / "reports" / "gate" / "gate.md").read_text()


# ---- stored baselines ----


def test_a_baseline_is_written_and_compared_with(run: Run, processes: Processes, tmp_path: Path) -> None:
    path = tmp_path / "baselines" / "x.jsonl"

    written = run("--baseline", str(path), "--update-baseline", base_ref="")
    before = path.read_bytes()
    same = run("--baseline", str(path), base_ref="")
    processes.factors = {"head": 1.4}
    slower = run("--baseline", str(path), base_ref="")

    assert (written, same, slower) == (0, 0, 1)
    assert path.read_bytes() == before


def test_a_cell_that_the_baseline_lacks_is_new(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    run("--baseline", str(path), "--update-baseline", base_ref="")

    assert run("--baseline", str(path), "--seq-len", "16,32", base_ref="") == 0
    assert run("--baseline", str(path), "--seq-len", "32", base_ref="") == 4


def test_a_baseline_of_other_conditions_is_refused_with_the_fields(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.jsonl"
    run("--baseline", str(path), "--update-baseline", base_ref="")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["environment"] |= {"fingerprint": "other", "torch": "1.0"}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    capsys.readouterr()

    assert run("--baseline", str(path), base_ref="") == 2
    assert "measured under other conditions: torch 1.0 there, 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "reason"), [("", "holds no records"), ("{", "x.jsonl:1: not a record"), (None, "cannot read")]
)
def test_a_baseline_that_cannot_be_read_is_refused(
    text: str | None, reason: str, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.jsonl"
    if text is not None:
        path.write_text(text)

    assert run("--baseline", str(path), base_ref="") == 2
    assert reason in capsys.readouterr().err
    assert (path.read_text() if path.exists() else None) == text


def test_a_baseline_is_not_replaced_by_a_run_that_failed(run: Run, processes: Processes, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("precious")
    processes.outcomes = {("head", "timed"): BROKEN}

    assert run("--baseline", str(path), "--update-baseline", base_ref="") == 5
    assert path.read_text() == "precious"


# ---- for real ----

TINY_GATE = (sys.executable, "-m", "retbench", "gate", "--base-ref", "HEAD", "--size", "tiny", "--seq-len", "32")


@pytest.mark.slow
def test_a_gate_of_this_checkout_against_itself_does_not_regress(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *TINY_GATE,
            "--systems",
            "retnet",
            "--pairs",
            "6",
            "--budget",
            "100s",
            "--margin",
            "50%",
            "--out",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode in (0, 3), done.stdout + done.stderr
    assert "are the same to the byte" in done.stdout


@pytest.mark.slow
def test_a_cancelled_gate_leaves_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [*TINY_GATE, "--out", str(tmp_path)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.readline()  # a cell is counted
        process.send_signal(signal.SIGTERM)

        assert process.wait() == 143
    assert list(tmp_path.glob("retbench-gate-*")) == []
