"""LaTeX: every text is inert, and a document of tables compiles where there is a LaTeX."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from retbench.report.inference_tables import inference_table
from retbench.report.latex import latex_text, to_latex
from retbench.report.paper import inference_paper
from retbench.report.tables import Column, Entry, Table
from tests.report.factory import sweep

HOSTILE = r"\input{x} 50% of $a_1 & {#2}~^ <b> |`'" + '" [a] * -- × ± ≥ é 模型 ' + "a\nb\x1b"
DOCUMENT = (
    r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs,graphicx}\begin{document}%s\end{document}"
)


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
    assert "a note: " in text.split(r"\end{tabular}")[-1]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex here")
@pytest.mark.slow
def test_tables_compile(tmp_path: Path) -> None:
    tables = [table(HOSTILE, "[x]", "plain"), inference_table(sweep(), inference_paper())]
    (tmp_path / "report.tex").write_text(DOCUMENT % "\n".join(map(to_latex, tables)), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)

    assert done.returncode == 0, done.stdout[-2000:]
    wide = re.findall(r"Overfull .hbox \((.*)pt too wide", done.stdout)
    assert not [points for points in wide if float(points) > 1], "a table is wider than the page"
    assert (tmp_path / "report.pdf").exists()
