"""An exhibit: a table or figure of the paper, or one of ours, and what was drawn of it from records."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from retbench.record import Record
from retbench.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Exhibit:
    """What a report shows: an experiment's module declares a tuple of these, ``EXHIBITS``.

    ``name`` is its anchor and file stem (``figure6``, ``table4``); ``experiment`` the stem of the files of its records,
    ``command`` what makes them. ``tables`` and ``figures`` draw them, figures by file stem; both get records of one
    machine at a time, but figures that ``overlays`` says can hold several. ``sums_up``: it reads the records of every
    experiment. ``systems`` are the rows of the paper: in the first table with systems those without a record are told
    to be not run. ``sized``: it needs to know the sizes of models. ``also`` is an experiment whose records, of all
    machines, tables and figures get too.
    """

    name: str
    title: str
    experiment: str
    command: str
    tables: Callable[[Sequence[Record]], Sequence[Table]]
    figures: Callable[[Sequence[Record]], Mapping[str, "Figure"]]
    overlays: bool = False
    sums_up: bool = False
    systems: tuple[str, ...] = ()
    sized: bool = False
    also: str = ""


@dataclass(frozen=True)
class Drawn:
    """An exhibit drawn from its records; ``missing`` says why there is nothing, and which command would change that.

    ``command`` makes just these records; ``notes`` are what tables and figures do not say themselves.
    """

    exhibit: Exhibit
    records: tuple[Record, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: Mapping[str, "Figure"] = field(default_factory=dict)
    missing: str = ""
    command: str = ""
    notes: tuple[str, ...] = ()
