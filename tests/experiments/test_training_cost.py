"""Table 4 predicted: the model, the search for assumptions, and its bad input."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.training_cost import ASSUMED as DEFAULTS
from experiments.training_cost import EXHIBITS, cells, command, costs_of
from retbench.environment import ROOT
from retbench.errors import UsageError
from retbench.ranks import check_systems
from retbench.record import Record
from retbench.report.draw import draw
from retbench.report.figures import table4
from retbench.report.training_cost import (
    DEGREES,
    UNITS,
    Assumptions,
    Cost,
    cost_tables,
    fits,
    known_costs,
    measured_peaks,
    rms,
    step_cell,
)
from retbench.report.training_tables import paper_training
from retbench.spec import Training
from retbench.specifications import find_specification
from retbench.store import Store
from tests.experiments.conftest import run
from tests.report.factory import record

A100 = find_specification("a100-80gb")
ASSUMED = Assumptions("block", "GB", 16.0, (4, 2, 2, 1), (1, 1, 2, 4))
SYSTEMS = ("transformer", "transformer-flash", "retnet")


def made_by(assumed: Assumptions) -> list[Cost]:
    """Rows whose printed memory is exactly what the assumptions give."""
    rows = []
    for place, size in enumerate(paper_training()["memory"]["sizes"]):
        for at, system in enumerate(SYSTEMS):
            work = ({"block": (at + 1) * 10**9 * (place + 3)}, {"block": 10**8}, {"block": 10**14})
            row = Cost(system, size, place, 1.0, 1000.0, 8192, (2**place + 1) * 10**9, *work)
            memory = row.memory(assumed)
            rows.append(Cost(system, size, place, memory, 1000.0, 8192, row.parameters, *work))
    return rows


def test_memory_is_states_and_activations_shared_by_the_gpus_of_a_model_but_for_what_each_has_whole() -> None:
    work = ({"block": 16 * 10**9}, {"block": 4 * 10**9}, {"block": 312 * 10**12})
    cost = Cost("retnet", "13b", 3, 50.0, 1000.0, 8192, 8 * 10**9, *work)  # type: ignore[arg-type]

    assert cost.memory(ASSUMED) == pytest.approx((16 * 8 + 1 * (16 - 4)) / 4 + 1 * 4)
    assert cost.error(ASSUMED) == pytest.approx(39 / 50 - 1)
    assert cost.tokens_per_s(ASSUMED, A100) == pytest.approx(8 * 8192)


def test_the_search_finds_the_assumptions_that_a_table_was_made_by() -> None:
    costs = made_by(ASSUMED)

    best = fits(costs)[0]
    assert rms(costs, best) == pytest.approx(0)
    assert (best.state_bytes, best.unit) == (ASSUMED.state_bytes, ASSUMED.unit)


def test_the_papers_numbers_are_those_of_the_file() -> None:
    predicted = {"parameters": 10**9, "most_activations_bytes": 10**9, "step_flops": 10**14}
    keys = [(system, size, "block") for system in SYSTEMS for size in paper_training()["memory"]["sizes"]]
    costs = known_costs(dict.fromkeys(keys, predicted))  # type: ignore[arg-type]

    found = {(cost.system, cost.size): (cost.paper_memory, cost.paper_tokens_per_s) for cost in costs}
    assert len(found) == 12
    assert found["retnet", "13b"] == (45.9, 8642.2)
    assert found["transformer", "1.3b"] == (74.8, 10832.4)


def test_the_text_says_what_cannot_be_identified_and_states_every_assumption() -> None:
    costs = made_by(ASSUMED)
    first, second = cost_tables(costs, ASSUMED, A100, {}, [ASSUMED])

    notes = " ".join(first.footnotes)
    for words in ("cannot be identified", "batch 4 2 2 1", "tensor parallel 1 1 2 4", "16 bytes", "block", "model"):
        assert words in notes
    assert second.rows[0][2].value == ASSUMED.words
    assert len(table4.draw(costs, ASSUMED, {}).axes[0].patches) == 24


GIB = 2**30


def trained(system: str = "retnet", training: Mapping[str, Any] | None = None, **other: Any) -> Record:
    """A step that was measured under the defaults of 6.7b, but for what is told otherwise."""
    known = {"checkpointing": DEFAULTS.checkpointing, "tensor_parallel": DEFAULTS.tensor_parallel[2]}
    of = step_cell(system, "6.7b", DEFAULTS.batch_size[2], Training(**{**known, **(training or {})}))  # type: ignore[arg-type]
    of = replace(of, backend="fla", form="chunkwise", threads=8, **other)
    return record(of, metrics={"peak_memory_bytes": 50 * GIB}, experiment="training")


@pytest.mark.parametrize(
    "other",
    [
        {"batch_size": 16},
        {"dtype": "fp32"},
        {"device": "cpu"},
        {"seq_len": 4096},
        {"chunk_size": 256},
        {"compile": True},
        {"n_layers": 4},
        {"training": {"checkpointing": "none"}},
        {"training": {"tensor_parallel": 8}},
        {"training": {"data_parallel": 2, "fsdp": True}},
        {"training": {"loss": "chunked"}},
    ],
)
def test_what_was_measured_under_other_conditions_is_in_no_row(other: dict[str, Any]) -> None:
    costs = made_by(DEFAULTS)

    assert measured_peaks([trained(**other)], costs, DEFAULTS) == {}
    assert measured_peaks([replace(trained(), status="oom", reason="full")], costs, DEFAULTS) == {}
    assert measured_peaks([trained(training={"data_parallel": 4})], costs, DEFAULTS) == {("retnet", "6.7b"): 50 * GIB}


def test_a_report_shows_what_was_measured_under_the_assumptions_beside_the_model() -> None:
    work = {"parameters": 10**9, "most_activations_bytes": 10**9, "step_flops": 10**14}
    traced = [record(of, experiment="training_cost", predicted=work) for of in cells(["block"])]

    (without,) = draw(EXHIBITS, traced)
    (drawn,) = draw(EXHIBITS, [*traced, trained(), trained("transformer", batch_size=16)])

    names = [column.name for column in drawn.tables[0].columns]
    column = [row[names.index("measured_memory")] for row in drawn.tables[0].rows]
    assert "measured_memory" not in [column.name for column in without.tables[0].columns]
    assert [entry.value for entry in column if entry.value is not None] == [50 * GIB / UNITS[DEFAULTS.unit]]
    assert len(column) == 12
    assert len(drawn.figures["table4-model"].axes[0].lines) == 1
    assert len(without.figures["table4-model"].axes[0].lines) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": "1,2"}, "must be one number or 4, for 1.3b, 2.7b, 6.7b, 13b"),
        ({"batch_size": "none"}, "is not a count"),
        ({"batch_size": "1-4"}, "--batch-size '1-4' must be one number or 4, for 1.3b"),
        ({"batch_size": "1-4,2,2,2"}, "must be one number or 4"),
        ({"tensor_parallel": "16"}, "up to 8"),
        ({"tensor_parallel": "3"}, "3 does not divide 8 GPUs and the heads of 1.3b; possible are 1, 2, 4, 8"),
        ({"tensor_parallel": "1,1,8,8"}, "8 does not divide 8 GPUs and the heads of 13b; possible are 1, 2, 4"),
        ({"checkpointing": "layer"}, "it is one of none, block"),
        ({"unit": "MB"}, "units are GB, GiB"),
        ({"output_format": "xml"}, "unknown format 'xml'"),
    ],
)
def test_bad_input_is_one_line(options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        command(**options)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_reports_that_cannot_be_written_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retbench.predictions.predicted", lambda *_: [])
    monkeypatch.setattr("experiments.training_cost.costs_of", lambda _: made_by(ASSUMED))
    (tmp_path / "reports").write_text("a file", encoding="utf-8")

    with pytest.raises(UsageError, match=f"^cannot write figures to {tmp_path}/reports/training_cost: "):
        command(out=tmp_path)
    assert (tmp_path / "reports").read_text(encoding="utf-8") == "a file"


@pytest.mark.parametrize(("place", "size"), list(enumerate(paper_training()["memory"]["sizes"])))
def test_possible_degrees_are_all_that_divide_the_heads_of_the_models(place: int, size: str) -> None:
    def divides(degree: int) -> bool:
        steps = [step_cell(system, size, 1, Training(tensor_parallel=degree)) for system in SYSTEMS]
        try:
            check_systems(steps)
        except UsageError:
            return False
        return True

    assert DEGREES[place] == tuple(degree for degree in (1, 2, 4, 8) if divides(degree))


def test_the_defaults_come_nearest_of_all_with_checkpointed_blocks() -> None:
    records = Store(ROOT / "results" / "model" / "training_cost.jsonl").read().records

    assert fits(costs_of(records))[0] == DEFAULTS  # none holds more than a GPU does, whatever else is assumed


@pytest.mark.slow
def test_the_defaults_come_within_18_percent_of_every_memory_of_the_paper(tmp_path: Path) -> None:
    done = run(tmp_path, "training-cost", "--format", "csv")

    errors = [float(line.split(",")[6]) for line in done.stdout.splitlines()[1:]]
    assert done.returncode == 0, done.stderr
    assert len(errors) == 12
    assert max(map(abs, errors)) < 0.18
    assert (tmp_path / "reports" / "training_cost" / "table4-model.png").exists()
