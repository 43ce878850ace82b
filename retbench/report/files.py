"""The files of a report: Markdown, CSV and LaTeX of every table, the figures, and report.md, put in place at once."""

import shutil
import tempfile
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from retbench.report.exhibit import Drawn
from retbench.report.figures import SUFFIXES, save
from retbench.report.latex import to_latex
from retbench.report.tables import Table, markdown_text, to_csv, to_markdown

REPORT = "report.md"
INTRODUCTION = (
    "Every number was measured by the command below its exhibit, unless it is called the paper's or a model's. The "
    "folder of an experiment holds its exhibits one by one: Markdown, tables as CSV and LaTeX (booktabs), figures as "
    f"{', '.join(suffix.upper() for suffix in SUFFIXES)}."
)


def write(drawn: Sequence[Drawn], folder: Path, notes: Sequence[str] = ()) -> None:
    """All files of the report into an empty folder; OSError where it cannot be written."""
    for one in drawn:
        own = folder / one.exhibit.experiment
        own.mkdir(exist_ok=True)
        _write(own / f"{one.exhibit.name}.md", f"# {markdown_text(one.exhibit.title)}\n\n{exhibit_markdown(one, '')}")
        for table in one.tables:
            _write(own / f"{table_stem(one, table)}.csv", to_csv(table))
            _write(own / f"{table_stem(one, table)}.tex", to_latex(table))
        for stem, figure in one.figures.items():
            save(figure, own, stem)
    _write(folder / REPORT, report_markdown(drawn, notes))


def report_markdown(drawn: Sequence[Drawn], notes: Sequence[str]) -> str:
    """All exhibits below each other under a list of them."""
    entries = [f"- [{markdown_text(one.exhibit.title)}](#{one.exhibit.name}){_state(one)}" for one in drawn]
    parts = ["# Results\n", f"{INTRODUCTION}\n", "\n".join(entries) + "\n"]
    parts += ["\n".join(f"- {markdown_text(note)}" for note in notes) + "\n"] * bool(notes)
    for one in drawn:
        heading = f'<a id="{one.exhibit.name}"></a>\n\n## {markdown_text(one.exhibit.title)}\n'
        parts += [heading, exhibit_markdown(one, f"{one.exhibit.experiment}/")]
    return "\n".join(parts)


def exhibit_markdown(one: Drawn, folder: str) -> str:
    """Figures, tables with their conditions, and the command; ``folder`` is where the figures lie."""
    if one.missing:
        return f"{markdown_text(one.missing)}\n"
    parts = [f"![{markdown_text(one.exhibit.title)}]({folder}{quote(stem)}.svg)\n" for stem in one.figures]
    parts += [to_markdown(one.tables)] * bool(one.tables)
    parts += ["\n".join(f"- {markdown_text(note)}" for note in one.notes) + "\n"] * bool(one.notes)
    return "\n".join([*parts, "Made by:\n", *(f"    {line}" for line in one.command.splitlines()), ""])


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
