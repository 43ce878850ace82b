"""retbench train: what it refuses, and a run whose checkpoint other commands read."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from retbench import cli
from retbench.checkpoints import find_checkpoint
from retbench.environment import ROOT
from retbench.errors import UsageError
from retbench.learning.corpus import Corpus
from retbench.train import prepare
from tests.learning.conftest import texts, write_jsonl
from tests.learning.test_run import RUN

WITHOUT_DATA = json.dumps({"run": asdict(RUN), "tokenizer": "bytes"})
SMALL = ["--size", "tiny", "--tokenizer", "bytes", "--seq-len", "16", "--batch-size", "2", "--threads", "1"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands run in, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def retbench(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """The exit status of a command that starts no process."""
    monkeypatch.setattr(sys, "argv", ["retbench", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


@pytest.mark.usefixtures("one_thread")
def test_a_run_is_made_once_and_read_by_other_commands(
    here: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", *SMALL, "--corpus", corpus.name, "--tokens", "160", "--dtype", "fp32"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "retbench", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    checkpoint = "runs/retnet-tiny-seed0/step-00000005"

    assert done.returncode == 0, done.stderr
    assert "held-out perplexity" in done.stdout
    assert f"checkpoint {checkpoint}" in done.stdout
    assert "step 5/5, loss" in done.stderr
    assert retbench(monkeypatch, *arguments, "--resume") in (0, None)
    assert capsys.readouterr().out == done.stdout
    assert retbench(monkeypatch, *arguments) == 2
    assert "holds a run: --resume continues it" in capsys.readouterr().err
    assert retbench(monkeypatch, *arguments, "--resume", "--seq-len", "8") == 2
    assert "holds another run, asked for now: seq_len 8, not 16" in capsys.readouterr().err
    assert find_checkpoint(here / checkpoint).system == "retnet:retnet-tiny-seed0/step-00000005"
    monkeypatch.delenv("XDG_CACHE_HOME")  # where the native step is compiled already
    speak = ("generate", "--checkpoint", checkpoint, "--prompt", "the", "--max-tokens", "4", "--threads", "1")
    assert retbench(monkeypatch, *speak) in (0, None)
    assert "prompt 3 tokens" in capsys.readouterr().err


def test_processes_that_torchrun_has_started_must_be_as_many_as_asked_for(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)

    assert retbench(monkeypatch, "train", "--data-parallel", "2") == 2
    assert "--data-parallel 2 needs 2 processes; torchrun has started 3" in capsys.readouterr().err


def test_a_run_whose_data_changed_is_not_continued(
    here: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = replace(RUN, corpus=corpus.name, tokens=64, seq_len=16)
    prepare(run, here / "run", resume=False)
    prepare(run, here / "run", resume=True)
    write_jsonl(Path(corpus.name.removeprefix("jsonl:")), texts(130))

    with pytest.raises(UsageError, match="the corpus or the tokenizer has changed since"):
        prepare(run, here / "run", resume=True)


def test_a_run_that_goes_on_under_another_environment_says_so_and_keeps_both(
    here: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = replace(RUN, corpus=corpus.name, tokens=64, seq_len=16)
    known = {"fingerprint": "f", "torch": "2.5.1", "code": "aaa", "commit": "c", "retbench": "1"}
    later = {**known, "fingerprint": "g", "torch": "2.6.0", "code": "bbb", "commit": "d"}
    for environment in (known, {**known, "commit": "x"}, later, later):
        monkeypatch.setattr("retbench.train.capture", lambda device, threads, found=environment: found)
        prepare(run, here / "run", resume=True)
    request = json.loads((here / "run" / "run.json").read_text())
    said = [line for line in capsys.readouterr().err.splitlines() if "changed" in line]

    assert said == [
        f"retbench: torch, code changed since {here / 'run'} was last started: its losses need not be bitwise those of "
        "a run in one piece"
    ]
    assert request["environment"] == known
    assert request["later_environments"] == [later]


@pytest.mark.parametrize("text", ["{", "{}", '{"run": {"depth": 3}}', "[]", WITHOUT_DATA])
def test_a_run_of_another_version_is_not_continued(text: str, here: Path) -> None:
    (here / "run.json").write_text(text)

    with pytest.raises(UsageError, match="is not what this version writes"):
        prepare(RUN, here, resume=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--system", "retnt"], "unknown system 'retnt'; did you mean 'retnet'?"),
        (["--system", "retnet,lstm"], "a run has one system, not retnet, lstm"),
        (["--size", "huge"], "unknown size 'huge'"),
        (["--tokens", "0"], "out of range"),
        (["--seq-len", "8,16"], "--seq-len '8,16' is not one count"),
        (["--dtype", "fp16"], "dtypes of training are auto, fp32, bf16"),
        (["--schedule", "step"], "unknown schedule 'step'; schedules are linear, cosine"),
        (["--learning-rate", "nan"], "--learning-rate nan is not possible"),
        (["--warm-up", "99"], "--warm-up 99 is not possible: the run has 1 steps"),
        (["--corpus", "jsonl:/no/such"], "there is no such file"),
        (["--tokenizer", "words"], "unknown tokenizer 'words'"),
        (["--system", "hyena", "--seq-len", "64k"], "hyena tiny: hyena reads at most l_max = 32768 tokens, not 65536"),
        (["--seed", "99999999999999999999"], "Invalid value for '--seed'"),
        (["--batch-size", "128k"], "--batch-size 131072 is too large: at most 65536"),
        (["--seq-len", "1m"], "a sequence needs 1048577"),
        (["--out", "/dev/null/run"], "/dev/null/run"),
        (["--fsdp"], "--data-parallel must be 2 or more"),
        (["--data-parallel", "4"], "--batch-size 2 cannot be shared out over 4 processes: a multiple of 4"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    words: str,
    here: Path,
    corpus: Corpus,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = retbench(monkeypatch, "train", *SMALL, "--corpus", corpus.name, "--tokens", "32", *arguments)
    lines = capsys.readouterr().err.splitlines()

    assert status == 2
    assert lines[-1].startswith("retbench: ")
    assert words in lines[-1]
    assert not (here / "runs").exists()
