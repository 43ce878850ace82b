"""Figure 6 predicted: at all seven lengths it meets the memory that the paper shows."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from experiments import inference
from retbench.errors import UsageError
from retbench.predictions import predicted
from retbench.report.figures import figure6_model
from retbench.report.paper import inference_paper
from retbench.report.paper_model import Point, cells, paper_model_table, points
from retbench.specifications import find_specification

PAPER, A100 = inference_paper(), find_specification("a100-80gb")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Point]:
    return points(predicted("paper_model", cells(PAPER), tmp_path_factory.mktemp("out")), A100, PAPER)


def test_memory_is_within_half_a_percent_of_the_papers_transformer_and_two_of_its_retnet(found: list[Point]) -> None:
    allowed = {"transformer": 0.005, "retnet": 0.02}

    assert [(point.system, point.seq_len // 1024) for point in found] == [
        (system, kilo) for system in allowed for kilo in range(2, 9)
    ]
    for point in found:
        assert point.memory_gb == pytest.approx(point.paper["memory"], rel=allowed[point.system])


def test_reports_that_cannot_be_written_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retbench.predictions.predicted", lambda *_: [])
    monkeypatch.setattr(inference, "paper_model_tables", lambda _: [])
    monkeypatch.setattr(inference, "paper_model_figures", lambda _: {"figure6-model": Figure()})
    (tmp_path / "reports").write_text("a file", encoding="utf-8")

    with pytest.raises(UsageError, match=f"^cannot write figures to {tmp_path}/reports/paper_model: "):
        inference.show_paper_model(tmp_path, "table")


def test_no_time_of_the_paper_is_below_the_roofline(found: list[Point]) -> None:
    for point in found:
        assert point.tokens_per_s > (point.paper["throughput"] or 0)
        assert point.latency_ms < (point.paper["latency"] or 1e9)


def test_a_latency_is_the_bytes_of_weights_and_state_at_the_bandwidth(found: list[Point]) -> None:
    longest = {point.system: point for point in found if point.seq_len == 8192}
    layers, head = 2 * 12 * 4096**2 * 32, 2 * 32000 * 4096

    cache, state = 8 * 2 * 2 * 32 * 8192 * 4096, 8 * 2 * 32 * 16 * 256 * 512
    expected = {"transformer": layers + head + cache, "retnet": layers + head + 2 * state}
    for system, moved in expected.items():
        assert longest[system].latency_ms == pytest.approx(1e3 * moved / 2.039e12, rel=1e-3)


def test_the_table_states_batch_unit_and_the_difference(found: list[Point]) -> None:
    table = paper_model_table(found, A100, PAPER)

    notes = " ".join(table.footnotes)
    assert "model, not measured" in table.title
    for words in ("batch 8", "10^9 bytes", "3.1 times lower latency", "15.6", "KV cache"):
        assert words in notes
    assert len(figure6_model.draw(found, A100, PAPER).axes) == 3
