"""The tables of the speed experiment: ratios paired by round, the fastest Transformer marked, failures said."""

from dataclasses import replace
from typing import Any

import pytest

from retbench.record import Record
from retbench.report.speed_tables import fastest_transformer, speed_tables
from retbench.report.tables import Table, to_markdown
from tests.report.factory import cell, failed, record

MS = 10**6
PACE = [1.0, 4.0, 2.0, 1.0, 8.0, 3.0, 1.0]  # of a machine that others use, the same for all of a round


def speed(
    system: str, tpot_ms: float, group: str = "a/0", batch_size: int = 1, fraction: float = 0.5, **other: Any
) -> Record:
    """A decode record of steps that take ``tpot_ms`` times the machine's pace, at a fraction of the read bandwidth."""
    of = cell(system, 64, batch_size, n_layers=8, **other)
    metrics = {"tpot_ms": 2 * tpot_ms, "tpot_ms_low": tpot_ms, "tpot_ms_high": 3 * tpot_ms}
    metrics |= {"tokens_per_s": 500 * batch_size / tpot_ms, "step_bytes": 1000 * tpot_ms}
    limit = {"name": "torch.mv fp32", "per_s": 3e9, "fraction": fraction, "fraction_low": 0.4, "fraction_high": 0.6}
    samples = {"round_ns": [round(tpot_ms * pace * MS) for pace in PACE]}
    notes = {"group": group, "child": group.split("/")[0], "rounds": 7, "limits": [limit]}
    return record(of, metrics=metrics, samples=samples, notes=notes)


GROUP = [speed("retnet", 10), speed("transformer", 30), speed("transformer-flash", 25)]


def shown(table: Table, system: str) -> dict[str, str]:
    row = next(row for row in table.rows if row[0].value == system)
    return {column.name: entry.text for column, entry in zip(table.columns, row, strict=True)}


def test_the_speed_up_is_paired_by_round_so_that_the_pace_of_the_machine_cancels() -> None:
    row = shown(speed_tables(GROUP)[0], "retnet")

    assert (row["speedup"], row["speedup_low"], row["bytes_ratio"]) == ("2.50", "2.50 to 2.50", "2.50")
    assert (row["fraction"], row["fraction_low"], row["limit"]) == ("0.50", "0.40 to 0.60", "torch.mv fp32")
    assert row["shape"] == "768 x 8"


def test_the_fastest_transformer_is_marked_and_the_other_is_compared_with_it() -> None:
    table = speed_tables(GROUP)[0]

    assert shown(table, "transformer-flash")["speedup"] == "*"
    assert shown(table, "transformer")["speedup"] == "0.83"


def test_only_cells_of_the_same_rounds_and_weights_are_compared() -> None:
    other = [speed("transformer", 1, "a/1"), speed("transformer-flash", 1, quantize="int8")]

    assert fastest_transformer(GROUP[0], GROUP + other) is GROUP[2]
    assert fastest_transformer(GROUP[0], other) is None
    assert shown(speed_tables([GROUP[0]])[0], "retnet")["speedup"] == "-"


def test_the_batch_scales_against_its_smallest_and_against_what_bytes_allow() -> None:
    measured = [(1, 10, 0.5), (4, 20, 0.5), (8, 25, 0.4)]
    records = [speed("retnet", tpot, f"a/{batch}", batch, fraction) for batch, tpot, fraction in measured]
    table = next(table for table in speed_tables(records) if table.name == "scaling")

    words = [[entry.text for entry in row] for row in table.rows]
    assert [row[4] for row in words] == ["1", "4", "8"]
    assert [row[7:9] for row in words] == [["1.00", "1.00"], ["2.00", "2.00"], ["2.56", "3.20"]]


def test_two_batches_are_no_scaling() -> None:
    records = [speed("retnet", 10, f"a/{batch}", batch) for batch in (1, 8)]

    assert [table.name for table in speed_tables(records)] == ["decode"]


def test_prefill_stands_against_every_product() -> None:
    limits = [
        {"name": name, "per_s": 1e12, "fraction": value, "fraction_low": value, "fraction_high": value}
        for name, value in (("torch.mm", 0.75), ("packed", 0.5))
    ]
    records = [
        replace(
            one,
            cell=replace(one.cell, workload="prefill"),
            metrics={"ttft_ms": 2000.0, "flops": 10**12, "activations_bytes": 3 * 2**20},
            notes={**one.notes, "limits": limits},
        )
        for one in GROUP[:2]
    ]
    (table,) = speed_tables(records)
    row = shown(table, "retnet")

    assert (row["flops_per_s"], row["fraction_of_torch.mm"], row["fraction_of_packed"]) == ("500", "0.75", "0.50")
    assert (row["speedup"], row["flops_ratio"], row["activations_bytes"]) == ("3.00", "1.00", "3.00")


def test_training_forms_stand_beside_transformer_flash_whichever_transformer_is_faster() -> None:
    records = [
        replace(
            one,
            cell=replace(one.cell, workload="train_tokens", form="chunkwise"),
            metrics={"train_step_ms": 2000.0, "tokens_per_s": 512.0, "activations_bytes": 3 * 2**20},
        )
        for one in [speed("rwkv", 50), speed("transformer", 10), speed("transformer-flash", 25)]
    ]
    (table,) = speed_tables(records)
    row = shown(table, "rwkv")

    assert (row["speedup"], row["speedup_low"], row["tokens_per_s"]) == ("0.50", "0.50 to 0.50", "512")
    assert (row["form"], row["activations_bytes"]) == ("chunkwise", "3.00")
    assert [shown(table, name)["speedup"] for name in ("transformer", "transformer-flash")] == ["2.50", "*"]


def test_limits_are_a_row_for_each_dtype() -> None:
    limits = [{"name": "torch.mm", "per_s": 8e11, "per_s_low": 7.6e11, "per_s_high": 8.2e11}]
    of = replace(cell("machine", 2048, 1), workload="limits")
    (table,) = speed_tables([record(of, notes={"limits": limits, "rounds": 7})])

    assert [entry.text for entry in table.rows[0]] == ["2", "bf16", "800 ±5.0%"]


@pytest.mark.parametrize("workload", ["decode", "prefill", "train_step", "train_tokens", "limits"])
def test_a_failure_is_a_row_with_its_status(workload: str) -> None:
    of = replace(cell("transformer", 64, 1), workload=workload)
    tables = speed_tables([failed(of, "oom", "bad_alloc")])

    assert "oom: bad\\_alloc - transformer small, batch 1, length 64" in to_markdown(tables)
    assert len(tables[0].rows) == 1
