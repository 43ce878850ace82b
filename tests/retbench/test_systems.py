"""`retbench list systems`: facts from a child, kept in the cache folder, shown in 80 columns."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from models.catalogue import systems
from retbench import isolate
from retbench.environment import ROOT
from retbench.errors import UsageError
from retbench.isolate import Outcome
from retbench.report.tables import to_json
from retbench.systems import systems_table

FACTS = {"parameters": 1_234_567, "state_bytes": 2**20, "training_form": "parallel", "decode_form": "kv-cache"}
CODE = """
import sys
sys.argv = ["retbench", "list", "systems", "--size", "tiny"]
from retbench.cli import main
try:
    main()
finally:
    assert "torch" not in sys.modules
"""


@dataclass
class Child:
    """Stands in for the child that builds the models."""

    status: str = "ok"
    calls: int = 0

    def __call__(self, request: dict[str, list[object]], threads: int, timeout_s: float) -> Outcome:
        self.calls += 1
        messages = [{"facts": FACTS} for _ in request["cells"]]
        return Outcome("ok", None, messages) if self.status == "ok" else Outcome("error", "no such thing", [])


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Child:
    stand_in = Child()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(isolate, "run_worker", stand_in)
    return stand_in


def test_the_first_call_computes_every_system_and_the_next_one_reads_it_without_torch(tmp_path: Path) -> None:
    variables = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    first, second = (
        subprocess.run(
            [sys.executable, "-c", CODE], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60
        )
        for _ in range(2)
    )

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "once" in first.stderr
    assert (second.stdout, second.stderr) == (first.stdout, "")
    rows = {words[0]: words[1:] for line in first.stdout.splitlines() if len(words := line.split()) == 5}
    assert systems().keys() <= rows.keys()
    assert rows["retnet"][1:] == ["0.125", "chunkwise", "recurrent"]  # MiB: 2 layers x 2 heads x 64 x 128 x 4 bytes
    assert rows["transformer"][1:] == ["8.00", "parallel", "kv-cache"]  # 2 layers x K and V x 8192 x 128 x 2 bytes
    assert rows["hyena"][2:] == ["fft-convolution", "cached-convolution"]
    assert all(len(line) <= 80 for line in first.stdout.splitlines())


def test_facts_are_kept_for_each_choice_of_sizes(child: Child) -> None:
    tables = [to_json([systems_table(sizes)]) for sizes in (["tiny"], ["tiny", "13b"], ["tiny"])]

    assert child.calls == 2
    assert tables[0] == tables[2] != tables[1]


def test_a_broken_file_in_the_cache_is_computed_again(child: Child, tmp_path: Path) -> None:
    systems_table(["tiny"])
    (path,) = tmp_path.rglob("systems-*.json")
    path.write_text("[{")
    systems_table(["tiny"])

    assert child.calls == 2
    assert path.read_text().startswith('[{"parameters"')


def test_without_a_folder_to_write_to_there_is_still_an_answer(child: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")

    assert "1,234,567" in {entry.text for row in systems_table(["tiny"]).rows for entry in row}


def test_a_child_that_fails_is_one_line(child: Child) -> None:
    child.status = "error"

    with pytest.raises(UsageError, match=r"cannot be described \(error\): no such thing"):
        systems_table(["tiny"])
