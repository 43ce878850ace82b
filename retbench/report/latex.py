"""Tables as LaTeX with booktabs, graphicx and T1 fonts: every text inert, compiled by pdflatex as they are."""

import re
import unicodedata

from retbench.report.tables import Column, Table, one_line

_SIGNS = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\char34{}", "`": r"\char96{}", "'": r"\char39{}",
    "[": "{[}", "]": "{]}", "*": "{*}",  # a row that began with one would give it to the line break before
    "×": r"$\times$", "±": r"$\pm$", "−": "$-$", "≤": r"$\leq$", "≥": r"$\geq$", "≈": r"$\approx$", "→": r"$\to$",
    "γ": r"$\gamma$", "²": "$^2$", "…": r"\ldots{}", "–": r"\textendash{}",
    "—": r"\textemdash{}", "’": r"\char39{}",
}  # fmt: skip
_LACKING = set("ĦħĸĿŀŉŦŧ")  # of the letters from À to ž, what T1 fonts have no sign for
PAGE_ROWS = 34  # of a table, one line each: what a page holds, at 12 pt too
# A box that is made narrower where it is wider than the page.
_NARROWED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
_PLAIN = re.compile(r"[A-Za-z0-9.,:;/+=()]*(?:[ -][A-Za-z0-9.,:;/+=()]+)*")


def to_latex(table: Table) -> str:
    """``table`` environments no larger than the page: the columns of a terminal; footnotes are text below the last.

    Needs \\usepackage[T1]{fontenc} and \\usepackage{booktabs,graphicx}.
    """
    shown = table.shown("terminal")
    sides = "".join("r" if table.columns[at].justify == "right" else "l" for at in shown)
    head = " & ".join(_header(table.columns[at]) for at in shown) + r" \\"
    body = [" & ".join(latex_text(row[at].text) for at in shown) + r" \\" for row in table.rows]
    title, lines = latex_text(table.title), list[str]()
    for start in range(0, max(len(body), 1), PAGE_ROWS):
        continued = " (continued)" if start else ""
        lines += [r"\clearpage"] * bool(start)  # TeX holds few floats at a time
        lines += [r"\begin{table}", r"\centering", rf"\caption{{{title}{continued}}}"]
        if body:
            lines += [r"\setlength{\tabcolsep}{3pt}\small", _NARROWED, rf"\begin{{tabular}}{{{sides}}}", r"\toprule"]
            lines += [head, r"\midrule", *body[start : start + PAGE_ROWS], r"\bottomrule", r"\end{tabular}}"]
        lines.append(r"\end{table}")
    if table.footnotes:  # they may fill a page, which a float cannot go beyond
        notes = [latex_text(note) for note in table.footnotes]
        lines += ["", rf"{{\footnotesize\raggedright\textbf{{{title}}}\par", *(f"{note}.\\par" for note in notes), "}"]
    return "\n".join([*lines, ""])


def latex_text(text: str) -> str:
    """The text as LaTeX shows it, on one line; letters that pdflatex's fonts lack lose their accents or become ?."""
    if _PLAIN.fullmatch(text):
        return text
    line = "".join(_SIGNS.get(sign) or _known(sign) for sign in one_line(text))
    return re.sub("-(?=-)", "-{}", line)  # two hyphens would become a dash


def _known(sign: str) -> str:
    if sign.isascii() or ("À" <= sign <= "ž" and sign not in _LACKING):
        return sign
    plain = unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
    return "".join(_SIGNS.get(one, one) for one in plain) or "?"


def _header(column: Column) -> str:
    """A header; one of several lines stands on the last of them."""
    lines = [latex_text(line) for line in column.lines]
    stacked = r" \\ ".join(lines)
    return lines[0] if len(lines) == 1 else rf"\begin{{tabular}}[b]{{@{{}}c@{{}}}}{stacked}\end{{tabular}}"
