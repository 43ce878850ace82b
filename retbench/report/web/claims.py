"""The claims ledger as a list: verdict, claim and reason, the paper's number and ours; the rest one click away."""

from retbench.report.numbers import ABSENT
from retbench.report.tables import Table
from retbench.report.web.svg import inert
from retbench.report.web.tables import VERDICTS, notes_html, verdict

TOLD = ("claim", "says", "where", "reason", "paper", "ours", "verdict")  # in sight
MORE = {  # column -> what it is called in the details
    "strongest": "strongest baseline",
    "naive": "naive baseline",
    "conditions": "measured at",
    "setting": "the paper's setting",
    "notes": "notes",
    "command": "command",
}


def is_ledger(table: Table) -> bool:
    """Whether a table holds claims with their words."""
    return {*TOLD, *MORE} <= {column.name for column in table.columns}


def claims_html(table: Table) -> str:
    """The list, and those footnotes that are not about a single claim."""
    rows = [dict(zip((column.name for column in table.columns), row, strict=True)) for row in table.rows]
    words = [{name: entry.text for name, entry in row.items()} for row in rows]
    names = {row["claim"] for row in words}
    notes = [note for note in table.footnotes if note.partition(":")[0] not in names]
    return f'<ol class="claims">{"".join(map(_claim, words))}</ol>{notes_html(notes)}'


def _claim(row: dict[str, str]) -> str:
    label = verdict(row["verdict"]) if row["verdict"] in VERDICTS else inert(row["verdict"])
    known = {name: row[column] for column, name in MORE.items() if row[column] not in ("", ABSENT)}
    more = "".join(f"<dt>{name}</dt><dd>{inert(words)}</dd>" for name, words in known.items())
    ours = row["ours"] if row["ours"] != row["verdict"] else ABSENT
    told = (
        f'<p>{inert(row["says"])} <span class="absent">({inert(row["where"])})</span></p>'
        f'<p class="why">{inert(row["reason"])}</p>'
        f"<details><summary>Baselines, conditions, command</summary><dl>{more}</dl></details>"
    )
    return (
        f'<li><div>{label}</div><div class="told">{told}</div>{_number("paper", row["paper"])}'
        f"{_number('measured', ours)}</li>"
    )


def _number(name: str, words: str) -> str:
    return f'<div class="number"><small>{name}</small>{inert(words)}</div>'
