"""Records read for a report, and exhibits drawn from them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments import complexity, inference, speed, training
from retbench.errors import UsageError
from retbench.record import Record
from retbench.report.draw import current, draw, exhibits, read_records
from retbench.report.exhibit import Exhibit
from retbench.report.tables import Column, Entry, Table
from tests.report.factory import cell, failed, measured, record, sweep

COLUMNS = (Column("system", "system"), Column("tpot_ms", "TPOT", "ms"), Column("note", "note"))


def rows(records: Sequence[Record]) -> list[Table]:
    body = [(Entry(one.cell.system, one.cell.system), Entry(1, "1"), Entry(None, "")) for one in records]
    return [Table("plain", "A table", COLUMNS, tuple(body))]


PLAIN = Exhibit("plain", "Plain", "inference", "retbench inference", rows, lambda records: {}, systems=("retnet", "h3"))


def write(folder: Path, records: Sequence[Record], machine: str = "lab-2c", experiment: str = "inference") -> None:
    path = folder / machine / f"{experiment}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(one.to_json() + "\n" for one in records)


def on(machine: str, records: Sequence[Record]) -> list[Record]:
    return [replace(one, environment={**one.environment, "machine": machine}) for one in records]


def test_every_experiment_shows_something_under_a_name_of_its_own() -> None:
    names = [exhibit.name for exhibit in exhibits()]

    assert len(set(names)) == len(names)
    assert names[0] == "claims"
    assert {"table1", "table3", "table4", "figure1", "figure6", "speed"} <= set(names)
    assert [name for name in names if name.startswith("table")][:2] == ["table1", "table3"]


def test_the_last_record_of_a_cell_counts_unless_it_was_never_tried() -> None:
    old, new = record(cell(), key="a", metrics={"tpot_ms": 1}), record(cell(), key="b", metrics={"tpot_ms": 2})
    other = record(cell("lstm"))

    assert current([old, other, new]) == [other, new]
    assert current([new, failed(cell(), "skipped", "no time")]) == [new]
    assert current([new, failed(cell(), "oom", "too large")])[0].status == "oom"


def test_machines_and_systems_are_chosen_among_those_that_have_records(tmp_path: Path) -> None:
    write(tmp_path, sweep(("retnet", "lstm")), "this")
    write(tmp_path, sweep(("retnet",)), "that")

    found = read_records(tmp_path, "this", "lstm").records
    assert {(one.environment["machine"], one.cell.system) for one in found} == {("this", "lstm")}
    for machines, systems, words in (("thus", "all", "did you mean 'this'"), ("all", "lstn", "did you mean 'lstm'")):
        with pytest.raises(UsageError, match=words):
            read_records(tmp_path, machines, systems)


def test_predictions_are_of_no_machine_and_kept_whichever_is_chosen(tmp_path: Path) -> None:
    for name in ("this", "that", "model"):
        write(tmp_path, sweep(("retnet",)), name)

    assert {one.machine for one in read_records(tmp_path, "this").records} == {"this", "model"}


def test_no_records_name_the_commands_that_make_some(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no records in .*; retbench complexity, .*retbench inference, .* make them"):
        read_records(tmp_path)
    write(tmp_path, [], "empty")
    with pytest.raises(UsageError, match="no records in"):
        read_records(tmp_path)


def test_records_of_a_newer_schema_are_refused_and_torn_lines_told(tmp_path: Path) -> None:
    write(tmp_path, [record()])
    with (tmp_path / "lab-2c" / "inference.jsonl").open("a", encoding="utf-8") as file:
        file.write("not a record\n")
    problems = read_records(tmp_path).problems
    write(tmp_path, [replace(record(), schema_version=2)], experiment="training")

    assert len(problems) == 1
    assert "torn last line" in problems[0]
    with pytest.raises(UsageError, match=r"training.jsonl:1.*schema version 2.*a newer retbench"):
        read_records(tmp_path)


def test_unknown_systems_are_shown_and_told(tmp_path: Path) -> None:
    write(tmp_path, [measured(cell("mamba-9")), measured(cell("mine", checkpoint="runs/mine"))])

    found = read_records(tmp_path)
    assert found.problems == ("systems that this retbench does not know, shown as they are: mamba-9",)
    assert len(found.records) == 2


def test_an_exhibit_without_records_says_what_makes_them() -> None:
    (drawn,) = draw(complexity.EXHIBITS, sweep())

    assert drawn.missing == "not run: no records; retbench complexity makes them"
    assert (drawn.tables, drawn.figures) == ((), {})


def test_rows_of_the_paper_without_a_record_are_not_run_and_nothing_is_blank() -> None:
    (drawn,) = draw([PLAIN], [record()])

    assert [[entry.text for entry in row] for row in drawn.tables[0].rows] == [
        ["retnet", "1", "-"],
        ["h3", "not run", "-"],
    ]


def test_systems_are_told_to_be_not_run_in_the_first_table_that_has_systems() -> None:
    def two(records: Sequence[Record]) -> list[Table]:
        sizes = Table("sizes", "By size", (Column("size", "size"),), ((Entry("small", "small"),),))
        by_size = (Column("size", "size", justify="left"), *COLUMNS)
        return [sizes, Table("systems", "By system", by_size, ((Entry("small", "small"), *rows(records)[0].rows[0]),))]

    (drawn,) = draw([replace(PLAIN, tables=two)], [record()])

    assert [len(table.rows) for table in drawn.tables] == [1, 2]
    assert [entry.text for entry in drawn.tables[1].rows[1]] == ["-", "h3", "not run", "-"]


def test_systems_that_nobody_asked_for_are_not_called_not_run() -> None:
    (drawn,) = draw([PLAIN], [record()], "retnet")

    assert [row[0].text for row in drawn.tables[0].rows] == ["retnet"]


def test_the_papers_tables_name_its_systems() -> None:
    named = {exhibit.name for exhibit in exhibits() if exhibit.systems}

    assert named == {"table1", "table4", "table5", "table6", "figure1", "figure6"}


def test_rows_of_one_section_stand_together_by_length_and_then_by_system() -> None:
    def by_length(records: Sequence[Record]) -> list[Table]:
        columns = (Column("system", "system"), Column("dtype", "dtype"), Column("seq_len", "length"))
        body = [[one.cell.system, one.cell.dtype, one.cell.seq_len] for one in records]
        rows = tuple(tuple(Entry(value, str(value)) for value in row) for row in body)
        return [Table("plain", "A table", columns, rows, section=("dtype", "seq_len"))]

    systems, lengths = ("retnet", "lstm"), (4096, 1024)
    records = [record(cell(name, length, dtype=dtype)) for name in systems for dtype in ("fp32", "bf16")
               for length in lengths]  # fmt: skip
    (drawn,) = draw([replace(PLAIN, tables=by_length, systems=())], records)

    assert [[entry.value for entry in row] for row in drawn.tables[0].rows] == [
        [name, dtype, length] for dtype in ("fp32", "bf16") for length in (1024, 4096) for name in systems
    ]


def test_the_tables_of_training_and_speed_have_one_body_a_section() -> None:
    def trained(system: str, length: int, workload: str) -> Record:
        return record(cell(system, length, 1, workload=workload), experiment=workload)

    for (exhibit,), workload in ((training.EXHIBITS, "train_step"), (speed.EXHIBITS, "train_tokens")):
        some = [trained(name, length, workload) for name in ("retnet", "lstm") for length in (1024, 4096)]
        drawn = draw([replace(exhibit, experiment=workload, systems=())], some)[0].tables[0]
        at = [column.name for column in drawn.columns].index("seq_len")

        assert [row[at].value for row in drawn.rows] == [1024, 1024, 4096, 4096]


def test_machines_stand_apart_where_nothing_overlays_them() -> None:
    (drawn,) = draw([PLAIN], [*on("this", sweep(("retnet",))), *on("that", sweep(("lstm",)))])

    assert [(table.name, table.title) for table in drawn.tables] == [
        ("plain-this", "A table: this"),
        ("plain-that", "A table: that"),
    ]
    assert drawn.notes == ("machines stand apart: nothing here can show several at once",)


def test_figure6_overlays_machines_by_kinds_of_lines() -> None:
    figure6 = next(exhibit for exhibit in inference.EXHIBITS if exhibit.name == "figure6")
    (drawn,) = draw([figure6], [*on("this", sweep(("retnet",))), *on("that", sweep(("retnet",)))])

    assert list(drawn.figures) == ["figure6"]
    assert [table.name for table in drawn.tables] == ["inference-this", "inference-that"]
    texts = [text.get_text() for text in drawn.figures["figure6"].legends[0].get_texts()]
    assert texts[-2:] == ["this", "that"]
    memory = drawn.figures["figure6"].axes[0]
    lines = [line for line in memory.get_lines() if len(np.asarray(line.get_xdata())) > 3]
    assert {line.is_dashed() for line in lines if line.get_linestyle() != "None"} == {False, True}


def test_transformers_architectures_and_ablations_have_figures_of_their_own_beside_retnet() -> None:
    shown = {
        name: sorted({one.cell.system for one in own})
        for name, own in inference.families(sweep(("retnet", "transformer", "h3", "retnet-no-gate", "mine"))).items()
    }

    assert shown == {
        "": ["mine", "retnet", "transformer"],
        "-architectures": ["h3", "retnet", "transformer"],
        "-ablations": ["retnet", "retnet-no-gate"],
    }
    assert list(inference.families(sweep(("h3", "lstm")))) == [""]


def test_table_1_shows_the_setting_that_most_systems_share() -> None:
    points = [replace(cell(system, 1024, 1), workload="complexity") for system in ("retnet", "lstm")]
    longer = replace(cell("retnet", 4096, 1), workload="complexity")
    records = [record(of, experiment="complexity", metrics={"parallel_share": 1.0}) for of in (*points, longer)]

    assert [one.cell for one in complexity.main_setting(records)] == points
