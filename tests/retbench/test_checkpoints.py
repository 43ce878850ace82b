"""Checkpoints as rows of a sweep."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from models import build, save_checkpoint
from models.catalogue import systems
from models.layouts import LAYOUTS
from retbench.checkpoints import OWN, find_checkpoint
from retbench.environment import ROOT
from retbench.errors import UsageError
from retbench.measure import config_of
from retbench.spec import Cell


def write(folder: Path, config: object, weights: bytes = b"x") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_every_layout_that_loads_belongs_to_a_system() -> None:
    claimed = {model_type for system in systems().values() for model_type in system.model_types}

    assert claimed | {OWN} == set(LAYOUTS)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"model_type": "llama"}, "transformer-flash"),
        ({"model_type": "torchscale-retnet"}, "retnet"),
        ({"model_type": "retbench", "system": "transformer"}, "transformer"),
    ],
)
def test_a_row_is_named_after_its_system_and_folder(tmp_path: Path, config: object, kind: str) -> None:
    assert find_checkpoint(write(tmp_path / "mine", config)).system == f"{kind}:mine"


def test_checkpoints_of_two_runs_have_two_names(tmp_path: Path) -> None:
    config = {"model_type": "retbench", "system": "retnet"}
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
    names = [find_checkpoint(write(tmp_path / run / "step-00000512", config)).system for run in ("a", "b")]

    assert names == ["retnet:a/step-00000512", "retnet:b/step-00000512"]


def test_other_weights_have_another_identity(tmp_path: Path) -> None:
    first = find_checkpoint(write(tmp_path / "a", {"model_type": "llama"}, b"x"))
    second = find_checkpoint(write(tmp_path / "a", {"model_type": "llama"}, b"xy"))

    assert first.weights != second.weights


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "mamba"}, "model types are retbench, retnet"),
        ({}, "no config with a model_type"),
        ([1], "no config with a model_type"),
        ({"model_type": ["llama"]}, "unknown model_type"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path, config: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_checkpoint(write(tmp_path / "a", config))


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", {"model_type": "llama"})
    (folder / "model.safetensors").unlink()

    with pytest.raises(UsageError, match=r"no \.safetensors file"):
        find_checkpoint(folder)


def test_what_a_cell_sets_beside_its_checkpoint_wins_over_the_config(tmp_path: Path) -> None:
    save_checkpoint(build("retnet", "tiny", vocab_size=8), tmp_path)
    cell = Cell("retnet:mine", "checkpoint", "decode", 64, 1, "fp32", "cpu", 1, checkpoint=str(tmp_path))

    assert config_of(replace(cell, chunk_size=512)) == replace(config_of(cell), chunk_size=512)  # type: ignore[call-arg]


def test_a_checkpoint_is_measured_and_a_broken_one_is_an_error_record(tmp_path: Path) -> None:
    save_checkpoint(build("retnet", "tiny", vocab_size=97), tmp_path / "mine")
    broken = write(tmp_path / "broken", json.loads((tmp_path / "mine" / "config.json").read_text()))
    command = [sys.executable, "-m", "retbench", "inference", "--systems", "none", "--seq-len", "64"]
    command += ["--batch-size", "1", "--budget", "10s", "--threads", "1", "--dtype", "fp32", "--format", "jsonl"]
    command += ["--checkpoint", str(tmp_path / "mine"), "--checkpoint", str(broken)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    mine, bad = (json.loads(line) for line in result.stdout.splitlines())

    assert mine["status"] == "ok"
    assert mine["cell"]["system"] == "retnet:mine"
    assert mine["metrics"]["parameters"] == sum(p.numel() for p in build("retnet", "tiny", vocab_size=97).parameters())
    assert bad["status"] == "error"
    assert "model.safetensors" in bad["reason"]
