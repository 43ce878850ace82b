"""How often the gate is wrong, measured: copies that really work more, rounds in random order, a table of shares."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from experiments.gate_power import INJECTION, LOADER, SAME, SLOWDOWNS, loaded_core, slowed
from retbench import cli
from retbench.devices.cpu import DEVICE as CPU
from retbench.isolate import Outcome
from retbench.revision import head
from retbench.store import Store
from tests.retbench.conftest import Clock, clock
from tests.retbench.gate_fixtures import Processes, processes, repository

__all__ = ["clock", "processes", "repository"]


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_the_injection_works_for_its_share_of_the_call(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = 0

    def clock() -> int:
        nonlocal now_ns
        now_ns += 1
        return now_ns

    class Model:
        def step(self, work_ns: int) -> str:
            nonlocal now_ns
            now_ns += work_ns
            return "stepped"

        def prefill(self) -> None: ...

    monkeypatch.setattr(time, "process_time_ns", clock)
    exec(INJECTION.format(share=share), {"LanguageModel": Model, "torch": torch})

    assert Model().step(10_000) == "stepped"
    assert now_ns == pytest.approx(10_000 * (1 + share), rel=0.01)


def test_a_slowed_copy_differs_in_what_was_added(repository: Path, tmp_path: Path) -> None:
    (repository / "models" / "language_model.py").write_text("class LanguageModel: ...\n")
    version = head(tmp_path / "work", CPU, 1)

    copy = slowed(version, tmp_path / "copy", "slower", 0.1)

    text = (copy.root / "models" / "language_model.py").read_text()
    assert text == "class LanguageModel: ...\n" + INJECTION.format(share=0.1)
    assert (version.root / "models" / "language_model.py").read_text() == "class LanguageModel: ...\n"


def test_the_loading_process_ends_with_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def start(command: list[str], env: dict[str, str]) -> SimpleNamespace:
        started.append((command[-1], env["OMP_NUM_THREADS"]))
        return SimpleNamespace(kill=lambda: started.append("killed"), wait=lambda: started.append("waited"))

    monkeypatch.setattr("experiments.gate_power.subprocess.Popen", start)

    with pytest.raises(KeyboardInterrupt), loaded_core(True):
        raise KeyboardInterrupt
    with loaded_core(False):
        pass

    assert started == [(LOADER, "1"), "killed", "waited"]


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    small = ["--no-load", "--budget", "10s", "--pairs", "10", "--gates", "100", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["retbench", "gate-power", *small, *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture
def models(repository: Path) -> None:
    (repository / "models" / "language_model.py").touch()


@pytest.mark.usefixtures("models")
def test_the_table_tells_false_alarms_and_power(
    tmp_path: Path,
    processes: Processes,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    processes.factors = {name: 1 + share for name, share in SLOWDOWNS.items()}
    processes.before = clock.pass_100_ms

    status = run(tmp_path, monkeypatch, "--format", "json")

    rows = json.loads(capsys.readouterr().out)["gate_power"]["rows"]
    (path,) = tmp_path.glob("results/*/gate-power.jsonl")
    assert status == 0
    assert [(row["rounds"], row["same"]) for row in rows] == [(13, 0), (13, 0)]
    assert all(row["slower by 25 %"] == 1 and row["slower by 10 %"] > 0.9 for row in rows)
    assert {record.experiment for record in Store(path).read().records} == {
        f"gate_power, {name}" for name in (*SAME, *SLOWDOWNS)
    }


@pytest.mark.usefixtures("models")
def test_a_failure_is_told_and_no_share_is_shown(
    tmp_path: Path,
    processes: Processes,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    processes.before = clock.pass_100_ms
    processes.outcomes = {("slower by 10 %", "timed"): Outcome("oom", "too large", [])}

    run(tmp_path, monkeypatch)

    assert "failed: too large" in capsys.readouterr().out
