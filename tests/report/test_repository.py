"""The repository's own report: README.md and reports/ are what the committed records give, to the byte."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from retbench.environment import ROOT
from retbench.errors import UsageError
from retbench.report.draw import draw, exhibits
from retbench.report.exhibit import Drawn
from retbench.report.repository import README, REPORTS, RESULTS, copy_kept, kept, make, rewritten
from tests.report.factory import sweep

TEXTS = {".md", ".csv", ".tex"}  # the same everywhere
DRAWINGS = {".svg", ".html"}  # as the matplotlib that drew them has it; other formats depend on more libraries
END = "<!-- end of generated -->\n"
PARTS = f"Before.\n<!-- generated: {{}} -->\nold\n{END}Between.\n<!-- generated: {{}} -->\n{END}"


@pytest.fixture(scope="module")
def drawn() -> list[Drawn]:
    return draw(exhibits(), sweep())


def test_marked_parts_become_what_they_name_and_the_rest_stays(drawn: list[Drawn]) -> None:
    text = rewritten(PARTS.format("table headline", "figure figure6"), drawn)

    assert text.startswith(
        "Before.\n<!-- generated: table headline -->\n### RetNet against Transformers: small, batch 8"
    )
    assert "| latency, last position |" in text
    assert "\n    retbench inference --systems retnet,transformer," in text
    assert "old" not in text
    figure = "![Figure 6: memory, throughput and latency of decoding](reports/inference/figure6.svg)"
    assert text.endswith(f"{END}Between.\n<!-- generated: figure figure6 -->\n{figure}\n{END}")


def test_a_second_time_changes_nothing(drawn: list[Drawn]) -> None:
    once = rewritten(PARTS.format("table headline", "figure figure6"), drawn)

    assert rewritten(once, drawn) == once


def test_a_part_that_nothing_draws_is_told_with_those_there_are(drawn: list[Drawn]) -> None:
    with pytest.raises(UsageError, match="unknown figure 'figure7'; did you mean 'figure6'"):
        rewritten(PARTS.format("table headline", "figure figure7"), drawn)


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_what_git_does_not_keep_takes_no_part(tmp_path: Path) -> None:
    for name in ("results/a/inference.jsonl", "results/b/inference.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)
    git(tmp_path, "init", "--quiet")
    with pytest.raises(UsageError, match="git keeps no records"):
        copy_kept(tmp_path, tmp_path / "copy", RESULTS)
    git(tmp_path, "add", "results/a")

    copy_kept(tmp_path, tmp_path / "copy", RESULTS)

    assert [path.name for path in (tmp_path / "copy" / RESULTS).iterdir()] == ["a"]


def version(svg: Path) -> str:
    """Of the matplotlib that drew it."""
    found = re.search(r"Matplotlib v([\w.]+)", svg.read_text(encoding="utf-8"))
    return found[1] if found else ""


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git keeps, or is about to: a report of this machine alone, not committed, takes no part."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    names = kept(ROOT, RESULTS, REPORTS, README)
    if not any(name.startswith(RESULTS) for name in names):
        pytest.skip("no records are committed")
    folder = tmp_path_factory.mktemp("committed")
    git(ROOT, "checkout-index", f"--prefix={folder}/", "--", *names)
    return folder


def test_the_committed_report_and_readme_are_those_of_the_committed_records(committed: Path, tmp_path: Path) -> None:
    shutil.copytree(committed / RESULTS, tmp_path / RESULTS)
    shutil.copyfile(committed / README, tmp_path / README)

    make(tmp_path)

    same = len({version(root / REPORTS / "inference" / "figure6.svg") for root in (committed, tmp_path)}) == 1
    suffixes = TEXTS | (DRAWINGS if same else set())
    theirs, ours = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.suffix in suffixes}
        for root in (committed, tmp_path)
    )
    assert theirs.keys() == ours.keys()
    assert [str(path) for path in ours if theirs[path] != ours[path]] == []  # if not: make reports
