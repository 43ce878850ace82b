"""The doctor tells what is there and what its absence costs, and how well a gate would work here."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from retbench import cli, doctor
from retbench.doctor import Finding, findings
from retbench.errors import UsageError
from retbench.gate import log_ratios
from retbench.isolate import Outcome
from retbench.revision import Version
from retbench.self_comparison import Seen, compare_with_itself, detectable, self_table
from retbench.spec import Cell
from tests.retbench.gate_fixtures import Processes
from tests.retbench.test_gate import pairs


def found() -> dict[str, Finding]:
    return {finding.name: finding for finding in findings()}


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["retbench", "env", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_command_names_versions_devices_and_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run(monkeypatch, "--format", "json")

    rows = json.loads(capsys.readouterr().out)["env"]["rows"]
    names = {row["what"] for row in rows}
    assert status == 0
    assert {"python", "torch", "cpu", "cuda", "governor", "load", "free memory", "threads and malloc"} <= names


@pytest.mark.parametrize("words", [["--aa", "soon"], ["--format", "xml"]])
def test_bad_input_has_status_2(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, *words) == 2


def test_what_is_missing_says_what_it_costs_and_how_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)

    told = found()

    assert told["tokenizers"].meaning.endswith("pip install 'retbench[text]'")
    assert (told["C++ compiler"].found, told["C++ compiler"].judgement) == ("none", "warning")
    assert told["git"].meaning == "no gate against a commit"


@pytest.mark.parametrize(("governor", "judgement"), [("performance", "ok"), ("powersave", "warning")])
def test_a_governor_that_follows_the_load_is_a_warning(
    governor: str, judgement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpu0" / "cpufreq" / "scaling_governor"
    path.parent.mkdir(parents=True)
    path.write_text(f"{governor}\n")
    (tmp_path / "cpufreq").mkdir()
    (tmp_path / "cpufreq" / "boost").write_text("1\n")
    monkeypatch.setattr(doctor, "CPU_FILES", tmp_path)

    told = found()

    assert (told["governor"].found, told["governor"].judgement) == (governor, judgement)
    assert told["turbo"].found == "on"


def test_a_limit_of_the_group_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cpu.max"
    path.write_text("150000 100000\n")
    monkeypatch.setattr(doctor, "CPU_LIMIT", path)

    assert found()["CPU limit"].found == "1.5 processors"


# ---- the same code twice ----


def test_processes_are_paired_until_the_time_is_up(capsys: pytest.CaptureFixture[str]) -> None:
    seen = compare_with_itself(0.05, Processes().execute)

    assert len(seen.ratios) == len(seen.quiet) >= 2
    assert seen.quiet.all()


def test_a_disturbed_process_disturbs_its_pair(capsys: pytest.CaptureFixture[str]) -> None:
    class Disturbed(Processes):
        def execute(self, version: Version, cell: Cell, part: str) -> Outcome:
            outcome = super().execute(version, cell, part)
            switches = 500 if len(self.asked) == 2 else 0
            outcome.messages[-1]["interference"]["involuntary_context_switches"] = switches
            return outcome

    seen = compare_with_itself(0.05, Disturbed().execute)

    assert list(seen.quiet[:2]) == [False, True]


def test_a_process_that_fails_ends_it() -> None:
    broken = Processes(outcomes={("head", "timed"): Outcome("oom", "too large", [])})

    with pytest.raises(UsageError, match=r"retnet mini, .*: oom, too large"):
        compare_with_itself(0.05, broken.execute)


def test_noise_makes_slowdowns_harder_to_see() -> None:
    least = [detectable(log_ratios(pairs(60, noise=noise))) for noise in (0.02, 0.1, 3.0)]

    assert least[0] is not None
    assert least[1] is not None
    assert least[0] < least[1]
    assert least[2] is None


def test_the_table_has_a_row_with_and_without_the_disturbed_pairs() -> None:
    ratios = log_ratios(pairs(40))
    quiet = np.arange(40) >= 36

    table = self_table(Seen(ratios, quiet))

    assert [(row[0].text, row[1].value) for row in table.rows] == [("all", 40), ("left alone", 4)]
    assert table.rows[0][3].value == 0
    assert table.rows[1][3].text == "too few"
    assert "36 of 40 pairs were disturbed" in table.footnotes[1]
