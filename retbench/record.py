"""What came out: one record a cell, one JSON object a line, schema versioned."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from retbench.spec import Cell

SCHEMA_VERSION = 1

Status = Literal["ok", "oom", "timeout", "killed", "unsupported", "error", "skipped"]


Data = dict[str, Any]

# How the names of metrics end or begin that are no numbers: words, and a number for each sample, visit or rank.
WORDS, LISTS, OF_RANKS = ("_status", "_reason"), ("_ns", "_groups"), "rank_"
OF_CELL: Mapping[type, tuple[str, ...]] = {
    str: ("system", "size", "workload", "dtype", "device"),
    int: ("seq_len", "batch_size", "threads", "seed"),
}

# An older version -> what turns its data into those of the next one; version 1 is the first.
MIGRATIONS: Mapping[int, Callable[[Data], Data]] = {}


class RecordError(ValueError):
    """A line that is not a record of this schema."""


class NewerError(RecordError):
    """A record of a schema that came after this retbench."""


@dataclass(frozen=True)
class Record:
    """A cell with its status, metrics, raw samples and environment; ``reason`` is set for every status but ok.

    ``metrics`` are derived numbers with their unit in the name; ``contexts`` holds what was measured at each depth
    of the cell; ``samples`` are raw nanoseconds; ``predicted`` is the plan made before running.
    """

    experiment: str
    cell: Cell
    status: Status
    reason: str | None
    key: str
    created_at: str
    environment: dict[str, Any]
    metrics: dict[str, Any] = field(default_factory=dict)
    contexts: list[dict[str, Any]] = field(default_factory=list)
    samples: dict[str, list[int]] = field(default_factory=dict)
    warmup: dict[str, int] = field(default_factory=dict)
    predicted: dict[str, int] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        for name, kind in (
            ("experiment", str),
            ("key", str),
            ("created_at", str),
            ("environment", dict),
            ("metrics", dict),
        ):
            if not isinstance(getattr(self, name), kind):
                raise RecordError(f"{name} must be a {kind.__name__}, not {getattr(self, name)!r:.50}")
        if self.status not in get_args(Status):
            raise RecordError(f"status must be one of {', '.join(get_args(Status))}, not {self.status!r}")
        if (self.status == "ok") != (self.reason is None):
            raise RecordError(f"status {self.status} with reason {self.reason!r}: ok has none, the others have one")

    @property
    def machine(self) -> str:
        """The folder of results that it belongs to, empty where it does not say."""
        return str(self.environment.get("machine") or "")

    def to_json(self) -> str:
        """One line, without a line break."""
        return json.dumps({**asdict(self), "cell": self.cell.to_dict()}, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> "Record":
        """The record of a line; raises RecordError that says what is wrong. Unknown fields are ignored."""
        try:
            data = _migrated(json.loads(line, parse_constant=_no_constant))
            known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
            record = cls(**{**known, "cell": Cell.from_dict(data["cell"])})
            _check(record)
            return record
        except RecordError:
            raise
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise RecordError(f"not a record: {error!r}") from error


def _check(record: Record) -> None:
    """RecordError where what is read of a cell or a metric is not what its name says; any metric may be None."""
    cell = vars(record.cell)
    for kind, names in OF_CELL.items():
        for name in names:
            if not isinstance(cell[name], kind):
                raise RecordError(f"{name} of the cell must be a {kind.__name__}, not {cell[name]!r:.50}")
    for metrics in (record.metrics, *record.contexts):
        for name, value in metrics.items():
            if not _is_metric(name, value):
                raise RecordError(f"{name} is {value!r:.50}, which is no number")


def _is_metric(name: str, value: object) -> bool:
    if isinstance(value, int | float):
        return -sys.float_info.max <= value <= sys.float_info.max  # 1e999 is JSON, and read as infinite
    if isinstance(value, list):
        return name.endswith(LISTS) or name.startswith(OF_RANKS)
    return value is None or (isinstance(value, str) and name.endswith(WORDS))


def _migrated(data: Data) -> Data:
    """Data of the current version; RecordError for a newer version, or an older one that nothing leads from."""
    while (version := data["schema_version"]) != SCHEMA_VERSION:
        if version not in MIGRATIONS:
            kind = NewerError if isinstance(version, int) and version > SCHEMA_VERSION else RecordError
            raise kind(f"schema version {version}, this retbench reads {SCHEMA_VERSION}")
        data = {**MIGRATIONS[version](data), "schema_version": version + 1}
    return data


def _no_constant(name: str) -> None:
    raise RecordError(f"not a record: {name} is no number")
