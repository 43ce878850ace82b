"""LaTeX: every text is inert, and a document of tables compiles where there is a LaTeX."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from retbench.environment import ROOT
from retbench.report.inference_tables import inference_table
from retbench.report.latex import PAGE_ROWS, latex_text, to_latex
from retbench.report.paper import inference_paper
from retbench.report.repository import REPORTS, kept
from retbench.report.tables import Column, Entry, Table
from tests.report.factory import sweep

HOSTILE = r"\input{x} 50% of $a_1 & {#2}~^ <b> |`'" + '" [a] * -- × ± ≥ é 模型 ' + "a\nb\x1b"
DOCUMENT = (
    r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs,graphicx}\begin{document}%s\end{document}"
)

needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")


def table(*texts: str) -> Table:
    columns = (Column("name", "a name", justify="left"), Column("number", "two\nlines_%", "ms"))
    rows = tuple((Entry(text, text), Entry(1.5, "1.5")) for text in texts)
    return Table("odd", "A title & more", columns, rows, (f"a note: {HOSTILE}",))


def test_every_special_sign_is_escaped_on_one_line() -> None:
    text = latex_text(HOSTILE)

    assert "\n" not in text
    assert not re.search(r"(?<!\\)[%&#_]", text.replace(r"\textasciitilde{}", ""))
    assert not re.search(r"\\(?!text|char|times|pm|geq|[{}$&#%_])", text)
    assert text.startswith(r"\textbackslash{}input\{x\} 50\% of \$a\_1")


def test_hyphens_stay_apart_and_unknown_letters_become_questions() -> None:
    assert latex_text("--seq-len") == "-{}-seq-len"
    assert latex_text("模型 naïve ǆ") == "?? naïve d" + "z"
    assert latex_text("Đ Ą ħ Ŧ ŀ") == "Đ Ą ? ? l"


def test_a_row_cannot_be_an_option_of_the_line_break_before_it() -> None:
    rows = to_latex(table("[1em]", "*")).split(r"\midrule")[1]

    assert "\n{[}1em{]} & 1.5 \\\\\n{*} & 1.5 \\\\" in rows


def test_a_table_has_booktabs_rules_a_caption_and_its_footnotes() -> None:
    text = to_latex(table("x"))

    rules = [line for line in text.splitlines() if line.endswith("rule")]
    assert rules == [r"\toprule", r"\midrule", r"\bottomrule"]
    assert r"\caption{A title \& more}" in text
    assert r"\begin{tabular}[b]{@{}c@{}}two \\ lines\_\%\end{tabular}" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}")


def test_footnotes_are_text_that_can_go_on_over_pages_below_the_table() -> None:
    text = to_latex(table("x"))

    assert "a note: " in text.split(r"\end{table}")[-1]
    assert r"\textbf{A title \& more}\par" in text.split(r"\end{table}")[-1]


def test_a_table_that_is_longer_than_a_page_goes_on_in_another_one() -> None:
    texts = [f"row {at}" for at in range(2 * PAGE_ROWS + 1)]
    text = to_latex(table(*texts))

    assert re.findall("row [0-9]+", text) == texts
    assert text.count(r"\begin{table}") == text.count(r"\end{tabular}}") == text.count(r"\toprule") == 3
    assert text.count(r"\caption{A title \& more (continued)}") == 2
    assert text.count(r"\clearpage") == 2


def compiled(folder: Path, body: str) -> None:
    """The document compiles, and nothing of it is wider or longer than the page."""
    (folder / "report.tex").write_text(DOCUMENT % body, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)

    assert done.returncode == 0, done.stdout[-2000:]
    over = re.findall(r"Overfull .[hv]box \((.*)pt too", done.stdout)
    assert not [points for points in over if float(points) > 1], "a table or a note is wider than the page"
    assert "Float too large" not in done.stdout
    assert (folder / "report.pdf").exists()


@needs_latex
@pytest.mark.slow
def test_tables_compile(tmp_path: Path) -> None:
    letters = "".join(map(chr, range(ord("À"), ord("ž") + 1)))
    long = table(*(f"row {at} of a long table" for at in range(1000)))
    tables = [table(HOSTILE, "[x]", "plain", letters), inference_table(sweep(), inference_paper()), long]

    compiled(tmp_path, "\n".join(map(to_latex, tables)))


@needs_latex
@pytest.mark.slow
def test_the_committed_tables_compile(tmp_path: Path) -> None:
    names = [name for name in kept(ROOT, REPORTS) if name.endswith(".tex")] if (ROOT / ".git").exists() else []
    if not names:
        pytest.skip("no report is committed here")

    compiled(tmp_path, "\n".join((ROOT / name).read_text(encoding="utf-8") for name in names))
