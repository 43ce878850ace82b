"""retbench recall: what it refuses, and a short run whose records are found again."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.experiments.conftest import run, stored
from tests.learning.test_train import retbench

SHORT = ("recall", "--size", "nano", "--systems", "retnet,transformer-flash", "--pairs", "2,4", "--seeds", "1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--pairs", "4,256"), "--pairs 256 is too many: there are 64 keys"),
        (("--tokens", "64k", "--budget", "3m"), "--tokens and --budget both set the tokens"),
        (("--budget", "1s"), "--budget 1s is too small: the start, a step and the scoring of all runs (2) take about"),
        (("--dtype", "fp16"), "dtypes of training are auto, fp32, bf16"),
        (("--systems", "retnt"), "did you mean 'retnet'?"),
    ],
)
def test_bad_input_is_one_line(
    words: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    status = retbench(monkeypatch, *SHORT, *words)
    (line,) = capsys.readouterr().err.splitlines()

    assert status == 2
    assert message in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("device", "planned"), [("cpu", "two cores"), ("cuda", "A100")])
def test_a_dry_run_plans_for_the_device_that_is_asked_for(
    device: str, planned: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("experiments.recall.find_device", lambda name: SimpleNamespace(name=name))
    monkeypatch.setattr("retbench.plan.predict", lambda cells: ([{"peak_memory_bytes": 1} for _ in cells], []))
    status = retbench(monkeypatch, *SHORT, "--device", device, "--dry-run", "--format", "json")
    (note,) = (note for note in json.loads(capsys.readouterr().out)["plan"]["footnotes"] if "planned for" in note)

    assert status in (0, None)
    assert planned in note


@pytest.mark.slow
def test_a_run_is_stored_shown_and_drawn_and_made_once(tmp_path: Path) -> None:
    done = run(tmp_path, *SHORT, "--tokens", "12k")
    again = run(tmp_path, *SHORT, "--tokens", "12k")
    records = stored(tmp_path, "recall")

    assert done.returncode == 0, done.stderr
    assert [record.status for record in records] == ["ok", "ok"]
    assert "chance, 1 / pairs" in done.stdout
    assert (tmp_path / "reports" / "recall" / "recall.svg").exists()
    assert again.stdout == done.stdout
    assert "(stored)" in again.stderr
