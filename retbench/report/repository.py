"""The repository's own report: reports/ and the generated parts of README.md, drawn from the records that git keeps.

Run by ``make reports``. A generated part stands between ``<!-- generated: EXHIBIT/NAME -->`` (a table or figure of the
exhibit) and ``<!-- end of generated -->``.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from urllib.parse import quote

from retbench import report_command
from retbench.environment import ROOT
from retbench.errors import UsageError
from retbench.record import Record
from retbench.registry import choose
from retbench.report.draw import draw, exhibits, read_records
from retbench.report.files import replaced
from retbench.report.tables import markdown_text, to_markdown

RESULTS, REPORTS, README = "results", "reports", "README.md"
PART = re.compile(r"(<!-- generated: (\S+)/(\S+) -->\n).*?(<!-- end of generated -->)", re.DOTALL)


def main() -> None:
    """Draws both anew; records and reports of this machine alone, which git does not keep, take no part."""
    try:
        with replaced(ROOT / REPORTS, ()) as new:
            root = new.with_name("root")
            copy_kept(ROOT, root, RESULTS, README)
            with redirect_stdout(sys.stderr):  # it tells of the scratch folder
                make(root)
            shutil.rmtree(new)
            (root / REPORTS).rename(new)
            (root / README).replace(ROOT / README)
    except UsageError as error:
        sys.exit(f"retbench: {error}")
    print(f"{ROOT / REPORTS} and {ROOT / README}")


def make(root: Path) -> None:
    """The report and README.md below ``root``, where the records lie in results/."""
    report_command.command(out=root)
    readme, records = root / README, read_records(root / RESULTS).records
    text = readme.read_text(encoding="utf-8")
    readme.write_text(
        PART.sub(lambda part: f"{part[1]}{generated(part[2], part[3], records)}\n{part[4]}", text), encoding="utf-8"
    )


def generated(exhibit: str, name: str, records: Sequence[Record]) -> str:
    """Markdown of a table with the command that makes its records, or of a figure of the report.

    Raises UsageError for an exhibit, a table or a figure that is not there.
    """
    known = {found.name: found for found in exhibits()}
    (one,) = draw([known[choose(exhibit, known, "exhibit")[0]]], records)
    tables = {table.name: table for table in one.tables}
    choose(name, [*tables, *one.figures], "table or figure")
    if name not in tables:
        return f"![{markdown_text(one.exhibit.title)}]({REPORTS}/{one.exhibit.experiment}/{quote(name)}.svg)"
    commands = "".join(f"    {line}\n" for line in one.command.splitlines())
    return f"{to_markdown([tables[name]])}\nMade by:\n\n{commands}"


def kept(root: Path, *paths: str) -> list[str]:
    """The files that git keeps of these paths."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--", *paths]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")[:-1]


def copy_kept(root: Path, folder: Path, *paths: str) -> None:
    """Those files as they are now; raises UsageError where there is no record among them."""
    names = kept(root, *paths)
    if not any(name.startswith(f"{RESULTS}/") for name in names):
        raise UsageError(f"git keeps no records: git add --force {RESULTS}/MACHINE, then again")
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, folder / name)


if __name__ == "__main__":
    main()
