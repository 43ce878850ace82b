"""The repository's own report: reports/ and the generated parts of README.md, drawn from the records that git keeps.

Run by ``make reports``. A generated part stands between ``<!-- generated: table NAME -->``, or ``figure``, and
``<!-- end of generated -->``.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from retbench import report_command
from retbench.environment import ROOT
from retbench.errors import UsageError
from retbench.registry import choose
from retbench.report.draw import draw, exhibits, read_records
from retbench.report.exhibit import Drawn
from retbench.report.tables import markdown_text, to_markdown

RESULTS, REPORTS, README = "results", "reports", "README.md"
PART = re.compile(r"(<!-- generated: (table|figure) (\S+) -->\n).*?(<!-- end of generated -->)", re.DOTALL)


def main() -> None:
    """Draws both anew; records and reports of this machine alone, which git does not keep, take no part."""
    try:
        with TemporaryDirectory(dir=ROOT, prefix=".reports-") as scratch:
            new = Path(scratch)
            copy_kept(ROOT, new, RESULTS, README)
            make(new)
            shutil.rmtree(ROOT / REPORTS, ignore_errors=True)
            (new / REPORTS).rename(ROOT / REPORTS)
            (new / README).replace(ROOT / README)
    except UsageError as error:
        sys.exit(f"retbench: {error}")


def make(root: Path) -> None:
    """The report and README.md below ``root``, where the records lie in results/."""
    report_command.command(out=root)
    readme = root / README
    drawn = draw(exhibits(), read_records(root / RESULTS).records)
    readme.write_text(rewritten(readme.read_text(encoding="utf-8"), drawn), encoding="utf-8")


def rewritten(text: str, drawn: Sequence[Drawn]) -> str:
    """The text with every generated part as the exhibits have it now; raises UsageError for one that is not there."""
    parts = {"table": _tables(drawn), "figure": _figures(drawn)}

    def part(match: re.Match[str]) -> str:
        start, kind, name, end = match.groups()
        return f"{start}{parts[kind][choose(name, parts[kind], kind)[0]]}\n{end}"

    return PART.sub(part, text)


def kept(root: Path, *paths: str) -> list[str]:
    """The files that git keeps of these paths."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--", *paths]
    return [
        name for name in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0") if name
    ]


def copy_kept(root: Path, folder: Path, *paths: str) -> None:
    """Those files as they are now; raises UsageError where there is no record among them."""
    names = kept(root, *paths)
    if not any(name.startswith(f"{RESULTS}/") for name in names):
        raise UsageError(f"git keeps no records: git add --force {RESULTS}/MACHINE, then again")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, folder / name)


def _tables(drawn: Sequence[Drawn]) -> dict[str, str]:
    """Markdown by the name of a table, with the command that makes its records."""
    return {
        table.name: f"{to_markdown([table])}\nMade by:\n\n"
        + "".join(f"    {line}\n" for line in one.command.splitlines())
        for one in drawn
        for table in one.tables
    }


def _figures(drawn: Sequence[Drawn]) -> dict[str, str]:
    """Markdown by the name of a figure."""
    return {
        stem: f"![{markdown_text(one.exhibit.title)}]({REPORTS}/{one.exhibit.experiment}/{quote(stem)}.svg)"
        for one in drawn
        for stem in one.figures
    }


if __name__ == "__main__":
    main()
