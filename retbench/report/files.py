"""The files of a report: tables as Markdown, CSV and LaTeX, figures, report.md and index.html, put in place at once."""

import os
import shutil
import sys
import tempfile
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from retbench.locks import lock, try_lock
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
    "folder of an experiment holds its exhibits one by one: Markdown, tables as CSV and LaTeX (booktabs, graphicx, T1 "
    f"fonts), figures as {', '.join(suffix.upper() for suffix in SUFFIXES)}."
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

    It begins with copies of what ``folder`` holds, but for the names of ``anew``. It lies in a folder of its own, which
    nobody else uses. What killed ones left beside is set right first: ``folder`` put back, where it was being replaced.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    earlier = folder.with_name(f".{folder.name}-earlier")
    with ExitStack() as ends:
        with _locked(folder.parent):
            if earlier.exists() and not folder.exists():
                earlier.rename(folder)
            new = ends.enter_context(_scratch(folder)) / folder.name
            new.mkdir()
            for source in sorted(folder.iterdir()) if folder.exists() else ():
                if source.name not in anew:
                    (shutil.copytree if source.is_dir() else shutil.copy2)(source, new / source.name)
        yield new
        with _locked(folder.parent):
            _swap(new, folder, earlier)


def _swap(new: Path, folder: Path, earlier: Path) -> None:
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


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder``, locked as long as this process lives; unlocked ones, of killed processes, go."""
    prefix = f".{folder.name}-new-"
    for left in folder.parent.glob(f"{prefix}*"):
        if _abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=prefix, ignore_cleanup_errors=True) as name,
        _locked(Path(name)),
    ):
        yield Path(name)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder for this process alone, until it ends in whatever way; where there are no such locks, for all."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a folder on a network may have none
            lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _abandoned(folder: Path) -> bool:
    """Whether whoever made the folder has ended: nobody has it locked."""
    if sys.platform == "win32":
        return False
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # it has just gone
        return False
    try:
        return try_lock(descriptor)
    except OSError:  # a folder on a network may have none
        return False
    finally:
        os.close(descriptor)


def _state(one: Drawn) -> str:
    return " - not run" if one.missing else ""


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
