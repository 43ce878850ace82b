"""What the tests of the gate share: a small repository with two commits, and processes that answer as told."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retbench import isolate, revision
from retbench.isolate import Outcome
from retbench.revision import Version
from retbench.spec import Cell

COUNTS = {"parameters": 100, "weights_bytes": 400, "state_bytes": 64, "peak_memory_bytes": 600, "allocated_bytes": 128}
PROJECT = '[project]\nname = "small"\ndependencies = ["numpy>=1"]\n'


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of two commits whose models differ; the gate takes it for ours."""
    root = tmp_path / "repository"
    for package in ("models", "retbench"):
        (root / package).mkdir(parents=True)
        (root / package / "__init__.py").touch()
    (root / "pyproject.toml").write_text(PROJECT)
    git(root, "init", "--quiet", "--initial-branch=main")
    for text in ("first", "second"):
        (root / "models" / "__init__.py").write_text(f"# {text}\n")
        git(root, "add", "-A")
        git(root, "commit", "--quiet", "-m", text)
    monkeypatch.setattr(revision, "ROOT", root)
    return root


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=tester", "-c", "user.email=tester@example.org"]
    command = ["git", "-C", str(root), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@dataclass
class Processes:
    """Answers for base and head: calls of a millisecond times a factor, with noise, and counts."""

    factors: dict[str, float] = field(default_factory=dict)  # by version
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    outcomes: dict[tuple[str, str], Outcome] = field(default_factory=dict)  # by version and part, where not ok
    noise: float = 0.01
    asked: list[tuple[str, str, Cell]] = field(default_factory=list)
    before: Callable[[], object] = lambda: None
    generator: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def execute(self, version: Version, cell: Cell, part: str) -> Outcome:
        return self.answer(version.name, cell, part)

    def run_worker(
        self, request: dict[str, Any], threads: int, timeout_s: float, python: str, root: Path | None
    ) -> Outcome:
        assert root is not None
        assert (root / "models").is_dir()
        return self.answer(root.name, Cell.from_dict(request["cell"]), request["part"])

    def answer(self, version: str, cell: Cell, part: str) -> Outcome:
        self.before()
        self.asked.append((version, part, cell))
        if (version, part) in self.outcomes:
            return self.outcomes[version, part]
        resolved = {"cell": {"backend": "torch", "form": "recurrent"}}
        if part == "counted":
            return Outcome("ok", None, [resolved, {"metrics": self.counts.get(version, COUNTS)}])
        level = 1e6 * self.factors.get(version, 1.0) * self.generator.lognormal(0, self.noise)
        work = (level * self.generator.lognormal(0, self.noise / 2, size=12)).astype(int).tolist()
        samples = {"work_ns": work, "reference_ns": [5_000_000] * 3}
        seen = {"load_average": 0.5, "stolen_share": 0.0, "involuntary_context_switches": 0}
        return Outcome("ok", None, [resolved, {"samples": samples, "notes": {"reference": 1}}, {"interference": seen}])


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    """Replaces the processes of a gate: no torch, no waiting."""
    stand_in = Processes()
    monkeypatch.setattr(isolate, "run_worker", stand_in.run_worker)
    return stand_in
