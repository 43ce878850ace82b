"""The fingerprint says which results may be compared: stable across calls, different where numbers would be."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from retbench import environment
from retbench.devices import Device
from retbench.devices.cpu import DEVICE as CPU
from retbench.devices.cpu import KEEP
from retbench.environment import MEASURED_CODE, ROOT, capture, child_variables, code_hash


@dataclass
class Gpu:
    """As much of another device as an environment asks for."""

    name: str = "cuda"
    driver: str = "550.54.15"

    def slug(self) -> str:
        return "nvidia-a100"

    def describe(self) -> dict[str, str | int]:
        return {"gpu": "NVIDIA A100", "driver": self.driver}


@pytest.fixture(autouse=True)
def fresh_hash() -> Iterator[None]:
    code_hash.cache_clear()
    yield
    code_hash.cache_clear()


@pytest.fixture
def copied_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the sources, without its history, that counts as the installation."""
    for name in ("retbench", "models"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    return tmp_path


def changed(path: Path) -> str:
    """The hash of the code once a line is added to a file of it."""
    path.write_text(path.read_text() + "# changed\n")
    code_hash.cache_clear()
    return code_hash()


def test_an_environment_says_under_what_a_cell_was_measured() -> None:
    facts = capture(CPU, threads=1)

    assert facts["machine"] == CPU.slug()
    assert {"fingerprint", "cpu", "cores", "memory_bytes", "bf16", "system", "kernel", "python"} <= facts.keys()
    assert {"torch", "numpy", "retbench", "variables", "code", "commit", "dirty"} <= facts.keys()
    assert facts["variables"] == child_variables(1)
    assert facts["python"] == platform.python_version()
    assert platform.node() not in json.dumps(facts)
    assert json.loads(json.dumps(facts)) == facts


def test_the_fingerprint_is_the_same_in_every_call_and_process() -> None:
    command = "from retbench.environment import capture; from retbench.devices.cpu import DEVICE; "
    command += "print(capture(DEVICE, 1)['fingerprint'])"
    elsewhere = subprocess.run(
        [sys.executable, "-c", command],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.strip()

    assert capture(CPU, 1)["fingerprint"] == capture(CPU, 1)["fingerprint"] == elsewhere


def test_threads_and_driver_and_device_change_the_fingerprint() -> None:
    gpus = [cast(Device, gpu) for gpu in (Gpu(), Gpu(driver="560.1"))]

    prints = {capture(device, 1)["fingerprint"] for device in [CPU, *gpus]} | {capture(CPU, 2)["fingerprint"]}

    assert len(prints) == 4


@pytest.mark.parametrize("function", ["python_version", "system"])
def test_another_python_or_system_changes_the_fingerprint(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = capture(CPU, 1)["fingerprint"]
    monkeypatch.setattr(platform, function, lambda: "another")

    assert capture(CPU, 1)["fingerprint"] != before


def test_another_torch_changes_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before = capture(CPU, 1)["fingerprint"]
    monkeypatch.setattr(environment.metadata, "version", lambda name: f"another {name}")  # type: ignore[attr-defined]

    assert capture(CPU, 1)["fingerprint"] != before


def test_kernel_commit_and_memory_are_recorded_but_do_not_part_results(monkeypatch: pytest.MonkeyPatch) -> None:
    before = capture(CPU, 1)
    monkeypatch.setattr(platform, "release", lambda: "another kernel")
    monkeypatch.setattr(environment, "_commit", lambda: {"commit": "another", "dirty": None})

    after = capture(CPU, 1)

    assert (after["kernel"], after["commit"]) == ("another kernel", "another")
    assert after["fingerprint"] == before["fingerprint"]


def test_a_gpus_environment_names_the_cpu_that_feeds_it() -> None:
    facts = capture(cast(Device, Gpu()), 1)

    assert (facts["machine"], facts["gpu"], facts["cpu"]) == ("nvidia-a100", "NVIDIA A100", CPU.describe()["cpu"])


def test_children_wait_passively_and_use_freed_memory_again() -> None:
    variables = child_variables(3)

    assert variables["OMP_WAIT_POLICY"] == "PASSIVE"
    assert variables["GOMP_SPINCOUNT"] == "0"
    assert variables["OMP_NUM_THREADS"] == "3"
    assert (int(variables["MALLOC_MMAP_THRESHOLD_"]), int(variables["MALLOC_TRIM_THRESHOLD_"])) == KEEP


def test_the_hash_of_the_code_is_that_of_its_files_alone(copied_root: Path) -> None:
    copied = code_hash()
    environment.ROOT = ROOT  # the fixture puts the copy's place back

    code_hash.cache_clear()

    assert code_hash() == copied


@pytest.mark.parametrize(
    "path",
    [
        "models/retention.py",
        "models/sizes.py",
        "models/peers/torchscale.py",
        "retbench/measure/decode.py",
        "retbench/measure/prefill.py",
        "retbench/devices/cpu.py",
        "retbench/statistics.py",
        "retbench/timing.py",
        "retbench/worker.py",
    ],
)
def test_a_change_of_what_is_measured_or_how_changes_the_hash(path: str, copied_root: Path) -> None:
    before = code_hash()

    assert changed(copied_root / path) != before


def test_a_new_file_and_a_new_name_change_the_hash(copied_root: Path) -> None:
    before = code_hash()
    (copied_root / "models" / "added.py").write_text("")
    code_hash.cache_clear()
    added = code_hash()
    (copied_root / "models" / "added.py").rename(copied_root / "models" / "renamed.py")
    code_hash.cache_clear()

    assert len({before, added, code_hash()}) == 3


@pytest.mark.parametrize("path", ["retbench/cli.py", "retbench/store.py", "retbench/report/style.py"])
def test_a_change_of_what_is_shown_does_not(path: str, copied_root: Path) -> None:
    before = code_hash()

    assert changed(copied_root / path) == before


def test_every_pattern_of_the_measured_code_finds_files() -> None:
    assert all(list(ROOT.glob(pattern)) for pattern in MEASURED_CODE)


def test_outside_a_checkout_there_is_no_commit(copied_root: Path) -> None:
    facts = capture(CPU, 1)

    assert (facts["commit"], facts["dirty"]) == (None, None)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_in_a_checkout_the_commit_is_told_and_whether_files_differ(copied_root: Path) -> None:
    git(copied_root, "init", "--quiet")
    git(copied_root, "add", "models")
    git(copied_root, "commit", "--quiet", "-m", "first")
    clean = environment._commit()
    (copied_root / "models" / "sizes.py").write_text("")

    assert clean == {"commit": git(copied_root, "rev-parse", "HEAD"), "dirty": False}
    assert environment._commit() == {**clean, "dirty": True}


def test_without_git_there_is_no_commit(copied_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: Any, **options: Any) -> None:
        raise FileNotFoundError("git")

    (copied_root / ".git").mkdir()
    monkeypatch.setattr(subprocess, "run", missing)

    assert environment._commit() == {"commit": None, "dirty": None}
