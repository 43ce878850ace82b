"""The table of ours / peer, and peers as baselines."""

from dataclasses import replace
from io import StringIO

import pytest

from experiments import inference
from retbench.record import Record
from retbench.report.frame import rows, to_frame
from retbench.report.peer_table import peer_tables
from retbench.report.tables import render
from tests.report.factory import cell, failed, record, sweep

NAMES = ("retnet-torchscale", "torchscale", "llama", "transformers-llama", "transformers-llama-static")
NOTES = {"peer": "torchscale 0.3.0", "stubs": ["timm", "fair"], "twin": "retnet-torchscale", "logits_error_std": 2.4e-5}


def timed(system: str, ms: float, peak: int = 100, ttft: float | None = 10.0, **other: object) -> Record:
    times = {"tpot_ms": ms, "tpot_ms_low": 0.9 * ms, "tpot_ms_high": 1.2 * ms, "ttft_ms": ttft}
    metrics = {**times, "peak_memory_bytes": peak}
    return record(replace(cell(system), **other), metrics=metrics)


def by_name(records: list[Record]) -> list[dict[str, object]]:
    (table,) = peer_tables(records)
    return [{c.name: entry.value for c, entry in zip(table.columns, row, strict=True)} for row in table.rows]


def test_ours_over_peer_compares_with_the_twin() -> None:
    (row,) = by_name([timed("retnet", 1.0), timed("retnet-torchscale", 8.0, 50, 4.0), timed("torchscale", 20.0)])

    assert (row["system"], row["twin"]) == ("torchscale", "retnet-torchscale")
    assert (row["tpot_ms_ours"], row["tpot_ms_peer"], row["tpot_ratio"]) == (8.0, 20.0, 0.4)
    assert (row["tpot_ratio_low"], row["tpot_ratio_high"]) == (pytest.approx(0.3), pytest.approx(0.4 * 4 / 3))
    assert (row["peak_memory_ratio"], row["ttft_ratio"]) == (0.5, 0.4)


def test_a_twin_of_other_conditions_is_not_compared_with() -> None:
    ours = [timed("llama", 8.0, dtype="fp32"), timed("llama", 9.0, seq_len=4096)]

    (row,) = by_name([*ours, timed("transformers-llama", 20.0)])

    assert (row["tpot_ms_ours"], row["tpot_ratio"], row["ttft_ratio"]) == (None, None, None)


def test_a_cell_that_failed_or_is_missing_says_so_on_its_side() -> None:
    alone = timed("torchscale", 20.0, ttft=None)
    broken = failed(cell("torchscale"), "error", "NotEquivalentError")
    (without,), (dead,) = peer_tables([alone]), peer_tables([timed("retnet-torchscale", 8.0), broken])
    texts = [[entry.text for entry in table.rows[0]] for table in (without, dead)]

    assert texts[0][5:] == ["not measured", "20.0", "-", "-", "-", "-", "-"]
    assert texts[1][5:] == ["8.00", "error", "-", "-", "-", "-", "-"]


def test_what_stands_behind_a_peer_is_said_once() -> None:
    notes = {**NOTES, "prefill": "forward without a state"}
    (table,) = peer_tables([replace(timed("torchscale", ms), notes=notes) for ms in (1.0, 2.0)])

    assert table.footnotes[1:] == (
        "torchscale: torchscale 0.3.0, stubs of timm and fair; twin retnet-torchscale, logits equal within 2e-05 std; "
        "decode recurrent, prefill forward without a state",
    )


def test_without_a_peer_there_is_no_such_table() -> None:
    assert peer_tables(sweep(("retnet", "llama"))) == []
    assert [table.name for table in inference.tables(sweep())] == ["inference", "headline", "slope"]


def test_it_follows_the_headline_and_fits_80_columns() -> None:
    tables, out = inference.tables(sweep(("retnet", *NAMES))), StringIO()
    render(tables, "table", out)

    assert [table.name for table in tables] == ["inference", "headline", "peers", "slope"]
    assert max(map(len, out.getvalue().splitlines())) <= 80


@pytest.mark.parametrize("name", ["llama", "transformers-llama", "transformers-llama-static"])
def test_a_peer_or_twin_that_is_the_fastest_transformer_is_the_baseline_and_named(name: str) -> None:
    records = [timed("retnet", 10.0), timed("transformer", 30.0), timed(name, 20.0), timed("torchscale", 5.0)]

    assert rows(to_frame(records))[0]["fastest"] == name
    assert rows(to_frame(records))[0]["speedup_vs_fastest"] == 2.0
    assert f"fastest Transformer here: {name};" in inference.tables(records)[1].footnotes[0]
