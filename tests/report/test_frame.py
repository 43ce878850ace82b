"""Records as a frame: ratios on records made by hand."""

import math
from dataclasses import replace

import pytest

from retbench.report.frame import headline_group, main_setting, mean_over_positions, rows, to_frame
from tests.report.factory import cell, failed, record, sweep


def metrics(tpot: float, peak: int = 100, step: int = 10, mean: float = 50.0) -> dict[str, float]:
    return {"tpot_ms": tpot, "peak_memory_bytes": peak, "step_bytes": step, "tokens_per_s_mean": mean}


def test_ratios_compare_with_the_transformer_and_with_the_fastest_transformer_of_the_group() -> None:
    frame = to_frame(
        [
            record(cell("retnet"), metrics=metrics(10.0, peak=100, step=10, mean=80.0)),
            record(cell("transformer"), metrics=metrics(30.0, peak=300, step=40, mean=20.0)),
            record(cell("transformer-flash"), metrics=metrics(20.0, peak=250, step=25, mean=40.0)),
            record(cell("transformer-concat-cache"), metrics=metrics(200.0, peak=400, step=90, mean=2.0)),
        ]
    )
    retnet = rows(frame)[0]

    assert retnet["speedup_vs_transformer"] == 3.0
    assert retnet["fastest"] == "transformer-flash"
    assert retnet["speedup_vs_fastest"] == 2.0
    assert retnet["bytes_ratio"] == 2.5
    assert retnet["memory_vs_transformer"] == 3.0
    assert retnet["memory_vs_fastest"] == 2.5
    assert retnet["throughput_mean_vs_transformer"] == 4.0
    assert rows(frame)[1]["speedup_vs_transformer"] == 1.0


@pytest.mark.parametrize(
    "condition",
    [{"seq_len": 1024}, {"batch_size": 1}, {"size": "mini"}, {"dtype": "fp32"}, {"device": "cuda"}, {"threads": 1}],
)
def test_a_transformer_under_other_conditions_is_no_baseline(condition: dict[str, object]) -> None:
    other = replace(cell("transformer"), **condition)
    frame = to_frame([record(cell(), metrics=metrics(10.0)), record(other, metrics=metrics(30.0))])

    assert rows(frame)[0]["speedup_vs_transformer"] is None
    assert rows(frame)[0]["fastest"] is None


def test_a_transformer_of_another_machine_is_no_baseline() -> None:
    other = record(cell("transformer"), metrics=metrics(30.0), environment={"machine": "elsewhere"})
    frame = to_frame([record(cell(), metrics=metrics(10.0)), other])

    assert rows(frame)[0]["speedup_vs_transformer"] is None


def test_a_failed_baseline_leaves_nan_and_the_other_transformer_is_the_fastest() -> None:
    frame = to_frame(
        [
            record(cell(), metrics=metrics(10.0)),
            failed(cell("transformer"), "oom", "too large"),
            record(cell("transformer-concat-cache"), metrics=metrics(50.0)),
        ]
    )

    assert math.isnan(frame["speedup_vs_transformer"][0])
    assert math.isnan(frame["memory_vs_transformer"][0])
    assert frame["speedup_vs_fastest"][0] == 5.0
    assert rows(frame)[1]["status"] == "oom"
    assert rows(frame)[1]["predicted_peak_memory_bytes"] == 9_000_000_000


def test_a_number_that_is_none_missing_or_zero_gives_no_ratio() -> None:
    frame = to_frame(
        [
            record(cell(), metrics={"tpot_ms": 0.0, "peak_memory_bytes": None}),
            record(cell("transformer"), metrics=metrics(30.0)),
        ]
    )
    retnet = rows(frame)[0]

    assert retnet["speedup_vs_transformer"] is None
    assert retnet["memory_vs_transformer"] is None
    assert retnet["bytes_ratio"] is None


def test_of_a_baseline_measured_twice_the_later_record_counts() -> None:
    twice = [record(cell("transformer"), metrics=metrics(tpot)) for tpot in (90.0, 30.0)]
    frame = to_frame([*twice, record(cell(), metrics=metrics(10.0))])

    assert frame["speedup_vs_transformer"].tolist()[-1] == 3.0


def test_the_frame_of_no_records_is_empty_with_all_columns() -> None:
    frame = to_frame([])

    assert frame.empty
    assert {"system", "tpot_ms", "speedup_vs_fastest"} <= set(frame.columns)
    assert headline_group([]) == main_setting([]) == []


def test_bytes_are_whole_numbers_in_rows() -> None:
    row = rows(to_frame(sweep()))[0]

    assert isinstance(row["peak_memory_bytes"], int)
    assert isinstance(row["batch_size"], int)


def test_the_mean_over_positions_of_a_line_is_its_middle() -> None:
    contexts = [{"context": depth, "step_bytes": 100 + depth} for depth in (1, 250, 500, 1000)]

    assert mean_over_positions(record(contexts=contexts), "step_bytes") == pytest.approx(600.5)
    assert math.isnan(mean_over_positions(record(contexts=[*contexts, {"context": 2000}]), "step_bytes"))
    assert math.isnan(mean_over_positions(record(), "step_bytes"))


def test_the_headline_is_the_largest_length_then_batch_that_retnet_was_measured_at() -> None:
    records = [*sweep(lengths=(1024, 4096), batches=(1, 8)), failed(cell(seq_len=8192), "oom", "too large")]
    group = headline_group(records)

    assert {(one.cell.seq_len, one.cell.batch_size) for one in group} == {(4096, 8)}
    assert headline_group([*records, group[0]]) == group
    assert len(group) == 4


def test_the_main_setting_leaves_other_settings_out() -> None:
    other = [replace(one, cell=replace(one.cell, size="mini", seq_len=512)) for one in sweep()]

    assert main_setting([*other, *sweep()]) == sweep()
