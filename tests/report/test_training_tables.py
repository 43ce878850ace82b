"""The tables of the training experiment: ratios under the same conditions, parts, failures, 80 columns."""

from dataclasses import replace
from typing import Any

import pytest

from retbench.record import Record
from retbench.report.tables import Table, render, to_markdown
from retbench.report.training_tables import paper_training, training_tables
from retbench.spec import Training
from tests.report.factory import cell, failed, record

MIB = 2**20
PARTS = {"weights": 250, "gradients": 0, "optimizer": 1500, "activations": 500, "logits": 300}


def trained(system: str, tokens_per_s: float, activations: int = 500, rest: int = 0, **other: Any) -> Record:
    """A record of a step; bytes of its peak in MiB, of ``rest`` in bytes."""
    training = other.pop("training", Training())
    of = replace(cell(system, 1024, 1), workload="train_step", form="parallel", backend="torch", training=training)
    sizes = {f"{name}_bytes": size * MIB for name, size in {**PARTS, "activations": activations}.items()}
    metrics = {"step_ms": 1024e3 / tokens_per_s, "tokens_per_s": tokens_per_s, "optimizer_share": 0.0625}
    metrics |= {"tokens_per_s_low": 0.95 * tokens_per_s, "tokens_per_s_high": 1.01 * tokens_per_s}
    peak = {"peak_memory_bytes": sum(sizes.values()) + rest, "rest_bytes": rest}
    notes, samples = other.pop("notes", {}), {"step_ns": [1] * 5}
    return record(replace(of, **other), metrics={**metrics, **sizes, **peak}, samples=samples, notes=notes)


GROUP = [
    trained("retnet", 600.0, chunk_size=512),
    trained("transformer", 240.0, activations=1000),
    trained("transformer-flash", 500.0, activations=300),
]


PACE = [1, 4, 2, 1, 8, 3, 1]  # of a machine that others use, the same for all of a round


def in_turn(record: Record, step_ns: int, group: str = "a/0") -> Record:
    """The record with steps of that time at the machine's pace."""
    return replace(record, samples={"step_ns": [step_ns * pace for pace in PACE]}, notes={"group": group})


def shown(table: Table, at: int) -> dict[str, str]:
    return {column.name: entry.text for column, entry in zip(table.columns, table.rows[at], strict=True)}


def test_a_system_is_compared_with_both_transformers() -> None:
    row = shown(training_tables(GROUP)[0], 0)

    assert (row["speedup_vs_transformer"], row["speedup_vs_transformer-flash"]) == ("2.50", "1.20")
    assert (row["memory_vs_transformer"], row["memory_vs_transformer-flash"]) == ("1.20", "0.92")
    assert (row["tokens_per_s"], row["optimizer_share"]) == ("600 ±5.0%", "6.2")


def test_the_speed_of_systems_in_turn_is_paired_so_that_the_pace_of_the_machine_cancels() -> None:
    retnet, base, flash = (in_turn(one, step_ns) for one, step_ns in zip(GROUP, (1000, 3000, 700), strict=True))
    table = training_tables([retnet, base, flash])[0]
    row = shown(table, 0)

    assert (row["speedup_vs_transformer"], row["speedup_vs_transformer_low"]) == ("3.00", "3.00 to 3.00")
    assert (row["speedup_vs_transformer-flash"], row["speedup_vs_transformer-flash_low"]) == ("0.70", "0.70 to 0.70")
    assert row["speedup_vs_transformer_high"] == "3.00"
    assert (shown(table, 1)["speedup_vs_transformer"], shown(table, 1)["speedup_vs_transformer_low"]) == ("1.00", "-")
    assert any("paired step by step" in note for note in table.footnotes)
    assert not any("not paired" in note for note in table.footnotes)


def test_the_speed_of_systems_that_were_not_measured_in_turn_is_said_not_to_be_paired() -> None:
    apart = [in_turn(GROUP[0], 1000, "a/0"), in_turn(GROUP[1], 3000, "b/0")]
    for records in (GROUP, apart):
        table = training_tables(records)[0]

        assert shown(table, 0)["speedup_vs_transformer"] == "2.50"
        assert shown(table, 0)["speedup_vs_transformer_low"] == "-"
        assert any("not paired" in note for note in table.footnotes)
        assert not any("paired step by step" in note for note in table.footnotes)
    assert not any("paired" in note for note in training_tables(GROUP[:1])[0].footnotes)


@pytest.mark.parametrize(
    "change", [{"training": Training("block")}, {"batch_size": 2}, {"dtype": "fp32"}, {"compile": True}]
)
def test_a_transformer_under_other_conditions_is_no_baseline(change: dict[str, Any]) -> None:
    table = training_tables([GROUP[0], trained("transformer", 240.0, **change)])[0]

    assert shown(table, 0)["speedup_vs_transformer"] == "-"


def test_conditions_that_differ_head_the_sections_and_a_chunk_of_retnet_alone_does_not() -> None:
    both = [*GROUP, trained("retnet", 400.0, chunk_size=512, training=Training("block"))]

    assert training_tables(GROUP)[0].section == ("size", "batch_size", "seq_len")
    assert training_tables(both)[0].section == ("size", "batch_size", "seq_len", "checkpointing")


def test_the_parts_of_the_peak_stand_beside_it_and_a_few_bytes_are_not_nothing() -> None:
    row = shown(training_tables([trained("retnet", 600.0, activations=100, rest=16)])[1], 0)

    assert row["peak_memory_bytes"] == "2.10"  # GiB
    assert (row["weights_bytes"], row["gradients_bytes"], row["optimizer_bytes"]) == ("0.244", "0", "1.46")
    assert (row["logits_bytes"], row["rest_bytes"]) == ("0.293", "<0.01")


def test_a_cell_that_failed_shows_its_status_and_its_reason_below() -> None:
    gone = failed(replace(GROUP[1].cell), "oom", "can't allocate memory")
    steps, memory, _ = training_tables([GROUP[0], gone])

    assert shown(steps, 1)["step_ms"] == "oom"
    assert shown(steps, 0)["speedup_vs_transformer"] == "-"
    assert len(memory.rows) == 1
    assert any("can't allocate memory" in note for note in steps.footnotes)


def test_a_cell_that_was_not_compiled_says_why() -> None:
    plain = replace(GROUP[0], cell=replace(GROUP[0].cell, compile=True), notes={"not_compiled": "no compiler"})

    assert any("not compiled, no compiler" in note for note in training_tables([plain])[0].footnotes)


def test_several_processes_are_said_with_what_they_share_and_their_threads_disturb_nobody() -> None:
    shared = Training(tensor_parallel=2, data_parallel=2, fsdp=True)
    one, four = (
        trained("retnet", 600.0, training=training, notes={"load_average": 4.0}) for training in (None, shared)
    )

    steps, memory, _ = training_tables([four])
    for table in (steps, memory):
        assert any("4 processes (tensor parallel 2, data parallel 2, fsdp)" in note for note in table.footnotes)
        assert not any("DISTURBED" in note for note in table.footnotes)
    assert not any("processes (" in note for note in training_tables([one])[0].footnotes)
    assert any("DISTURBED" in note for note in training_tables([one])[0].footnotes)


def test_the_tables_are_80_columns_wide_at_most(tmp_path: Any) -> None:
    names = ("retnet-no-groupnorm", "transformer-concat-cache", "linear-transformer")
    wide = [trained(name, 123456.0, activations=123_456) for name in names]
    path = tmp_path / "tables"
    with path.open("w") as file:
        render(training_tables([*(in_turn(one, 1000) for one in GROUP), *wide]), "table", file)

    assert max(map(len, path.read_text().splitlines())) <= 80


def test_the_papers_numbers_are_shown_as_the_papers_alone() -> None:
    table = training_tables(GROUP)[2]

    row = shown(table, 2)
    assert (row["size"], row["memory_retnet"], row["throughput_transformer"]) == ("6.7b", "48", "2,754")
    assert (row["speedup_vs_transformer"], row["speedup_vs_transformer-flash"]) == ("6.34", "1.08")
    assert "not measured here" in table.title
    assert paper_training()["throughput"]["retnet"] == [73344.8, 38921.2, 17458.6, 8642.2]


def test_without_records_there_are_tables_still() -> None:
    assert "no records" in to_markdown(training_tables([]))
