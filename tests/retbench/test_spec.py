"""Cells as JSON: what was written stays readable, and old keys stay what they were."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retbench.record import Record, RecordError
from retbench.spec import Cell, Training
from tests.retbench import EXAMPLE

CELL = EXAMPLE.cell
STEP = replace(CELL, workload="train_step", chunk_size=512, training=Training("block", 4, "chunked", fsdp=True))

trainings = st.builds(
    Training, st.sampled_from(["none", "block"]), st.integers(1, 9), st.sampled_from(["plain", "chunked"])
)


@settings(derandomize=True, deadline=None)
@given(chunk_size=st.none() | st.integers(1, 9), training=st.none() | trainings)
def test_a_cell_survives_the_way_to_json_and_back(chunk_size: int | None, training: Training | None) -> None:
    cell = replace(CELL, chunk_size=chunk_size, training=training)

    assert Cell.from_dict(json.loads(json.dumps(cell.to_dict()))) == cell
    assert Record.from_json(replace(EXAMPLE, cell=cell).to_json()).cell == cell


def test_a_cell_without_training_or_evaluation_is_written_as_before_there_was_any() -> None:
    later = STEP_FIELDS | {"task", "num_fewshot", "limit", "l_max", "learning", "recall"}

    assert CELL.to_dict() == {name: value for name, value in asdict(CELL).items() if name not in later}
    assert STEP.to_dict().keys() - CELL.to_dict().keys() == STEP_FIELDS


STEP_FIELDS = {"chunk_size", "training"}


@pytest.mark.parametrize("training", [{"checkpointing": "none", "sharding": 2}, 3])
def test_a_training_that_is_none_makes_no_record(training: Any) -> None:
    data = json.loads(replace(EXAMPLE, cell=STEP).to_json())
    data["cell"]["training"] = training

    with pytest.raises(RecordError, match="not a record"):
        Record.from_json(json.dumps(data))


def test_a_label_says_how_a_step_is_made_where_it_is_not_plain() -> None:
    assert CELL.label == replace(CELL, training=Training()).label
    assert STEP.label == (
        "retnet small chunk 512, batch 1, length 8192, checkpointed blocks, 4 micro-batches, chunked loss, fsdp"
    )


def test_a_chunk_size_is_a_field_of_the_models_config() -> None:
    assert CELL.overrides == {}
    assert STEP.overrides == {"chunk_size": 512}
