"""The files of a report: tables as Markdown, CSV and LaTeX, figures, report.md and index.html, put in place at once."""

import shutil
import tempfile
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from retbench.report.beside import beside
from retbench.report.exhibit import Drawn
from retbench.report.figures import SUFFIXES, save
from retbench.report.latex import to_latex
from retbench.report.page import page
from retbench.report.tables import Table, markdown_text, to_csv, to_markdown

MOST_ROWS = 1000  # of a table that people read; a browser would take long over more

REPORT = "report.md"
PAGE = "index.html"
INTRODUCTION = (
    "Every number was measured by the command below its exhibit, unless it is called the paper's or a model's. The "
    "folder of an experiment holds its exhibits one by one: Markdown, tables as CSV and LaTeX (booktabs, graphicx), "
    f"figures as {', '.join(suffix.upper() for suffix in SUFFIXES)}."
)


def write(drawn: Sequence[Drawn], folder: Path, notes: Sequence[str] = ()) -> None:
    """All files of the report into an empty folder; OSError where it cannot be written."""
    with beside(lambda: _save_figures(drawn, folder)):  # which takes as long as all the rest
        _write_text(drawn, folder, notes)


def _save_figures(drawn: Sequence[Drawn], folder: Path) -> None:
    for one in drawn:
        for stem, figure in one.figures.items():
            save(figure, folder / one.exhibit.experiment, stem)


def _write_text(drawn: Sequence[Drawn], folder: Path, notes: Sequence[str]) -> None:
    """Tables, report and page."""
    read = [replace(one, tables=tuple(map(readable, one.tables))) for one in drawn]
    bodies = [_body(one) for one in read]
    for one, body in zip(drawn, bodies, strict=True):
        own = folder / one.exhibit.experiment
        own.mkdir(exist_ok=True)
        _write(own / f"{one.exhibit.name}.md", f"# {markdown_text(one.exhibit.title)}\n\n{_images(one, '')}{body}")
        for table in one.tables:
            _write(own / f"{table_stem(one, table)}.csv", to_csv(table))
            _write(own / f"{table_stem(one, table)}.tex", to_latex(readable(table)))
    _write(folder / REPORT, _report(read, bodies, notes))
    _write(folder / PAGE, page(read, notes))


def readable(table: Table) -> Table:
    """The table as far as people read: where it goes on, it says so."""
    if len(table.rows) <= MOST_ROWS:
        return table
    note = f"the first {MOST_ROWS:,} of {len(table.rows):,} rows; the CSV holds all of them"
    return replace(table, rows=table.rows[:MOST_ROWS], footnotes=(note, *table.footnotes))


def _report(drawn: Sequence[Drawn], bodies: Sequence[str], notes: Sequence[str]) -> str:
    """All exhibits below each other under a list of them."""
    entries = [f"- [{markdown_text(one.exhibit.title)}](#{one.exhibit.name}){_state(one)}" for one in drawn]
    parts = ["# Results\n", f"{INTRODUCTION}\n", "\n".join(entries) + "\n", *_list(notes)]
    for one, body in zip(drawn, bodies, strict=True):
        heading = f'<a id="{one.exhibit.name}"></a>\n\n## {markdown_text(one.exhibit.title)}\n'
        parts += [heading, _images(one, f"{one.exhibit.experiment}/") + body]
    return "\n".join(parts)


def _images(one: Drawn, folder: str) -> str:
    """Its figures, which lie in a folder."""
    title = markdown_text(one.exhibit.title)
    return "".join(f"![{title}]({folder}{quote(stem)}.svg)\n\n" for stem in one.figures)


def _body(one: Drawn) -> str:
    """Tables with their conditions, notes and the command, or why there is nothing."""
    if one.missing:
        return f"{markdown_text(one.missing)}\n"
    tables = [to_markdown(one.tables)] * bool(one.tables)
    command = ["Made by:\n", *(f"    {line}" for line in one.command.splitlines()), ""]
    return "\n".join([*tables, *_list(one.notes), *command])


def _list(notes: Sequence[str]) -> list[str]:
    return ["\n".join(f"- {markdown_text(note)}" for note in notes) + "\n"] * bool(notes)


def table_stem(one: Drawn, table: Table) -> str:
    """The name of a table's files: they stand beside those of other exhibits."""
    return table.name if table.name == one.exhibit.name else f"{one.exhibit.name}-{table.name}"


@contextmanager
def replaced(folder: Path, anew: Container[str]) -> Iterator[Path]:
    """A new folder that takes the place of ``folder`` when the block ends well; else that stays as it was.

    It begins with copies of what ``folder`` holds, but for the names of ``anew``. Whoever was killed between the two
    renames left the earlier folder beside: it is put back first.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    earlier = folder.with_name(f".{folder.name}-earlier")
    if earlier.exists() and not folder.exists():
        earlier.rename(folder)
    with tempfile.TemporaryDirectory(
        dir=folder.parent, prefix=f".{folder.name}-", ignore_cleanup_errors=True
    ) as scratch:
        new = Path(scratch) / folder.name
        new.mkdir()
        for source in sorted(folder.iterdir()) if folder.exists() else ():
            if source.name not in anew:
                (shutil.copytree if source.is_dir() else shutil.copy2)(source, new / source.name)
        yield new
        shutil.rmtree(earlier, ignore_errors=True)
        if folder.exists():
            folder.rename(earlier)
        try:
            new.rename(folder)
        except OSError:
            if earlier.exists():
                earlier.rename(folder)
            raise
        shutil.rmtree(earlier, ignore_errors=True)


def _state(one: Drawn) -> str:
    return " - not run" if one.missing else ""


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
