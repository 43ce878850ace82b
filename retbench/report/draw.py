"""The whole report in memory: stored records read, and every exhibit of every experiment drawn from them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from models.catalogue import peers, systems
from models.sizes import SIZES
from retbench.errors import UsageError
from retbench.learning.run import ORDERS
from retbench.predictions import MACHINE as MODEL
from retbench.record import Record
from retbench.registry import choose, experiments
from retbench.report.commands import command_of
from retbench.report.exhibit import Drawn, Exhibit
from retbench.report.numbers import ABSENT
from retbench.report.style import place
from retbench.report.tables import Entry, Table, Value
from retbench.store import Store

if TYPE_CHECKING:
    from matplotlib.figure import Figure


NOT_RUN, SYSTEM = "not run", "system"


@dataclass(frozen=True)
class Results:
    """What was stored: the last record of every cell, by machine and experiment, and a line for each problem."""

    records: tuple[Record, ...] = ()
    problems: tuple[str, ...] = ()


def exhibits() -> list[Exhibit]:
    """Those of all experiments: what sums up, the paper's tables and figures by number, then ours."""
    found = [exhibit for module in experiments().values() for exhibit in getattr(module, "EXHIBITS", ())]
    return sorted(found, key=_place)


def read_records(results: Path, machines: str = "all", chosen_systems: str = "all") -> Results:
    """The records that a report is about, by system; comma-separated names choose among the machines and systems there.

    Predictions are of no machine: they are there whichever is chosen. Raises UsageError where there are no records, for
    a name that is not there, and for records of a newer schema.
    """
    stems = {exhibit.experiment for exhibit in exhibits()}
    paths = sorted(path for path in results.glob("*/*.jsonl") if path.stem in stems)
    files = {folder: list(own) for folder, own in groupby(paths, key=lambda path: path.parent)}
    if not files:
        raise UsageError(f"no records in {results}; {_commands()} make them")
    names = [*choose(machines, [folder.name for folder in files], "machine"), MODEL]
    records, problems = list[Record](), list[str]()
    for folder in (folder for folder in files if folder.name in names):
        for path in files[folder]:
            contents = Store(path).read()
            if contents.newer:
                raise UsageError(f"{contents.newer[0]}; a newer retbench draws its report")
            problems += contents.problems
            records += [_of_machine(record, folder.name) for record in current(contents.records)]
    if not records:
        raise UsageError(f"no records in {results}; {_commands()} make them")
    found = sorted({record.cell.system for record in records})
    kept = set(choose(chosen_systems, found, "system"))
    records = sorted((one for one in records if one.cell.system in kept), key=lambda one: place(one.cell.system))
    sized = {exhibit.experiment for exhibit in exhibits() if exhibit.sized}
    lost = [one for one in records if one.experiment in sized and one.cell.size not in SIZES]
    records = [one for one in records if one.experiment not in sized or one.cell.size in SIZES]
    return Results(tuple(records), (*problems, *_strangers(records), *_sizeless(lost)))


def current(records: Sequence[Record]) -> list[Record]:
    """The last record of each cell whatever the code and environment; one that was never tried replaces no other."""
    found: dict[object, Record] = {}
    for record in records:
        cell = record.cell.requested
        if record.status != "skipped" or cell not in found:
            found.pop(cell, None)  # the last one measured stands last
            found[cell] = record
    return list(found.values())


def draw(chosen: Sequence[Exhibit], records: Sequence[Record], chosen_systems: str = "all") -> list[Drawn]:
    """Every exhibit, in order; one without records says which command makes them.

    Of comma-separated ``chosen_systems`` alone can be told that they were not run.
    """
    names = [name.strip() for name in chosen_systems.split(",")]
    asked = chosen if names == ["all"] else [_of_systems(exhibit, names) for exhibit in chosen]
    by_experiment: dict[str, list[Record]] = {}
    for record in records:
        by_experiment.setdefault(record.experiment, []).append(record)
    return [
        _drawn(
            exhibit,
            records if exhibit.sums_up else by_experiment.get(exhibit.experiment, []),
            by_experiment.get(exhibit.also, []),
        )
        for exhibit in asked
    ]


def _of_systems(exhibit: Exhibit, names: Sequence[str]) -> Exhibit:
    return replace(exhibit, systems=tuple(name for name in exhibit.systems if name in names))


def _drawn(exhibit: Exhibit, records: Sequence[Record], also: Sequence[Record]) -> Drawn:
    if not records:
        return Drawn(exhibit, missing=f"{NOT_RUN}: no records; {exhibit.command} makes them", command=exhibit.command)
    machines = dict.fromkeys(record.machine for record in records)
    single = len(machines) == 1 or exhibit.sums_up
    parts = [(name, [record for record in records if record.machine == name]) for name in machines]
    parts = [("", list(records))] if single else parts
    tables = list[Table]()
    figures: dict[str, Figure] = {}
    for machine, own in parts:
        tables += [_marked(table, machine) for table in _complete(exhibit, exhibit.tables([*own, *also]))]
        if not exhibit.overlays:
            drawn = exhibit.figures([*own, *also])
            figures |= {f"{stem}-{machine}" if machine else stem: figure for stem, figure in drawn.items()}
    if exhibit.overlays:
        figures = dict(exhibit.figures([*records, *also]))
    if not tables and not figures:
        return Drawn(
            exhibit, missing=f"{NOT_RUN}: no record has it; {exhibit.command} makes some", command=exhibit.command
        )
    command = exhibit.command if exhibit.sums_up else command_of(exhibit, records)
    notes = () if single or exhibit.overlays else ("machines stand apart: nothing here can show several at once",)
    return Drawn(exhibit, tuple(records), tuple(tables), figures, "", command, notes)


def _complete(exhibit: Exhibit, tables: Sequence[Table]) -> list[Table]:
    """The tables without a blank, the first one of systems with a row for each of the paper that was not measured."""
    filled = [_gathered(replace(table, rows=tuple(tuple(map(_told, row)) for row in table.rows))) for table in tables]
    place = next((at for at, table in enumerate(filled) if SYSTEM in _names(table)), None)
    if place is not None:
        first, at = filled[place], _names(filled[place]).index(SYSTEM)
        shown = {row[at].text for row in first.rows}
        rows = tuple(_not_run(first, name) for name in exhibit.systems if name not in shown)
        filled[place] = replace(first, rows=(*first.rows, *rows))
    return filled


def _not_run(table: Table, system: str) -> tuple[Entry, ...]:
    """The row of a system without a record, which says so in place of its first number."""
    columns = [column for column in table.columns if column.name != SYSTEM and column.detail != "data"]
    numbers = [column.name for column in columns if column.justify == "right"]
    words = {SYSTEM: Entry(system, system)} | {name: Entry(None, NOT_RUN) for name in numbers[:1]}
    return tuple(words.get(name, Entry(None, ABSENT)) for name in _names(table))


def _names(table: Table) -> list[str]:
    return [column.name for column in table.columns]


def _gathered(table: Table) -> Table:
    """The rows of each section together, since records come by system; lengths and batches go up."""
    places = [at for at, column in enumerate(table.columns) if column.name in table.section]
    keys = [tuple(row[at].value for at in places) for row in table.rows]
    if len(list(groupby(keys))) == len(set(keys)):
        return table  # a table that sorts its rows itself knows better
    orders = [_in_order(column) for column in zip(*keys, strict=True)]
    ranks = {key: [order[value] for order, value in zip(orders, key, strict=True)] for key in set(keys)}
    ranked = sorted(zip(keys, table.rows, strict=True), key=lambda pair: ranks[pair[0]])
    return replace(table, rows=tuple(row for _, row in ranked))


def _in_order(values: Sequence[Value]) -> dict[Value, int]:
    """The place of each distinct value: numbers by size, anything else as it first comes."""
    found = list(dict.fromkeys(values))
    numbers = sorted(value for value in found if isinstance(value, int | float))
    found = [*numbers] if len(numbers) == len(found) else found
    return {value: at for at, value in enumerate(found)}


def _told(entry: Entry) -> Entry:
    return entry if entry.text else entry._replace(text=ABSENT)


def _marked(table: Table, machine: str) -> Table:
    """The table under a name and title that say the machine, where there are several."""
    if not machine:
        return table
    return replace(table, name=f"{table.name}-{machine}", title=f"{table.title}: {machine}")


def _of_machine(record: Record, name: str) -> Record:
    """The record under the name of its folder, which whoever copied it there may have changed."""
    if record.machine == name:
        return record
    return replace(record, environment={**record.environment, "machine": name})


def _strangers(records: Sequence[Record]) -> tuple[str, ...]:
    """A line on systems that this retbench does not know; they are shown like any other."""
    known = {*systems(), *(row for peer in peers().values() for row in peer.rows), *_NOT_MODELS}
    unknown = sorted({one.cell.system for one in records if one.cell.checkpoint is None} - known)
    return (f"systems that this retbench does not know, shown as they are: {', '.join(unknown)}",) if unknown else ()


def _sizeless(lost: Sequence[Record]) -> tuple[str, ...]:
    """A line on records whose sizes this retbench does not know, where it would have to."""
    sizes = ", ".join(sorted({one.cell.size for one in lost}))
    where = ", ".join(sorted({one.experiment for one in lost}))
    words = f"{len(lost)} records of {where} left out: this retbench does not know their size {sizes}"
    return (words,) if lost else ()


def _commands() -> str:
    """The verbs that measure, in words."""
    return ", ".join(dict.fromkeys(" ".join(one.command.split()[:2]) for one in exhibits() if not one.sums_up))


def _place(exhibit: Exhibit) -> tuple[bool, int, int, str]:
    """What sums up, then tables and figures by number, then the rest."""
    numbered = re.match(r"(table|figure)(\d+)", exhibit.name)
    kind = ("table", "figure").index(numbered[1]) if numbered else 2
    return not exhibit.sums_up, kind, int(numbered[2]) if numbered else 0, exhibit.name


_NOT_MODELS = ("machine", *ORDERS)  # as a system: the limits that speed measures, n-grams
