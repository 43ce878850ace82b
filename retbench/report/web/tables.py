"""Tables of a report as HTML: rows that filters find, statuses in words, what stands behind each row one click away."""

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from typing import get_args

from retbench.record import Status
from retbench.report.exhibit import Drawn
from retbench.report.numbers import ABSENT
from retbench.report.tables import Column, Entry, Table, one_line
from retbench.report.web.sources import Behind, Sources
from retbench.report.web.svg import data

# Verdicts by how they look; words of other columns stay as they are.
VERDICTS = {
    "supported": "good", "agrees": "good", "not supported": "bad", "differs": "bad", "undecided": "open",
    "not run": "none",
}  # fmt: skip
STATUSES = {*get_args(Status), "not run", "not measured"} - {"ok"}


def table_html(table: Table, drawn: Drawn, sources: Sources) -> str:
    """A table with its title and footnotes; without rows the footnotes alone."""
    notes, title = notes_html(table.footnotes), text(table.title)
    if not table.rows:
        return f'<div class="table"><h3>{title}</h3>{notes}</div>'
    shown = table.shown("terminal", "page")
    columns = [table.columns[at] for at in shown]
    heads = "".join(f'<th scope="col"{_side(column)}>{_head(column)}</th>' for column in columns)
    bodies = "".join(f"<tbody>{''.join(rows)}</tbody>" for rows in _bodies(table, shown, drawn, sources))
    return (
        f'<div class="table"><h3>{title}</h3>'
        f'<div class="scroll" role="region" tabindex="0" aria-label="{title}"><table>'
        f'<thead><tr>{heads}<td class="more"></td></tr></thead>{bodies}</table></div>'
        f'<p class="nothing" hidden>No row passes the filters.</p>{notes}</div>'
    )


def notes_html(notes: Sequence[str]) -> str:
    """Footnotes; nothing where there are none."""
    lines = "".join(f"<li>{text(note)}</li>" for note in notes)
    return f'<ul class="notes">{lines}</ul>' if lines else ""


def text(words: str) -> str:
    """Words as text or as the value of an attribute: on one line, inert."""
    return escape(one_line(words), quote=True)


def _bodies(table: Table, shown: Sequence[int], drawn: Drawn, sources: Sources) -> Iterator[list[str]]:
    """The rows, in groups that agree in the section columns."""
    behind = Behind(table, drawn, sources)
    keys = [at for at, column in enumerate(table.columns) if column.name in table.section]
    for _, rows in groupby(table.rows, key=lambda row: [row[at].text for at in keys]):
        yield [_row(row, table.columns, shown, behind) for row in rows]


def _row(row: Sequence[Entry], columns: Sequence[Column], shown: Sequence[int], behind: Behind) -> str:
    scope, number = behind.row(row)
    cells = "".join(_cell(row[at], columns[at], first=at == shown[0]) for at in shown)
    label = text(f"Conditions and command of {row[shown[0]].text}")
    button = f'<td class="more"><button type="button" data-source="{number}" aria-label="{label}">⋯</button></td>'
    return f"<tr{data(scope)}>{cells}{button}</tr>"


def _cell(entry: Entry, column: Column, first: bool) -> str:
    """The first cell heads its row; statuses, verdicts and what is absent look like what they are."""
    words = text(entry.text)
    if column.name == "verdict" and entry.text in VERDICTS:
        words = verdict(entry.text)
    elif entry.text in STATUSES or entry.failed:
        words = f'<span class="status">{words}</span>'
    elif entry.text == ABSENT:
        words = f'<span class="absent">{words}</span>'
    return f'<th scope="row"{_side(column)}>{words}</th>' if first else f"<td{_side(column)}>{words}</td>"


def verdict(words: str) -> str:
    """A verdict as a label."""
    return f'<span class="verdict {VERDICTS[words]}">{text(words)}</span>'


def _side(column: Column) -> str:
    return ' class="n"' if column.justify == "right" else ""


def _head(column: Column) -> str:
    return "<br>".join(text(line) for line in column.header.split("\n")) or "&nbsp;"
