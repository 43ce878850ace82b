"""Two sets of records: what both hold is compared, what is no record is refused in one line, nothing is written."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retbench import record as record_module
from retbench.compare import Change, compare, groups, load
from retbench.environment import ROOT
from retbench.errors import UsageError
from retbench.record import Record
from tests.report.factory import cell, measured, record

STEPS = [1_000_000 + 1000 * at for at in range(20)]


def timed(scale: float = 1.0, **metrics: int) -> Record:
    """A record whose steps take ``scale`` times STEPS."""
    return record(metrics=metrics, samples={"step_ns": [round(scale * step) for step in STEPS]})


def held(*records: Record) -> dict[Any, Record]:
    return {(one.experiment, one.cell.requested): one for one in records}


def changes(before: Record, after: Record) -> dict[str, Change]:
    return {change.metric: change for change in compare(held(before), held(after)).changes}


def written(path: Path, *records: Record, rest: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(one.to_json() + "\n" for one in records) + rest)
    return path


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "retbench", "compare", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_slower_step_shows_as_a_ratio_with_its_interval() -> None:
    change = changes(timed(), timed(1.2))["tpot_ms"]

    assert change.kind == "timed"
    assert change.ratio.value == pytest.approx(1.2, rel=1e-3)
    assert 1.18 < change.ratio.low < change.ratio.value < change.ratio.high < 1.22


def test_counted_metrics_are_compared_to_the_byte() -> None:
    found = changes(timed(state_bytes=1000, parameters=10), timed(state_bytes=1001, parameters=10))

    assert (found["state_bytes"].kind, found["state_bytes"].ratio.value) == ("exact", 1.001)
    assert found["parameters"].ratio.value == 1


def test_bytes_that_the_kernel_samples_are_not_compared() -> None:
    assert "vm_hwm_bytes" not in changes(timed(vm_hwm_bytes=1), timed(vm_hwm_bytes=2))


def test_something_where_there_was_nothing_is_infinitely_more() -> None:
    assert changes(timed(allocated_bytes=0), timed(allocated_bytes=8))["allocated_bytes"].ratio.value == float("inf")


def test_two_samples_make_no_interval() -> None:
    few = record(samples={"prefill_ns": [5, 6]})

    ratio = changes(few, few)["ttft_ms"].ratio

    assert ratio.value == 1
    assert ratio.low != ratio.low


def test_cells_are_matched_by_what_was_requested() -> None:
    packed, native = timed(), timed()
    native = replace(native, cell=replace(native.cell, backend="native+torch"))

    comparison = compare(held(packed), held(native))

    assert comparison.changes
    assert "backend of retnet differs: packed in A, native+torch in B" in comparison.notes


def test_what_differs_and_what_is_missing_is_said() -> None:
    other = replace(timed(), environment={**timed().environment, "torch": "9.9"})
    only_a, only_b = measured(cell("lstm")), measured(cell("rwkv"))
    broken = record(cell("h3"), "oom")

    notes = compare(held(timed(), only_a, broken), held(other, only_b, broken)).notes

    assert "torch differs: 2.13.0+cpu in A, 9.9 in B" in notes
    assert any(note.startswith("only in A: lstm") for note in notes)
    assert any(note.startswith("only in B: rwkv") for note in notes)
    assert any(note.startswith("B: h3 small, batch 8, length 8192 (decode) is oom") for note in notes)


def test_sets_without_a_common_cell_are_refused() -> None:
    with pytest.raises(UsageError, match=r"no cell is in both: retnet .* stand against lstm"):
        compare(held(measured(cell())), held(measured(cell("lstm"))))


@pytest.mark.parametrize(
    ("notes", "sizes"),
    [({}, [6]), ({"rounds": 3}, [2, 2, 2]), ({"rounds": 4}, [6]), ({"process_samples": {"step_ns": [1, 5]}}, [1, 5])],
)
def test_samples_that_resemble_each_other_are_grouped(notes: dict[str, Any], sizes: list[int]) -> None:
    found = groups(record(samples={"step_ns": [1, 2, 3, 4, 5, 6]}, notes=notes), "step_ns")

    assert [len(group) for group in found] == sizes
    assert [sample for group in found for sample in group] == [1, 2, 3, 4, 5, 6]


def test_the_last_record_of_a_key_counts(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", timed(1.0), timed(2.0))

    (found,) = load(path).values()

    assert found == timed(2.0)


def test_a_cell_of_two_environments_is_ambiguous(tmp_path: Path) -> None:
    other = replace(timed(), key="1", environment={"commit": "feedfeedfeedfeed"})
    path = written(tmp_path / "a.jsonl", timed(), other)

    with pytest.raises(UsageError, match="twice, of commits 0123456789ab and feedfeedfeed"):
        load(path)


def test_folders_are_read_to_their_depth(tmp_path: Path) -> None:
    written(tmp_path / "results" / "one" / "inference.jsonl", timed())
    written(tmp_path / "results" / "one" / "speed.jsonl", replace(timed(), experiment="speed", key="1"))

    assert len(load(tmp_path)) == 2


def edited(**fields: object) -> str:
    return json.dumps({**json.loads(timed().to_json()), **fields}) + "\n"


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ("not json\n", "not a record"),
        (timed().to_json()[:-40], "not a record"),
        (edited(schema_version=2), "schema version 2, this retbench reads 1"),
        (edited(cell=3), "not a record"),
    ],
)
def test_what_is_no_record_is_named_with_its_line_and_left_alone(tmp_path: Path, rest: str, reason: str) -> None:
    path = written(tmp_path / "a.jsonl", timed(), rest=rest)
    before = path.read_bytes()

    with pytest.raises(UsageError, match=f"a.jsonl:2: {reason}"):
        load(path)

    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xff\xfe\n")

    with pytest.raises(UsageError, match=r"a\.jsonl:1: .*utf-8"):
        load(path)


def test_older_records_are_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module, "MIGRATIONS", {0: lambda data: data})
    path = written(tmp_path / "a.jsonl", rest=edited(schema_version=0))

    assert list(load(path).values()) == [timed()]


@pytest.mark.parametrize(("name", "reason"), [("empty.jsonl", "holds no records"), ("absent.jsonl", "cannot read")])
def test_nothing_to_compare_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "empty.jsonl").touch()

    with pytest.raises(UsageError, match=reason):
        load(tmp_path / name)


def test_the_command_describes_and_exits_with_0(tmp_path: Path) -> None:
    a = written(tmp_path / "a.jsonl", timed(state_bytes=1000))
    b = written(tmp_path / "b.jsonl", timed(1.5, state_bytes=2000))

    done = run(str(a), str(b), "--format", "json")

    rows = json.loads(done.stdout)["compare"]["rows"]
    assert (done.returncode, done.stderr) == (0, "")
    assert [(row["metric"], round(row["ratio"], 3)) for row in rows] == [("tpot_ms", 1.5), ("state_bytes", 2.0)]


def test_bad_input_is_one_line_and_status_2(tmp_path: Path) -> None:
    a = written(tmp_path / "a.jsonl", timed(), rest="{")

    done = run(str(a), str(a))

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"retbench: {a}:2: not a record")
    assert done.stderr.count("\n") == 1
