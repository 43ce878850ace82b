"""A record is one line of JSON both ways, and whatever is not a record is refused in words."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retbench import record as record_module
from retbench.record import SCHEMA_VERSION, Record, RecordError, Status
from tests.retbench import EXAMPLE

TEXT = st.text(st.characters(exclude_categories=[]))  # lone surrogates, line separators, NULs and all
JSON_OBJECTS = st.dictionaries(
    TEXT, st.recursive(st.none() | st.booleans() | st.integers() | TEXT, st.lists), max_size=4
)


def edited(change: Callable[[dict[str, Any]], object]) -> str:
    data = json.loads(EXAMPLE.to_json())
    change(data)
    return json.dumps(data)


def test_a_record_survives_the_way_to_json_and_back() -> None:
    back = Record.from_json(EXAMPLE.to_json())

    assert back == EXAMPLE


@settings(derandomize=True, deadline=None)
@given(reason=TEXT, environment=JSON_OBJECTS, notes=JSON_OBJECTS)
def test_any_text_survives_and_never_breaks_the_line(
    reason: str, environment: dict[str, Any], notes: dict[str, Any]
) -> None:
    record = replace(EXAMPLE, status="error", reason=reason, environment=environment, notes=notes)

    line = record.to_json()

    assert line.isascii()
    assert len(line.splitlines()) == 1
    assert Record.from_json(line) == record


def test_the_fields_that_other_tools_read_are_there() -> None:
    data = json.loads(EXAMPLE.to_json())

    assert data["schema_version"] == SCHEMA_VERSION == 1
    assert {"experiment", "created_at", "key", "cell", "status", "reason"} <= data.keys()
    assert {"metrics", "samples", "warmup", "environment"} <= data.keys()
    assert {"system", "size", "workload", "seq_len", "batch_size", "dtype", "device"} <= data["cell"].keys()
    assert {"threads", "backend", "form", "seed"} <= data["cell"].keys()


@pytest.mark.parametrize("status", [status for status in get_args(Status) if status != "ok"])
def test_every_status_but_ok_has_a_reason(status: Status) -> None:
    record = replace(EXAMPLE, status=status, reason="in words")

    assert Record.from_json(record.to_json()) == record
    with pytest.raises(RecordError, match=f"status {status} with reason None"):
        replace(EXAMPLE, status=status)


def test_ok_has_no_reason() -> None:
    with pytest.raises(RecordError, match="ok has none"):
        replace(EXAMPLE, reason="but why")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_lacks_is_never_written(value: float) -> None:
    record = replace(EXAMPLE, metrics={"tpot_ms": value})

    with pytest.raises(ValueError, match="not JSON compliant"):
        record.to_json()


def test_unknown_fields_of_a_newer_writer_are_ignored() -> None:
    line = edited(lambda data: data.update(extra=1) or data["cell"].update(extra=1))

    assert Record.from_json(line) == EXAMPLE


def test_optional_fields_of_an_older_writer_may_be_missing() -> None:
    line = edited(lambda data: [data.pop(name) for name in ("contexts", "predicted", "notes")])

    assert Record.from_json(line) == EXAMPLE


def test_another_schema_version_is_named() -> None:
    with pytest.raises(RecordError, match=f"schema version 99, this retbench reads {SCHEMA_VERSION}"):
        Record.from_json(edited(lambda data: data.update(schema_version=99)))


def test_an_older_schema_version_is_migrated_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {-1: lambda data: {**data, "experiment": "renamed"}, 0: lambda data: {**data, "key": data["experiment"]}}
    monkeypatch.setattr(record_module, "MIGRATIONS", steps)

    assert Record.from_json(edited(lambda data: data.update(schema_version=-1))).key == "renamed"


def test_an_older_schema_version_that_nothing_leads_from_is_refused() -> None:
    with pytest.raises(RecordError, match=f"schema version 0, this retbench reads {SCHEMA_VERSION}"):
        Record.from_json(edited(lambda data: data.update(schema_version=0)))


@pytest.mark.parametrize("status", ["fine", "OK", None, 1, ["ok"]])
def test_an_unknown_status_is_refused_with_the_known_ones(status: object) -> None:
    with pytest.raises(RecordError, match="status must be one of ok, oom, timeout"):
        Record.from_json(edited(lambda data: data.update(status=status)))


@pytest.mark.parametrize("field", ["schema_version", "experiment", "cell", "status", "reason", "key", "environment"])
def test_a_missing_field_is_refused(field: str) -> None:
    with pytest.raises(RecordError, match=field):
        Record.from_json(edited(lambda data: data.pop(field)))


@pytest.mark.parametrize("field", ["system", "seq_len", "threads"])
def test_a_missing_field_of_the_cell_is_refused(field: str) -> None:
    with pytest.raises(RecordError, match=field):
        Record.from_json(edited(lambda data: data["cell"].pop(field)))


@pytest.mark.parametrize("value", ['"x"', "[1]", "{}", "1e999", "9" * 400])
@pytest.mark.parametrize("place", ["metrics", "contexts"])
def test_a_metric_that_is_no_number_is_refused(place: str, value: str) -> None:
    points = {"tpot_ms": "HERE", "ttft_ms": None, "ttft_status": "ok", "rank_peak_memory_bytes": [1], "step_ns": [1]}
    line = edited(lambda data: data.update({place: points if place == "metrics" else [points]}))
    assert Record.from_json(line.replace('"HERE"', "1.5"))

    with pytest.raises(RecordError, match=r"tpot_ms is .*, which is no number"):
        Record.from_json(line.replace('"HERE"', value))


@pytest.mark.parametrize(("field", "value"), [("seq_len", "8k"), ("threads", None), ("system", 1), ("size", ["small"])])
def test_a_field_of_the_cell_of_another_kind_is_refused(field: str, value: object) -> None:
    with pytest.raises(RecordError, match=f"{field} of the cell must be a"):
        Record.from_json(edited(lambda data: data["cell"].update({field: value})))


@pytest.mark.parametrize("line", ["", " ", "null", "1", '"text"', "[]", "{}", "{", '{"schema_version": 1}', "\x00"])
def test_a_line_that_is_no_record_is_refused(line: str) -> None:
    with pytest.raises(RecordError, match="not a record"):
        Record.from_json(line)


@pytest.mark.parametrize("cell", [None, 1, "text", [], {}])
def test_a_cell_that_is_no_cell_is_refused(cell: object) -> None:
    with pytest.raises(RecordError, match="not a record"):
        Record.from_json(edited(lambda data: data.update(cell=cell)))


@settings(derandomize=True, deadline=None)
@given(st.data())
def test_no_part_of_a_line_is_a_record(data: st.DataObject) -> None:
    line = EXAMPLE.to_json()
    part = line[: data.draw(st.integers(0, len(line) - 1))]

    with pytest.raises(RecordError, match="not a record"):
        Record.from_json(part)
