"""Tables of a report as HTML: rows that filters find, statuses in words, what stands behind each row one click away."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import get_args

from retbench.record import Status
from retbench.report.exhibit import Drawn
from retbench.report.numbers import ABSENT
from retbench.report.tables import Column, Entry, Table
from retbench.report.web.sources import Behind, Sources
from retbench.report.web.svg import data, inert

# Verdicts by how they look; words of other columns stay as they are.
VERDICTS = {
    "supported": "good", "agrees": "good", "not supported": "bad", "differs": "bad", "undecided": "open",
    "not run": "none",
}  # fmt: skip
NEVER_TRIED = {ABSENT, "skipped", "not run", "not measured"}
FAILED = {*get_args(Status)} - {"ok", "skipped"}
FEW_NOTES, FIRST, LAST = 8, 4, 3  # of more notes the middle ones fold away: failures, one by one
LONG = 40  # rows from which a table scrolls by itself, below its heads


def table_html(table: Table, drawn: Drawn, sources: Sources) -> str:
    """A table with its title and footnotes; without rows the footnotes alone."""
    notes, title = notes_html(table.footnotes), inert(table.title)
    if not table.rows:
        return f'<div class="table"><h3>{title}</h3>{notes}</div>'
    shown = table.shown("terminal", "page")
    columns = [table.columns[at] for at in shown]
    heads = "".join(f'<th scope="col"{_side(column)}>{_head(column)}</th>' for column in columns)
    bodies = "".join(f"<tbody>{''.join(rows)}</tbody>" for rows in _bodies(table, shown, drawn, sources))
    style = "scroll long" if len(table.rows) > LONG else "scroll"
    return (
        f'<div class="table"><h3>{title}</h3>'
        f'<div class="{style}" role="region" tabindex="0" aria-label="{title}"><table>'
        f"<thead><tr>{heads}</tr></thead>{bodies}</table></div>"
        f'<p class="nothing" hidden>No row passes the filters.</p>{notes}</div>'
    )


def notes_html(notes: Sequence[str]) -> str:
    """Footnotes; nothing where there are none."""
    lines = [f"<li>{inert(note)}</li>" for note in notes]
    if len(lines) > FEW_NOTES:
        more = lines[FIRST:-LAST]
        fold = f"<details><summary>{len(more)} more notes</summary><ul>{''.join(more)}</ul></details>"
        lines = [*lines[:FIRST], f'<li class="fold-notes">{fold}</li>', *lines[-LAST:]]
    return f'<ul class="notes">{"".join(lines)}</ul>' if lines else ""


def _bodies(table: Table, shown: Sequence[int], drawn: Drawn, sources: Sources) -> Iterator[list[str]]:
    """The rows, in groups that agree in the section columns."""
    behind = Behind(table, drawn, sources)
    keys = [at for at, column in enumerate(table.columns) if column.name in table.section]
    for _, rows in groupby(table.rows, key=lambda row: [row[at].text for at in keys]):
        yield [_row(row, table.columns, shown, behind) for row in rows]


def _row(row: Sequence[Entry], columns: Sequence[Column], shown: Sequence[int], behind: Behind) -> str:
    """The first cell heads its row and holds the button to what stands behind it."""
    scope, number = behind.row(row)
    first, *rest = ((row[at], columns[at]) for at in shown)
    label = inert(f"Command and conditions of {first[0].text}")
    button = f'<button type="button" data-source="{number}" aria-label="{label}">⋯</button>'
    cells = "".join(f"<td{_side(column)}>{_words(entry, column)}</td>" for entry, column in rest)
    return f'<tr{data(scope)}><th scope="row"><div><span>{_words(*first)}</span>{button}</div></th>{cells}</tr>'


def _words(entry: Entry, column: Column) -> str:
    """Statuses, verdicts and what is absent look like what they are."""
    if column.name == "verdict" and entry.text in VERDICTS:
        return verdict(entry.text)
    if entry.text in NEVER_TRIED:
        return f'<span class="absent">{inert(entry.text)}</span>'
    if entry.failed or entry.text in FAILED:
        return f'<span class="status">{inert(entry.text)}</span>'
    return inert(entry.text)


def verdict(words: str) -> str:
    """A verdict as a label."""
    return f'<span class="verdict {VERDICTS[words]}">{inert(words)}</span>'


def _side(column: Column) -> str:
    return ' class="n"' if column.justify == "right" else ""


def _head(column: Column) -> str:
    return "<br>".join(inert(line) for line in column.lines) or "&nbsp;"
