"""Peers from the command line: installed from a folder of packages, measured, missed and broken; the real ones."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from models.catalogue import peers
from retbench import isolate
from retbench.environment import ROOT
from retbench.errors import UsageError
from retbench.isolate import Outcome
from retbench.peers import install as install_peer
from retbench.record import Record
from retbench.spec import Cell
from tests.experiments.conftest import run, stored

SWEEP = ["inference", "--systems", "none", "--size", "tiny", "--dtype", "fp32", "--device", "cpu", "--threads", "1"]
CELL = ["--seq-len", "32", "--batch-size", "1", "--budget", "1s"]
PREDICTED = {"predicted_peak_memory_bytes", "residual_bytes", "prefill_residual_bytes"}  # a peer is not predicted
ALL_PEERS = [word for name in peers() for word in ("--peer", name)]


@dataclass(frozen=True)
class World:
    """A copy of the project with one more peer, and an empty cache; nothing reaches a package index."""

    folder: Path

    @property
    def cache(self) -> Path:
        return self.folder / "cache" / "retbench" / "peers"

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        variables = {
            "PYTHONPATH": str(self.folder / "root"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.folder / "packages"),
        }
        return subprocess.run(
            [sys.executable, "-m", "retbench", *words],
            cwd=self.folder,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    for name in ("retbench", "models", "experiments"):
        shutil.copytree(ROOT / name, folder / "root" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "tests" / "models" / "mirror.py", folder / "root" / "models" / "peers" / "mirror.py")
    (folder / "packages").mkdir()
    return World(folder)


def write_package(folder: Path) -> None:
    """A wheel of the package toypeer 1.0, which imports the module that the peer stubs."""
    with zipfile.ZipFile(folder / "toypeer-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toypeer/__init__.py", "from toystub.inner import called\n")
        wheel.writestr("toypeer-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toypeer\nVersion: 1.0\n")
        wheel.writestr("toypeer-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("toypeer-1.0.dist-info/RECORD", "")


@pytest.fixture(scope="module")
def failed_install(world: World) -> subprocess.CompletedProcess[str]:
    """An attempt while the package is not to be had."""
    return world.run("peers", "install", "mirror")


@pytest.fixture(scope="module")
def install(world: World, failed_install: object) -> subprocess.CompletedProcess[str]:
    write_package(world.folder / "packages")
    return world.run("peers", "install", "mirror")


@pytest.fixture(scope="module")
def measured(world: World, install: object) -> dict[str, Record]:
    """Both rows, by system."""
    done = world.run(*SWEEP, "--peer", "mirror", *CELL, "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    return {record.cell.system: record for record in map(Record.from_json, done.stdout.splitlines())}


def test_a_failed_installation_is_one_line_with_pips_reason_and_leaves_nothing(
    world: World, failed_install: subprocess.CompletedProcess[str]
) -> None:
    (line,) = failed_install.stderr.splitlines()

    assert failed_install.returncode == 2
    assert line.startswith(
        "retbench: pip install --no-deps toypeer==1.0 failed: Could not find a version that satisfies"
    )
    assert "No matching distribution found for toypeer==1.0" in line


def test_an_installation_says_what_it_installs_and_stubs_and_where(
    world: World, install: subprocess.CompletedProcess[str]
) -> None:
    first, last = install.stdout.splitlines()
    (folder,) = world.cache.iterdir()

    assert (install.returncode, install.stderr) == (0, "")
    assert first == "mirror: toypeer==1.0 without its dependencies; stubs of toystub.inner (called)"
    assert last == f"mirror: computes what mirrored computes; installed in {folder}"
    assert "mirror              our Transformer in a mirror; installed" in world.run("list", "peers").stdout


def test_a_peer_is_measured_beside_its_twin_through_the_same_records(measured: dict[str, Record]) -> None:
    twin, peer = measured["mirrored"], measured["mirror"]

    assert (twin.status, peer.status) == ("ok", "ok")
    assert list(measured) == ["mirrored", "mirror"]
    assert peer.cell.backend == "toypeer 1.0"
    assert peer.metrics.keys() | PREDICTED == twin.metrics.keys()
    for name in ("parameters", "weights_bytes", "state_bytes", "step_bytes", "peak_memory_bytes"):
        assert peer.metrics[name] == twin.metrics[name]


def test_the_record_of_a_peer_says_what_stands_behind_it_and_holds_no_prediction(measured: dict[str, Record]) -> None:
    notes = measured["mirror"].notes

    assert (notes["peer"], notes["stubs"], notes["twin"]) == ("toypeer 1.0", ["toystub.inner"], "mirrored")
    assert notes["logits_error_std"] < 1e-12
    assert measured["mirror"].predicted == {}
    assert "twin" not in measured["mirrored"].notes


def test_the_report_shows_ours_over_peer(world: World, measured: object) -> None:
    done = world.run(*SWEEP, "--peer", "mirror", *CELL, "--format", "json")

    (row,) = json.loads(done.stdout)["peers"]["rows"]
    assert (row["system"], row["twin"]) == ("mirror", "mirrored")
    assert row["tpot_ratio_low"] < row["tpot_ratio"] < row["tpot_ratio_high"]
    assert row["peak_memory_ratio"] == 1.0
    assert done.stderr.count("(stored)") == 2


def test_a_peer_that_breaks_is_an_error_in_words(world: World, measured: object) -> None:
    (package,) = world.cache.glob("mirror-*/lib/*/site-packages/toypeer")
    shutil.rmtree(package)
    cell = Cell("mirror", "tiny", "decode", seq_len=8, batch_size=1, dtype="fp32", device="cpu", threads=1)
    share = {"budget_s": 1.0, "prefill_s": 0.0, "skip_prefill": None}

    outcome = isolate.run_worker(
        {"task": "measure", "cell": cell.to_dict(), "predicted": {}, **share},
        1,
        120.0,
        str(package.parents[3] / "bin/python"),
    )

    assert outcome == Outcome("error", "ModuleNotFoundError: No module named 'toypeer'", [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*SWEEP, "--peer", "torchscale"], "--peer torchscale: not installed; run: retbench peers install torchscale"),
        ([*SWEEP, "--peer", "torchscal"], "unknown peer 'torchscal'; did you mean 'torchscale'? peers are mirror, "),
        (["peers", "install", "mirrow"], "unknown peer 'mirrow'; did you mean 'mirror'? peers are mirror, torchscale"),
    ],
)
def test_a_peer_that_is_unknown_or_not_installed_is_one_line(words: list[str], message: str, world: World) -> None:
    done = world.run(*words)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"retbench: {message}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_real_peers_are_installed_and_measured(tmp_path: Path, dtype: str) -> None:
    try:
        for peer in peers().values():
            install_peer(peer)
    except UsageError as error:
        if "from versions: none" in str(error):
            pytest.skip("peers cannot be installed: the package index is not reachable")
        raise
    words = ["--seq-len", "64,600", "--batch-size", "2", "--dtype", dtype, "--budget", "60s"]

    done = run(tmp_path, *SWEEP, *ALL_PEERS, *words)

    records = stored(tmp_path, "inference")
    rows = {row: peer.twin for peer in peers().values() for row in (peer.twin, *peer.rows)}
    by_cell = {(record.cell.system, record.cell.seq_len): record.metrics for record in records}
    assert done.returncode == 0
    assert {(record.status, record.reason) for record in records} == {("ok", None)}
    assert by_cell.keys() == {(row, seq_len) for row in rows for seq_len in (64, 600)}
    for (row, seq_len), metrics in by_cell.items():
        assert metrics["parameters"] == by_cell[rows[row], seq_len]["parameters"]
        assert (metrics["tpot_ms"] > 0, metrics["ttft_ms"] > 0) == (True, True)
    assert by_cell["transformers-llama-static", 600]["state_bytes"] == by_cell["llama", 600]["state_bytes"]
    assert "torchscale 0.3.0" in " ".join(done.stdout.split())
