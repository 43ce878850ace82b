"""What stands behind a number: records, the command that makes them again, the environment they were made in."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from retbench.record import Record
from retbench.report.commands import command_of
from retbench.report.exhibit import Drawn
from retbench.report.tables import Entry, Table
from retbench.report.web.scope import Scope, machine
from retbench.spec import Cell, Training


def _of_cell(name: str) -> Callable[[Record], Any]:
    return lambda record: getattr(record.cell, name)


def _of_training(name: str) -> Callable[[Record], Any]:
    return lambda record: getattr(record.cell.training or Training(), name)


# What a column of this name says of the records behind its rows.
FACTS: Mapping[str, Callable[[Record], Any]] = {
    **{name: _of_cell(name) for name in Cell.__dataclass_fields__ if name != "training"},
    **{name: _of_training(name) for name in Training.__dataclass_fields__},
    "machine": machine,
}


@dataclass(frozen=True)
class Source:
    """Commands, environments by their number, and the number, dates and statuses of some records."""

    command: str
    environments: tuple[int, ...]
    records: int
    first: str
    last: str
    statuses: str


@dataclass
class Sources:
    """Everything that stands behind the numbers of one page: each source and each environment once, by its number."""

    environments: dict[str, int] = field(default_factory=dict)
    sources: dict[Source, int] = field(default_factory=dict)

    def number(self, drawn: Drawn, records: Sequence[Record]) -> int:
        """The number of the source that these records of an exhibit are."""
        every = len(records) == len(drawn.records)
        source = Source(
            drawn.command if every else command_of(drawn.exhibit, records),
            tuple(sorted({self._environment(one) for one in records})),
            len(records),
            min((one.created_at for one in records), default=""),
            max((one.created_at for one in records), default=""),
            ", ".join(sorted({one.status for one in records})),
        )
        return self.sources.setdefault(source, len(self.sources))

    def facts(self) -> list[dict[str, Any]]:
        """The environments by their number."""
        return [json.loads(text) for text in self.environments]

    def to_json(self) -> str:
        """The sources by their number, for a script element: without a character that could end it."""
        data = [list(vars(source).values()) for source in self.sources]
        text = json.dumps(data, separators=(",", ":"))
        return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

    def _environment(self, record: Record) -> int:
        text = json.dumps(record.environment, sort_keys=True)
        return self.environments.setdefault(text, len(self.environments))


@dataclass(frozen=True)
class Behind:
    """The records of an exhibit by what the rows of one of its tables say of them."""

    every: tuple[Record, ...]
    places: tuple[tuple[int, str], ...]  # of the columns that say something of records, with their names
    index: Mapping[tuple[str, ...], tuple[Record, ...]]

    @classmethod
    def of(cls, table: Table, drawn: Drawn) -> "Behind":
        places = tuple((at, column.name) for at, column in enumerate(table.columns) if column.name in FACTS)
        found: dict[tuple[str, ...], list[Record]] = {}
        for record in drawn.records:
            found.setdefault(tuple(str(FACTS[name](record)) for _, name in places), []).append(record)
        return cls(drawn.records, places, {key: tuple(some) for key, some in found.items()})

    def row(self, row: Sequence[Entry]) -> tuple[Record, ...]:
        """The records that a row speaks of; all of the exhibit where it speaks of none in particular."""
        return self.index.get(tuple(str(row[at].value) for at, _ in self.places), self.every)

    def scope(self, row: Sequence[Entry], records: Sequence[Record]) -> Scope:
        """The system, size and machine of a row by its own words, else by those of its records."""
        said = {name: str(row[at].value) for at, name in self.places if row[at].value is not None}
        found = {name: said.get(name) or _only(str(FACTS[name](one)) for one in records) for name in _FILTERED}
        return Scope(**found)


_FILTERED = ("system", "size", "machine")


def _only(values: Any) -> str:
    """The one value that there is, empty where there are several."""
    distinct = set(values)
    return str(distinct.pop()) if len(distinct) == 1 else ""
