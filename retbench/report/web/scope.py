"""Whose values something shows: its system, size and machine, which the filters of the page ask for."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from retbench.record import Record
from retbench.report.style import looks


@dataclass(frozen=True)
class Scope:
    """``label`` in words; ``system``, ``size`` and ``machine`` are empty where it speaks of none or of several."""

    label: str = ""
    system: str = ""
    size: str = ""
    machine: str = ""
    paper: bool = False  # the paper's values, not ours


@dataclass(frozen=True)
class Systems:
    """What the records of an exhibit speak of, to find it in the labels of a figure.

    A label begins with its system and goes on after a comma or two blanks: ``retnet, small``, ``retnet, paper``.
    """

    systems: tuple[str, ...]
    sizes: tuple[str, ...]
    machines: tuple[str, ...]

    @classmethod
    def of(cls, records: Sequence[Record]) -> Self:
        return cls(
            _distinct(record.cell.system for record in records),
            _distinct(record.cell.size for record in records),
            _distinct(record.machine for record in records),
        )

    def scope(self, label: str, colour: str, marker: str) -> Scope:
        """By the label, else by the look that a system has in every figure."""
        named = next((name for name in sorted(self.systems, key=len, reverse=True) if _begins(label, name)), "")
        rest = re.split(r", |  ", label.removeprefix(named))
        return Scope(
            label=label or named or self._looking(colour, marker),
            system=named or self._looking(colour, marker),
            size=_one(self.sizes, rest),
            machine=_one(self.machines, rest),
            paper="paper" in re.findall(r"\w+", " ".join(rest)),
        )

    def _looking(self, colour: str, marker: str) -> str:
        """The one system of this colour, and of this marker where there is one."""
        shown = {name: look for name, look in looks(self.systems).items() if look.colour.lower() == colour.lower()}
        found = [name for name, look in shown.items() if not marker or look.marker == marker]
        return found[0] if len(found) == 1 else ""


def of_machine(name: str, records: Sequence[Record]) -> Sequence[Record]:
    """The records of the machine that the name of a table or figure ends with, all where it ends with none."""
    named = [one for one in {record.machine for record in records} if one and name.endswith(f"-{one}")]
    chosen = max(named, key=len, default=None)
    return records if chosen is None else [record for record in records if record.machine == chosen]


def _one(known: Sequence[str], said: Iterable[str]) -> str:
    """The one that is said; without a word the only one there is."""
    found = [name for name in said if name in known]
    return found[0] if len(found) == 1 else known[0] if len(known) == 1 and not found else ""


def _begins(label: str, name: str) -> bool:
    return label == name or label.startswith((f"{name}, ", f"{name} "))


def _distinct(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(Counter(names))
