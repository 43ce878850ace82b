"""A neutral table and its renderings: terminal, Markdown, CSV, JSON."""

import csv
import json
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType

SOFT_HYPHEN = "\N{SOFT HYPHEN}"
REASON_LENGTH = 160  # of a reason below a table; csv and json hold all of it
Format = Literal["table", "md", "csv", "json"]
Detail = Literal["terminal", "page", "data"]
Justify = Literal["left", "right"]
Value = str | int | float | bool | None

_MARKUP = re.compile(r"([\\|`*_<>\[\]])")
PLAIN_WIDTH = 80  # of the table format where there is no terminal to ask
UNBOUNDED = 10_000  # columns of the canvas: what is wider than the terminal shall run over, not be squeezed or cut


@dataclass(frozen=True)
class Column:
    """A column: ``name`` is its key in csv and json, ``unit`` that of its raw values, ``header`` is for people.

    Line breaks in ``header`` serve narrow columns and count as blanks elsewhere; after a soft hyphen one breaks a word.
    ``detail`` is the least detailed rendering that shows it: terminal, then page (Markdown), then data (csv, json).
    """

    name: str
    header: str
    unit: str = ""
    justify: Justify = "right"
    detail: Detail = "terminal"

    @property
    def lines(self) -> list[str]:
        """The header as narrow columns show it."""
        return self.header.replace(SOFT_HYPHEN, "-").split("\n")

    @property
    def line(self) -> str:
        """The header where there is room."""
        return one_line(self.header.replace(f"{SOFT_HYPHEN}\n", "").replace("-\n", "-"))


class Entry(NamedTuple):
    """A raw value for csv and json, the words that people read, and whether they tell of a failure."""

    value: Value
    text: str
    failed: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of entries under columns. ``section`` names the columns that become headings in a terminal."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    footnotes: tuple[str, ...] = ()
    section: tuple[str, ...] = ()

    def shown(self, *details: Detail) -> list[int]:
        """Positions of the columns with one of these details."""
        return [at for at, column in enumerate(self.columns) if column.detail in details]


def shortened(reason: str) -> str:
    """A reason in one line that fits below a table."""
    line = " ".join(reason.split())
    return line if len(line) <= REASON_LENGTH else f"{line[: REASON_LENGTH - 3]}..."


def render(tables: Table | Sequence[Table], fmt: Format, file: TextIO, width: int | None = None) -> None:
    """Write tables to ``file``; csv holds the first one only. ``width`` counts for the terminal format alone."""
    chosen = [tables] if isinstance(tables, Table) else list(tables)
    if fmt == "table":
        _print(chosen, file, width)
        return
    text = {"md": to_markdown, "csv": lambda some: to_csv(some[0]), "json": to_json}[fmt](chosen)
    file.write(text)


def to_json(tables: Sequence[Table]) -> str:
    """One object: table name -> title, columns, rows (objects of raw values, null where absent), footnotes."""
    data = {
        table.name: {
            "title": table.title,
            "columns": [{"name": column.name, "unit": column.unit} for column in table.columns],
            "rows": [
                {column.name: _raw(entry.value) for column, entry in zip(table.columns, row, strict=True)}
                for row in table.rows
            ],
            "footnotes": list(table.footnotes),
        }
        for table in tables
    }
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


def to_csv(table: Table) -> str:
    """Raw values under the columns' names, empty where absent. Words that a spreadsheet would run are quoted."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([column.name for column in table.columns])
    for row in table.rows:
        writer.writerow([_inert(_raw(entry.value)) for entry in row])
    return out.getvalue()


def to_markdown(tables: Sequence[Table]) -> str:
    """Full-width tables in words; a footnote that several tables share stands under the first."""
    return "\n".join(_markdown(table) for table in without_repeats(tables))


def _markdown(table: Table) -> str:
    shown = table.shown("terminal", "page")
    heads = [table.columns[at].line for at in shown]
    rule = ["---:" if table.columns[at].justify == "right" else ":---" for at in shown]
    body = [[markdown_text(row[at].text) for at in shown] for row in table.rows]
    lines = [f"### {markdown_text(table.title)}", ""]
    if body:
        lines += [f"| {' | '.join(cells)} |" for cells in ([markdown_text(head) for head in heads], rule, *body)] + [""]
    return "\n".join([*lines, *(f"- {markdown_text(note)}" for note in table.footnotes), ""])


def to_rich(table: Table, width: int) -> "RenderableType":
    """The table for a terminal of ``width`` columns: aligned sections under headings, footnotes wrapped below."""
    from rich.console import Group
    from rich.text import Text

    shown = _fitting(table, width)
    parts: list[RenderableType] = [Text(one_line(table.title), style="bold")]
    if table.rows:
        widths = _widths(table, shown, width)
        parts.append(_header(table, shown, widths))
        for heading, body in _sections(table):
            parts += [Text(""), Text(heading, style="cyan")] if heading else []
            parts.append(_grid(body, shown, widths, [table.columns[at].justify for at in shown]))
        parts.append(Text(""))
    return Group(*parts, *(Text(line, style="dim") for note in table.footnotes for line in _wrapped(note, width)))


def _header(table: Table, shown: list[int], widths: list[int]) -> "RenderableType":
    """The columns' headers, their last lines level."""
    heads = [table.columns[at].lines for at in shown]
    depth = max(len(lines) for lines in heads)
    lines = [[""] * (depth - len(lines)) + lines for lines in heads]
    rows = [tuple(Entry(None, column[level]) for column in lines) for level in range(depth)]
    return _grid(rows, list(range(len(shown))), widths, [table.columns[at].justify for at in shown], style="bold")


def _grid(
    body: list[tuple[Entry, ...]], shown: list[int], widths: list[int], justify: list[Justify], style: str = ""
) -> "RenderableType":
    """Rows without borders; all sections share ``widths``, so their columns line up."""
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid.grid(padding=(0, 1, 0, 0))
    for cells, side in zip(widths, justify, strict=True):
        grid.add_column(justify=side, width=cells, vertical="bottom", style=style)
    for row in body:
        texts = [(_folded(row[at].text, cells), row[at].failed) for at, cells in zip(shown, widths, strict=True)]
        grid.add_row(*(Text("\n".join(lines), style="red" if failed else "") for lines, failed in texts))
    return grid


def _sections(table: Table) -> list[tuple[str, list[tuple[Entry, ...]]]]:
    """Neighbouring rows that agree in the section columns, under the words of that agreement."""
    keys = [at for at, column in enumerate(table.columns) if column.name in table.section]
    found: list[tuple[str, list[tuple[Entry, ...]]]] = []
    for row in table.rows:
        heading = one_line(", ".join(f"{table.columns[at].line} {row[at].text}" for at in keys))
        if not found or found[-1][0] != heading:
            found.append((heading, []))
        found[-1][1].append(row)
    return found


def _fitting(table: Table, width: int) -> list[int]:
    """The columns of the terminal, and those of a page as far as the width holds them, in the table's order."""
    chosen = [at for at in table.shown("terminal") if table.columns[at].name not in table.section]
    for at in table.shown("page"):
        more = sorted([*chosen, at])
        chosen = more if _total(_natural_widths(table, more)) <= width else chosen
    return chosen


def _natural_widths(table: Table, shown: list[int]) -> list[int]:
    words = [[*table.columns[at].lines, *(row[at].text for row in table.rows)] for at in shown]
    return [max(len(one_line(word)) for word in column) for column in words]


def _widths(table: Table, shown: list[int], width: int) -> list[int]:
    """Natural widths, where the first column gives way, down to its longest part between hyphens."""
    natural = _natural_widths(table, shown)
    excess = _total(natural) - width
    names = [table.columns[shown[0]].header, *(row[shown[0]].text for row in table.rows)]
    parts = [len(part) for name in names for part in re.findall(r"[^-\s]+-?", name)]
    return [max(natural[0] - max(excess, 0), min(natural[0], max(parts))), *natural[1:]]


def _total(widths: list[int]) -> int:
    return sum(widths) + len(widths) - 1


def _folded(text: str, width: int) -> list[str]:
    return textwrap.wrap(one_line(text), max(width, 1), break_on_hyphens=True) or [""]


def _wrapped(note: str, width: int) -> list[str]:
    return textwrap.wrap(one_line(note), width, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)


def _print(tables: list[Table], file: TextIO, width: int | None) -> None:
    """The terminal rendering: colour only on a terminal; elsewhere plain text without trailing blanks."""
    from rich.console import Console

    terminal = file.isatty()
    canvas = StringIO()
    asked = width or (Console(file=file).width if terminal else PLAIN_WIDTH)
    colours: Literal["auto"] | None = "auto" if terminal else None
    console = Console(file=canvas, width=UNBOUNDED, force_terminal=terminal, color_system=colours, highlight=False)
    for place, table in enumerate(without_repeats(tables)):
        console.print(*([""] if place else []), to_rich(table, asked), sep="\n")
    lines = [line.rstrip() for line in canvas.getvalue().splitlines()]
    encoding = getattr(file, "encoding", None) or "utf-8"
    # A terminal of another encoding shows a question mark where it lacks a sign, rather than no table at all.
    file.write("\n".join([*lines, ""]).encode(encoding, "replace").decode(encoding))


def without_repeats(tables: Sequence[Table]) -> list[Table]:
    """The tables, each footnote only where it comes first."""
    said: set[str] = set()
    kept = []
    for table in tables:
        kept.append(replace(table, footnotes=tuple(note for note in table.footnotes if note not in said)))
        said.update(table.footnotes)
    return kept


def one_line(text: str) -> str:
    """Without line breaks and without the control characters that would steer a terminal."""
    if text.isprintable() and "  " not in text:
        return text.strip()
    return "".join(sign if sign.isprintable() else " " for sign in " ".join(text.split()))


def markdown_text(text: str) -> str:
    """Safe inside a Markdown table: one line, no cell borders, no markup of its own."""
    return _MARKUP.sub(r"\\\1", one_line(text))


def _inert(value: Value) -> Value:
    """Words on one line, with an apostrophe in front of what begins like a formula; numbers stay numbers.

    Of twelve digits, so that a report is the same on every machine: what is behind them differs between processors.
    """
    if not isinstance(value, str):
        return float(f"{value:.12g}") if isinstance(value, float) else value
    line = one_line(value)
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line


def _raw(value: Value) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
