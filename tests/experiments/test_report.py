"""`retbench report` for real: what it writes, the same each time, and that a failure leaves what was there."""

import gc
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice, product
from pathlib import Path

import pytest

from models.catalogue import paper_systems
from retbench import report_command
from retbench.errors import UsageError
from retbench.record import Record
from retbench.report.files import MOST_ROWS, readable, replaced
from retbench.report.tables import Column, Entry, Table
from tests.experiments.conftest import arguments, run, variables
from tests.report.factory import cell, measured, sweep
from tests.report.test_draw import on, write
from tests.report.test_scaling import learnt
from tests.report.test_speed_tables import speed
from tests.report.test_training_tables import GROUP

# Runs a command, and writes its exit status, its most memory in KiB and its seconds. A small process does so: whoever
# is started counts the memory of the process that started it as its own.
WATCHED = """
import resource, subprocess, sys, time
started = time.monotonic()
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, time.monotonic() - started)
"""


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def results(folder: Path, records: Sequence[Record] = ()) -> None:
    write(folder / "results", records or sweep())


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with records of two experiments and the report of some exhibits."""
    folder = tmp_path_factory.mktemp("reported")
    results(folder)
    write(folder / "results", [replace(one, experiment="training") for one in GROUP], experiment="training")
    done = run(folder, "report", "--only", "figure1,table4,claims,table1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "reports/report.md\nreports/index.html\n"
    assert "table1: not run: no records; retbench complexity makes them" in done.stderr
    return folder


def test_every_exhibit_is_there_in_every_format(reported: Path) -> None:
    found = set(files(reported / "reports"))

    assert found == {
        *("report.md", "index.html"),
        *("claims/claims.md", "claims/claims.csv", "claims/claims.tex"),
        *(f"inference/figure1{suffix}" for suffix in (".md", ".png", ".svg", ".pdf")),
        *(f"inference/figure1-{table}{suffix}" for table in ("headline", "slope") for suffix in (".csv", ".tex")),
        *(
            f"training/table4-{table}{suffix}"
            for table in ("training", "training_memory", "paper")
            for suffix in (".csv", ".tex")
        ),
        "training/table4.md",
        "complexity/table1.md",
    }


def test_the_report_shows_tables_conditions_and_commands_and_says_what_is_not_run(reported: Path) -> None:
    text = (reported / "reports" / "report.md").read_text(encoding="utf-8")

    assert "- [Table 1: what training, decoding and long sequences cost](#table1) - not run" in text
    assert "![Figure 1, left: RetNet's advantage in memory, throughput and latency](inference/figure1.svg)" in text
    assert "measured on cpu" in text
    assert "    retbench inference --systems retnet,transformer,transformer-flash,transformer-concat-cache" in text
    assert "| latency | 15.6× |" in text


def test_the_same_records_give_the_same_bytes_in_another_process(reported: Path, tmp_path: Path) -> None:
    (tmp_path / "results").symlink_to(reported / "results")
    done = run(tmp_path, "report", "--only", "figure1,table4,claims,table1")

    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "reports") == files(reported / "reports")


def test_some_exhibits_leave_the_files_of_the_others(reported: Path) -> None:
    before = files(reported / "reports")
    done = run(reported, "report", "--only", "table1")
    after = files(reported / "reports")
    run(reported, "report", "--only", "figure1,table4,claims,table1")

    assert done.returncode == 0, done.stderr
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed == {"report.md", "index.html"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--only", "figure66"), "unknown exhibit 'figure66'; did you mean 'figure6'?"),
        (("--machine", "lab-3c"), "unknown machine 'lab-3c'; did you mean 'lab-2c'?"),
        (("--systems", "retnt"), "unknown system 'retnt'; did you mean 'retnet'?"),
        (("--out", "nowhere"), "no records in nowhere/results; retbench complexity, retbench evaluate"),
        (("--out", "results/lab-2c/inference.jsonl"), "no records in"),
    ],
)
def test_bad_input_is_one_line_and_leaves_the_earlier_report(
    words: tuple[str, ...], message: str, reported: Path
) -> None:
    before = files(reported / "reports")
    done = run(reported, "report", *words)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("retbench: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert files(reported / "reports") == before


def test_records_of_unknown_sizes_and_metrics_that_are_no_numbers_are_told_and_left_out(tmp_path: Path) -> None:
    one = speed("retnet", 10)
    unknown = [replace(one, experiment="speed", cell=replace(one.cell, size="3b")), replace(one, experiment="speed")]
    write(tmp_path / "results", unknown, experiment="speed")
    run_3b = replace(learnt("retnet", "nano", 0, 2.0), experiment="scaling")
    write(tmp_path / "results", [replace(run_3b, cell=replace(run_3b.cell, size="3b"))], experiment="scaling")
    results(tmp_path)
    path = tmp_path / "results" / "lab-2c" / "inference.jsonl"
    path.write_text(path.read_text().replace('"tpot_ms": ', '"tpot_ms": "x", "was": ', 1))
    done = run(tmp_path, "report", "--only", "speed,figure5,figure1,claims")

    assert done.returncode == 0, done.stderr
    assert "inference.jsonl:1: skipped, tpot_ms is 'x', which is no number" in done.stderr
    assert "2 records of scaling, speed left out: this retbench does not know their size 3b" in done.stderr
    assert "speed: 1 records" in done.stderr
    assert "figure5: not run: no records" in done.stderr


def test_reports_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    results(tmp_path)
    (tmp_path / "reports").write_text("a file", encoding="utf-8")
    done = run(tmp_path, "report", "--only", "table1")

    assert done.returncode == 2
    assert "cannot write reports" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "reports").read_text(encoding="utf-8") == "a file"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reports", "results"]


def test_a_child_that_dies_while_it_draws_is_one_line_and_leaves_the_earlier_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results(tmp_path)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "report.md").write_text("earlier", encoding="utf-8")
    monkeypatch.setattr("retbench.report.files._save_figures", lambda *_: os._exit(9))

    with pytest.raises(UsageError, match=r"ended with 9\); the earlier reports are untouched"):
        report_command.command(only="table1", out=tmp_path)
    assert files(tmp_path / "reports") == {"report.md": b"earlier"}
    assert gc.isenabled()


def test_a_report_that_fails_half_way_leaves_the_earlier_one_and_no_debris(tmp_path: Path) -> None:
    (tmp_path / "reports" / "old").mkdir(parents=True)
    (tmp_path / "reports" / "old" / "report.md").write_text("earlier", encoding="utf-8")
    with pytest.raises(OSError, match="disk full"), replaced(tmp_path / "reports", ()) as new:
        (new / "report.md").write_text("half", encoding="utf-8")
        raise OSError("disk full")

    assert files(tmp_path) == {"reports/old/report.md": b"earlier"}


def test_a_report_takes_the_place_of_the_earlier_one_but_for_what_it_keeps(tmp_path: Path) -> None:
    for name in ("history", "inference"):
        (tmp_path / "reports" / name).mkdir(parents=True)
        (tmp_path / "reports" / name / "old").write_text(name, encoding="utf-8")
    with replaced(tmp_path / "reports", {"inference"}) as new:
        (new / "report.md").write_text("new", encoding="utf-8")

    assert files(tmp_path) == {"reports/history/old": b"history", "reports/report.md": b"new"}


def test_a_report_that_was_killed_between_its_renames_is_put_back(tmp_path: Path) -> None:
    (tmp_path / ".reports-earlier").mkdir()
    (tmp_path / ".reports-earlier" / "report.md").write_text("earlier", encoding="utf-8")
    with pytest.raises(OSError, match="again"), replaced(tmp_path / "reports", ()):
        raise OSError("again")

    assert files(tmp_path) == {"reports/report.md": b"earlier"}


def test_what_a_killed_report_left_goes_and_what_another_one_is_writing_stays(tmp_path: Path) -> None:
    left = tmp_path / ".reports-new-k1ll3d__" / "reports"
    left.mkdir(parents=True)
    mine = tmp_path / ".reports-notes"
    mine.mkdir()
    with replaced(tmp_path / "reports", ()) as first:
        (first / "report.md").write_text("first", encoding="utf-8")
        with replaced(tmp_path / "reports", ()) as second:
            (second / "report.md").write_text("second", encoding="utf-8")
            assert not left.exists()
            assert first.exists()

    assert sorted(path.name for path in tmp_path.iterdir()) == [".reports-notes", "reports"]
    assert files(tmp_path) == {"reports/report.md": b"first"}


def test_a_long_table_is_whole_in_csv_and_says_elsewhere_that_it_goes_on() -> None:
    rows = tuple((Entry(at, str(at)),) for at in range(2500))
    table = Table("long", "Long", (Column("at", "at"),), rows, ("a note",))
    short = readable(table)

    assert len(short.rows) == MOST_ROWS < len(rows)
    assert short.footnotes == ("the first 1,000 of 2,500 rows; the CSV holds all of them", "a note")
    assert readable(short) is short


@pytest.mark.slow
def test_the_whole_report_of_two_machines_is_drawn(tmp_path: Path) -> None:
    for machine in ("this", "that"):
        write(tmp_path / "results", on(machine, sweep(lengths=(1024, 8192), batches=(1, 8))), machine)
    done = run(tmp_path, "report")

    assert done.returncode == 0, done.stderr
    found = files(tmp_path / "reports")
    assert {"inference/figure6.svg", "inference/figure1-this.svg", "inference/figure1-that.svg"} <= set(found)


@pytest.mark.slow
def test_twenty_thousand_records_are_drawn_in_a_gigabyte(tmp_path: Path) -> None:
    sizes, dtypes, kilos, batches = ("tiny", "mini", "small", "200m"), ("bf16", "fp32"), range(1, 13), (1, 2, 4, 8, 16)
    cells = product(sizes, dtypes, kilos, batches, paper_systems())
    lines = [
        measured(cell(system, 1024 * kilo, batch, size=size, dtype=dtype)).to_json() + "\n"
        for size, dtype, kilo, batch, system in cells
    ]
    path = tmp_path / "results" / "lab-2c" / "inference.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(islice(cycle(lines), 20_000)), encoding="utf-8")  # as if all had been measured again
    watched = [sys.executable, "-c", WATCHED, *arguments("report")]
    done = subprocess.run(watched, cwd=tmp_path, env=variables(), capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    status, peak_kib, seconds = map(float, done.stdout.split())
    print(f"20,000 records: {seconds:.1f} s, {peak_kib / 1024:.0f} MiB")
    assert status == 0, done.stderr
    assert peak_kib * 1024 < 10**9
    assert f"figure6: {len(lines)} records" in done.stderr
    assert (tmp_path / "reports" / "index.html").stat().st_size > 0
