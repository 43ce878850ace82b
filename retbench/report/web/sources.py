"""What stands behind a number: records, the command that makes them again, the environment they were made in."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from retbench.record import Record
from retbench.report.commands import command_of
from retbench.report.exhibit import Drawn
from retbench.report.tables import Entry, Table
from retbench.report.web.scope import Scope, of_machine
from retbench.spec import Cell, Training


def _of_cell(name: str) -> Callable[[Record], Any]:
    return lambda record: getattr(record.cell, name)


def _of_training(name: str) -> Callable[[Record], Any]:
    return lambda record: getattr(record.cell.training or Training(), name)


# What a column of this name says of the records behind its rows.
FACTS: Mapping[str, Callable[[Record], Any]] = {
    **{name: _of_cell(name) for name in Cell.__dataclass_fields__ if name != "training"},
    **{name: _of_training(name) for name in Training.__dataclass_fields__},
    "machine": lambda record: record.machine,
}
FILTERED = ("system", "size", "machine")
Key = tuple[str, ...]


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

    sources: dict[Source, int] = field(default_factory=dict)
    environments: dict[str, int] = field(default_factory=dict)
    seen: dict[int, int] = field(default_factory=dict)  # identity of a record -> the number of its environment

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
        if id(record) not in self.seen:
            text = json.dumps(record.environment, sort_keys=True)
            self.seen[id(record)] = self.environments.setdefault(text, len(self.environments))
        return self.seen[id(record)]


class Behind:
    """The records of an exhibit by what the rows of one of its tables say of them, looked at once for all alike."""

    def __init__(self, table: Table, drawn: Drawn, sources: Sources) -> None:
        self.drawn, self.sources = drawn, sources
        self.places = [(at, column.name) for at, column in enumerate(table.columns) if column.name in FACTS]
        self.every = of_machine(table.name, drawn.records)
        self.records: dict[Key, list[Record]] = {}
        for record in self.every:
            self.records.setdefault(tuple(str(FACTS[name](record)) for _, name in self.places), []).append(record)
        self.known: dict[Key | None, tuple[Key, int]] = {}

    def row(self, row: Sequence[Entry]) -> tuple[Scope, int]:
        """Whose row it is, and the number of its source; that of all records where it speaks of none in particular."""
        said = {name: str(row[at].value) for at, name in self.places if name in FILTERED and row[at].value is not None}
        key: Key | None = tuple(str(row[at].value) for at, _ in self.places)
        key = key if key in self.records else None
        if key not in self.known:
            records = self.every if key is None else self.records[key]
            shared = tuple(_only(str(FACTS[name](one)) for one in records) for name in FILTERED)
            self.known[key] = shared, self.sources.number(self.drawn, records)
        shared, number = self.known[key]
        system, size, where = (said.get(name, one) for name, one in zip(FILTERED, shared, strict=True))
        return Scope("", system, size, where), number


def _only(values: Iterable[str]) -> str:
    """The one value that there is, empty where there are several."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else ""
