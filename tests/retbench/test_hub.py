"""Checkpoints of the hub, by a stand-in of huggingface_hub: a commit's files and no code; what fails is one line."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from experiments import evaluate
from models import build, load_checkpoint, save_checkpoint
from retbench import hub
from retbench.checkpoints import find_checkpoint
from retbench.environment import ROOT
from retbench.errors import UsageError
from retbench.options import Grid

COMMIT = "0123456789abcdef0123456789abcdef01234567"
STAND_IN = """
import fnmatch, pathlib, shutil

def snapshot_download(repo_id, *, repo_type=None, revision=None, cache_dir=None, local_dir=None, allow_patterns=None):
    root = pathlib.Path(__file__).parent
    if revision not in ("main", {commit!r}):
        raise ValueError(f"404 Client Error.\\n\\nRevision Not Found: {{revision}}")
    folder = root / "cache" / ("models--" + repo_id.replace("/", "--")) / "snapshots" / {commit!r}
    folder.mkdir(parents=True, exist_ok=True)
    for file in (root / "hub" / repo_id).iterdir():
        if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
            shutil.copyfile(file, folder / file.name)
    return str(folder)
"""
OFFLINE = """
import socket
def refuse(*arguments, **options):
    raise OSError("the network is blocked")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the package and the repository someone/tiny, which holds code and a pickle too."""
    repository = tmp_path / "hub" / "someone" / "tiny"
    save_checkpoint(build("retnet", "tiny", vocab_size=256), repository)
    for name in ("modeling.py", "pytorch_model.bin", "consolidated.safetensors"):
        (repository / name).write_text("print('must not be here')")
    (tmp_path / "huggingface_hub.py").write_text(STAND_IN.format(commit=COMMIT))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "huggingface_hub", raising=False)
    return tmp_path


@pytest.mark.usefixtures("stand_in")
def test_a_branch_becomes_a_commit_whose_files_are_fetched_without_any_code() -> None:
    found = find_checkpoint("hub:someone/tiny@main")

    assert (found.system, found.weights) == ("retnet:tiny", f"someone/tiny@{COMMIT}")
    assert find_checkpoint(f"hub:someone/tiny@{COMMIT}") == found
    assert sorted(file.name for file in found.folder.iterdir()) == ["config.json", "model.safetensors"]
    assert load_checkpoint(found.folder).config.vocab_size == 256


@pytest.mark.usefixtures("stand_in")
def test_sweeps_measure_it_as_a_folder() -> None:
    given = ("hub:someone/tiny@main",)
    _, (cell,) = Grid("64", "1", "none", "tiny", "fp32", "cpu", 1, "", 0, given).cells("decode")

    assert cell.checkpoint == str(find_checkpoint(given[0]).folder)
    assert cell.weights == f"someone/tiny@{COMMIT}"


def test_a_command_runs_it(stand_in: Path) -> None:
    words = ["generate", "--checkpoint", "hub:someone/tiny@main", "--prompt", "Hi", "--max-tokens", "3"]
    done = retbench(stand_in, *words, "--threads", "1", "--dtype", "fp32")

    assert done.returncode == 0, done.stderr
    assert "prompt 2 tokens" in done.stderr


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("hub:someone/tiny", "give hub:OWNER/NAME@REVISION"),
        ("hub:tiny@main", "give hub:OWNER/NAME@REVISION"),
        ("hub:someone/tiny@v9", r"neither in the cache nor can it be downloaded: 404 Client Error\.$"),
    ],
)
def test_what_cannot_be_fetched_is_said(given: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_checkpoint(given)


def test_a_missing_package_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)

    with pytest.raises(UsageError, match=r"pip install 'retbench\[hub\]'"):
        find_checkpoint("hub:someone/tiny@main")


def test_offline_the_command_ends_with_one_line(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    (tmp_path / "sitecustomize.py").write_text(OFFLINE)
    done = retbench(tmp_path, "perplexity", "--checkpoint", "hub:someone/tiny@main", "--corpus", "python:stdlib")

    assert done.returncode == 2
    assert "hub:someone/tiny@main is neither in the cache nor can it be downloaded" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_package_takes_what_it_is_given() -> None:
    library: ModuleType = pytest.importorskip("huggingface_hub")

    assert inspect.signature(library.snapshot_download).bind("a/b", revision="main", allow_patterns=list(hub.FILES))


def test_a_preset_is_a_retnet_and_a_transformer_of_the_hub(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(text: str) -> hub.Snapshot:
        asked.append(text)
        return hub.Snapshot(text, COMMIT, stand_in / "hub" / "someone" / "tiny")

    monkeypatch.setattr(hub, "download", fetch)
    with pytest.raises(UsageError, match=r"did you mean 'public-1\.3b'"):
        evaluate.command(preset="public-1.3c")
    with pytest.raises(UsageError, match="unknown task"):  # which is looked at once the checkpoints are there
        evaluate.command(preset="public-1.3b", tasks="none")

    repositories, revisions = zip(*(text.split("@") for text in asked), strict=True)
    assert repositories == ("hub:fla-hub/retnet-1.3B-100B", "hub:fla-hub/transformer-1.3B-100B")
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for revision in revisions)  # pinned


def retbench(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command, with the folder in front of all packages and a cache of its own."""
    path = os.pathsep.join((str(folder), str(ROOT)))
    variables = {**os.environ, "PYTHONPATH": path, "HF_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "retbench", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=variables, cwd=folder)
