"""The repository's own report: README.md and reports/ are what the committed records give, to the byte."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from retbench.environment import ROOT
from retbench.errors import UsageError
from retbench.report import figures, repository
from retbench.report.repository import README, REPORTS, RESULTS, copy_kept, generated, kept, make
from tests.report.factory import sweep

TEXTS = {".md", ".csv", ".tex"}  # the same everywhere
DRAWINGS = {".svg", ".html"}  # as the matplotlib that drew them has it; other formats depend on more libraries
END = "<!-- end of generated -->\n"
HEADLINE, FIGURE = (f"<!-- generated: {name} -->\n" for name in ("figure1/headline", "figure6/figure6"))


@pytest.fixture(scope="module", autouse=True)
def no_pictures() -> Iterator[None]:
    """Figures are drawn as SVG alone: the other formats take most of the time, and nothing here looks at them."""
    save = figures._save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "_save", lambda *given: save(*given) if given[-1] == "svg" else given[1])
        yield


@pytest.fixture(scope="module")
def readme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A README.md with two parts, drawn from records beside it."""
    root = tmp_path_factory.mktemp("root")
    (root / RESULTS / "lab-2c").mkdir(parents=True)
    (root / RESULTS / "lab-2c" / "inference.jsonl").write_text("".join(f"{one.to_json()}\n" for one in sweep()))
    (root / README).write_text(f"Before.\n{HEADLINE}old\n{END}Between.\n{FIGURE}{END}After.\n")
    make(root)
    return root / README


def test_marked_parts_become_what_they_name_and_the_rest_stays(readme: Path) -> None:
    text = readme.read_text()

    assert text.startswith(f"Before.\n{HEADLINE}### RetNet against Transformers: small, batch 8")
    assert "| latency, last position |" in text
    assert "\n    retbench inference --systems retnet,transformer," in text
    assert "old" not in text
    image = "![Figure 6: memory, throughput and latency of decoding](reports/inference/figure6.svg)"
    assert text.endswith(f"{END}Between.\n{FIGURE}{image}\n{END}After.\n")
    assert (readme.parent / "reports" / "inference" / "figure6.svg").exists()


@pytest.mark.parametrize("table", ["table5", "table6"])
def test_every_system_of_the_committed_tables_is_below_the_n_grams_of_the_same_tokens(table: str) -> None:
    (drawn,) = (ROOT / REPORTS).glob(f"*/{table}.md")
    text = drawn.read_text()

    assert "all systems are below the unigram in domain" in text
    assert "all systems are below the 5-gram in domain" in text
    assert "NOT below" not in text


def test_reports_that_cannot_be_put_in_place_are_the_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(root: Path) -> None:
        (root / REPORTS).mkdir(parents=True)
        (root / README).write_text("new")

    def rename(path: Path, target: Path) -> Path:
        if path.name == target.name == REPORTS and target.parent == tmp_path:
            raise OSError("gone")
        return renamed(path, target)

    renamed = Path.rename
    (tmp_path / REPORTS).mkdir()
    (tmp_path / REPORTS / "report.md").write_text("earlier")
    monkeypatch.setattr(repository, "ROOT", tmp_path)
    monkeypatch.setattr(repository, "copy_kept", lambda *_: None)
    monkeypatch.setattr(repository, "make", made)
    monkeypatch.setattr(Path, "rename", rename)

    with pytest.raises(OSError, match="gone"):
        repository.main()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        README,
        REPORTS,
        f"{REPORTS}/report.md",
    ]


@pytest.mark.parametrize(
    ("exhibit", "name", "said"),
    [
        ("figure7", "figure7", "unknown exhibit 'figure7'; did you mean 'figure"),
        ("figure1", "headlines", "unknown table or figure 'headlines'; did you mean 'headline'"),
    ],
)
def test_a_part_that_nothing_draws_is_told_with_those_there_are(exhibit: str, name: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        generated(exhibit, name, sweep())
    assert str(caught.value).startswith(said)


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
