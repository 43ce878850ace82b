"""Table 4 predicted: the model, the search for assumptions, and its bad input."""

from pathlib import Path

import pytest

from experiments.training_cost import command
from retbench.errors import UsageError
from retbench.report.figures import table4
from retbench.report.training_cost import Assumptions, Cost, cost_tables, fits, known_costs, rms
from retbench.report.training_tables import paper_training
from retbench.specifications import find_specification
from tests.experiments.conftest import run

A100 = find_specification("a100-80gb")
ASSUMED = Assumptions("block", "GB", 16.0, (4, 2, 2, 1), (1, 1, 2, 8))
SYSTEMS = ("transformer", "transformer-flash", "retnet")


def made_by(assumed: Assumptions) -> list[Cost]:
    """Rows whose printed memory is exactly what the assumptions give."""
    rows = []
    for place, size in enumerate(paper_training()["memory"]["sizes"]):
        for at, system in enumerate(SYSTEMS):
            work = ({"block": (at + 1) * 10**9 * (place + 3)}, {"block": 10**14})
            row = Cost(system, size, place, 1.0, 1000.0, 8192, (2**place + 1) * 10**9, *work)
            memory = row.memory(assumed)
            rows.append(Cost(system, size, place, memory, 1000.0, 8192, row.parameters, *work))
    return rows


def test_memory_is_states_and_activations_shared_by_the_gpus_of_a_model() -> None:
    cost = Cost("retnet", "13b", 3, 50.0, 1000.0, 8192, 8 * 10**9, {"block": 16 * 10**9}, {"block": 312 * 10**12})

    assert cost.memory(ASSUMED) == pytest.approx((16 * 8 + 1 * 16) / 8)
    assert cost.error(ASSUMED) == pytest.approx(18 / 50 - 1)
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
    for words in ("cannot be identified", "batch 4 2 2 1", "tensor parallel 1 1 2 8", "16 bytes", "block", "model"):
        assert words in notes
    assert second.rows[0][2].value == ASSUMED.words
    assert len(table4.draw(costs, ASSUMED).axes[0].patches) == 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": "1,2"}, "must be one number or 4, for 1.3b, 2.7b, 6.7b, 13b"),
        ({"batch_size": "none"}, "is not a count"),
        ({"tensor_parallel": "16"}, "up to 8"),
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


@pytest.mark.slow
def test_the_defaults_come_within_a_sixth_of_every_memory_of_the_paper(tmp_path: Path) -> None:
    done = run(tmp_path, "training-cost", "--format", "csv")

    errors = [float(line.split(",")[6]) for line in done.stdout.splitlines()[1:]]
    assert done.returncode == 0, done.stderr
    assert len(errors) == 12
    assert max(map(abs, errors)) < 1 / 6
    assert (tmp_path / "reports" / "training_cost" / "table4-model.png").exists()
