"""The tables of the inference experiment."""

import json
from dataclasses import replace
from io import StringIO

import pytest

from retbench.record import Record
from retbench.report.inference_tables import headline_table, inference_table, slope_table
from retbench.report.paper import inference_paper
from retbench.report.tables import Format, Table, render
from tests.report.factory import cell, failed, measured, record, sweep

PAPER = inference_paper()


def text(table: Table, fmt: Format = "table") -> str:
    out = StringIO()
    render(table, fmt, out, None)
    return out.getvalue()


def shown(table: Table, system: str) -> dict[str, str]:
    """The words of a system's last row by column."""
    row = next(row for row in reversed(table.rows) if row[0].value == system)
    return {column.name: entry.text for column, entry in zip(table.columns, row, strict=True)}


def with_metrics(one: Record, **metrics: object) -> Record:
    return replace(one, metrics={**one.metrics, **metrics})


def failing() -> list[Record]:
    """A sweep in which every way to fail occurs."""
    skipped = {"ttft_ms": None, "ttft_status": "skipped", "ttft_reason": "would take 70 s of a budget of 30 s"}
    partial = with_metrics(
        measured(cell("transformer", 1024)), ttft_ms=None, ttft_status="oom", ttft_reason="eager scores"
    )
    return [
        measured(cell("retnet", 1024)),
        replace(partial, status="oom", reason="prefill ran out of memory"),
        with_metrics(measured(cell("transformer-flash", 1024)), **skipped),
        failed(cell("transformer-concat-cache", 1024), "unsupported", "no such\nbackend | here"),
        *(failed(cell(system, 8192), status, f"{status} because") for system, status in
          [("retnet", "timeout"), ("transformer", "killed"), ("transformer-flash", "error"), ("rwkv", "skipped")]),
    ]  # fmt: skip


def test_quantized_cells_are_compared_with_each_other_and_their_error_and_speed_stand_below() -> None:
    plain = sweep(("retnet", "transformer"), batches=(8,))
    quantized = [
        with_metrics(replace(one, cell=replace(one.cell, quantize="int8")), logit_error=0.0123) for one in plain
    ]
    quantized[0] = with_metrics(quantized[0], tpot_ms=quantized[0].metrics["tpot_ms"] / 2)
    lines = text(inference_table(plain + quantized, PAPER)).splitlines()

    sections = [line for line in lines if line.startswith("size ")]
    assert sections == [f"size small, batch 8, length 8192, quantized {words}" for words in ("none", "int8")]
    table = inference_table(plain + quantized, PAPER)
    (note,) = [note for note in table.footnotes if note.startswith("int8 weights")]
    assert "retnet error 1.23%, 2.00x as fast at small, batch 8, length 8192" in note
    assert "transformer error 1.23%, 1.00x as fast" in note
    ratios = [
        row[[column.name for column in table.columns].index("speedup_vs_transformer")].value for row in table.rows
    ]
    assert ratios[2] == pytest.approx(2 * float(str(ratios[0])))


def test_the_main_table_has_a_section_for_each_size_batch_and_length() -> None:
    lines = text(inference_table(sweep(lengths=(1024, 8192)), PAPER)).splitlines()

    assert [line for line in lines if line.startswith("size ")] == [
        "size small, batch 1, length 1024",
        "size small, batch 8, length 1024",
        "size small, batch 1, length 8192",
        "size small, batch 8, length 8192",
    ]


def test_a_row_shows_times_rates_memory_and_ratios() -> None:
    row = shown(inference_table(sweep(), PAPER), "retnet")

    assert row["tpot_ms"].endswith(" ±2.0%")
    assert row["peak_memory_bytes"] == "273"
    assert float(row["speedup_vs_transformer"]) > float(row["speedup_vs_fastest"]) > 1
    assert row["bytes_ratio"] == "9.13"
    assert row["paper_latency_ratio"] == "15.6"


def test_the_paper_stands_only_beside_retnet_under_its_conditions() -> None:
    table = inference_table(sweep(lengths=(512, 8192)), PAPER)
    rows = [dict(zip((c.name for c in table.columns), row, strict=True)) for row in table.rows]
    words = {
        (r["system"].value, r["seq_len"].value, r["batch_size"].value): r["paper_latency_ratio"].text for r in rows
    }

    assert words["retnet", 8192, 8] == "15.6"
    assert words["retnet", 8192, 1].startswith("~")
    assert words["retnet", 512, 8] == "-"
    assert words["transformer", 8192, 8] == "-"


def test_every_failed_cell_shows_its_status_and_its_reason() -> None:
    table = inference_table(failing(), PAPER)
    whole = " ".join(text(table).split())

    for status in ("timeout", "killed", "error", "skipped"):
        assert f"{status}: {status} because" in whole
    assert shown(table, "rwkv")["tpot_ms"] == "skipped"
    assert shown(table, "transformer-concat-cache")["tpot_ms"] == "unsupported"
    assert "unsupported: no such backend | here - transformer-concat-cache small, batch 8, length 1024" in whole
    assert not any(entry.text == "" for row in table.rows for entry in row), "never blank"


def test_a_cell_that_died_in_prefill_keeps_its_decode_numbers() -> None:
    table = inference_table(failing()[:4], PAPER)
    row = shown(table, "transformer")

    assert row["ttft_ms"] == "oom"
    assert row["tpot_ms"].endswith("%")
    assert "oom: prefill ran out of memory" in " ".join(text(table).split())


def test_rows_that_step_in_torch_beside_native_ones_are_named() -> None:
    native = [replace(one, cell=replace(one.cell, backend="native+eager")) for one in sweep(("retnet", "transformer"))]
    plain = sweep(("rwkv", "transformer-concat-cache"))
    said = "decoded by torch's operators, the others in native code"

    assert f"{said}: rwkv, transformer-concat-cache" in " ".join(text(inference_table(native + plain, PAPER)).split())
    assert said not in text(inference_table(native, PAPER))
    assert said not in text(inference_table(plain, PAPER))


def test_a_skipped_ttft_says_so_with_its_reason() -> None:
    table = inference_table(failing()[:4], PAPER)

    assert shown(table, "transformer-flash")["ttft_ms"] == "skipped"
    assert "TTFT skipped: would take 70 s of a budget of 30 s" in " ".join(text(table).split())


def test_an_ok_record_without_metrics_is_shown_with_dashes() -> None:
    row = shown(inference_table([record()], PAPER), "retnet")

    assert {row[name] for name in ("ttft_ms", "tpot_ms", "peak_memory_bytes", "speedup_vs_transformer")} == {"-"}


@pytest.mark.parametrize("records", [sweep(lengths=(1024, 8192)), failing(), [record()], []])
def test_all_tables_fit_80_columns(records: list[Record]) -> None:
    for table in (inference_table(records, PAPER), headline_table(records, PAPER), slope_table(records)):
        lines = text(table).splitlines()

        assert max(map(len, lines)) <= 80


def test_large_numbers_still_fit_80_columns() -> None:
    large = [
        with_metrics(one, ttft_ms=1234567.0, ttft_status="ok", tpot_ms=98765.4, tpot_ms_low=80000.0) for one in sweep()
    ]
    lines = text(inference_table(large, PAPER)).splitlines()

    assert max(map(len, lines)) <= 80
    assert any("1,230,000" in line for line in lines)


def test_conditions_that_differ_between_rows_become_part_of_the_heading() -> None:
    other = [replace(one, cell=replace(one.cell, dtype="fp32")) for one in sweep(batches=(8,))]
    lines = text(inference_table([*sweep(batches=(8,)), *other], PAPER)).splitlines()

    assert "size small, batch 8, length 8192, dtype bf16" in lines
    assert "size small, batch 8, length 8192, dtype fp32" in lines


def test_the_footnotes_name_the_conditions() -> None:
    last = inference_table(sweep(), PAPER).footnotes[-1]

    for part in ("cpu (Intel(R) Xeon(R)", "bf16", "2 threads", "torch 2.13.0+cpu", "python 3.11.9", "seed 0",
                 "commit 0123456789ab (dirty)", "40 timed steps a cell"):  # fmt: skip
        assert part in last


def test_json_rows_hold_raw_numbers_statuses_and_reasons() -> None:
    data = json.loads(text(inference_table(failing(), PAPER), "json"))["inference"]["rows"]
    retnet = next(row for row in data if row["system"] == "retnet" and row["seq_len"] == 1024)
    dead = next(row for row in data if row["system"] == "transformer-concat-cache")

    assert isinstance(retnet["tpot_ms"], float) and isinstance(retnet["peak_memory_bytes"], int)
    assert isinstance(retnet["speedup_vs_fastest"], float)
    assert dead["tpot_ms"] is None and dead["status"] == "unsupported"
    assert dead["reason"] == "no such\nbackend | here"


def test_the_headline_compares_at_the_largest_length_and_batch() -> None:
    table = headline_table(sweep(lengths=(1024, 8192)), PAPER)
    rows = {row[0].value: row for row in table.rows}
    at = {column.name: place for place, column in enumerate(table.columns)}

    assert table.title.endswith("small, batch 8, length 8192")
    assert list(rows) == ["memory", "throughput", "latency"]
    assert [rows[name][at["paper_ratio"]].text for name in rows] == ["3.4×", "8.4×", "15.6×"]
    assert rows["latency"][at["bytes_ratio"]].text == "9.13×"
    assert all(rows[name][at["vs_transformer"]].value > 1 for name in rows)
    assert rows["latency"][at["vs_transformer_concat_cache"]].value > rows["latency"][at["vs_transformer"]].value
    assert rows["throughput"][at["bytes_ratio"]].value < rows["latency"][at["bytes_ratio"]].value


def test_the_headline_shows_the_status_of_a_baseline_that_failed_or_is_missing() -> None:
    without = headline_table(sweep(("retnet",)), PAPER)
    dead = headline_table([*sweep(("retnet",)), failed(cell("transformer"), "oom", "too large")], PAPER)

    assert [row[1].text for row in without.rows] == ["not measured"] * 3
    assert [row[1].text for row in dead.rows] == ["oom"] * 3
    assert any(note.startswith("oom: too large") for note in dead.footnotes)


def test_without_retnet_there_is_no_headline_but_a_word_about_it() -> None:
    table = headline_table(sweep(("transformer",)), PAPER)

    assert table.rows == ()
    assert "retnet was not measured" in table.footnotes


def test_the_slope_is_about_zero_for_retnet_and_positive_for_a_cache() -> None:
    table = slope_table(sweep())

    assert shown(table, "retnet")["tpot_slope_ms_per_1k_tokens"] == "0"
    assert float(shown(table, "transformer")["tpot_slope_ms_per_1k_tokens"]) > 1
    assert shown(table, "retnet")["tpot_slope_ms_per_1k_tokens_low"] == "-0.0200 to 0.0300"


@pytest.mark.parametrize("notes", [{"load_average": 3.4}, {"stolen_share": 0.2}])
def test_a_footnote_warns_when_others_used_the_processors(notes: dict[str, float]) -> None:
    quiet = [replace(one, notes={"load_average": 2.1, "stolen_share": 0.01}) for one in sweep()]
    busy = [*quiet[1:], replace(quiet[0], notes=notes)]

    assert not any("DISTURBED" in note for note in inference_table(quiet, PAPER).footnotes)
    assert any("DISTURBED" in note and "1 of 8 cells" in note for note in inference_table(busy, PAPER).footnotes)
