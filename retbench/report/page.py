"""The report as one self-contained page, reports/index.html: no network, no framework, no text in it that runs."""

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from models.sizes import rank
from retbench import __version__
from retbench.predictions import MACHINE as MODEL
from retbench.record import Record
from retbench.report.exhibit import Drawn
from retbench.report.style import looks, place
from retbench.report.tables import without_repeats
from retbench.report.web import svg
from retbench.report.web.claims import claims_html, is_ledger
from retbench.report.web.colours import rule
from retbench.report.web.figures import figure_html
from retbench.report.web.plots import Entry, Look
from retbench.report.web.scope import Scope, Systems, of_machine
from retbench.report.web.sources import Sources
from retbench.report.web.svg import inert
from retbench.report.web.tables import VERDICTS, notes_html, table_html, verdict

PARTS = Path(__file__).parent / "web"
FILTERS = {"system": "System", "size": "Size", "machine": "Machine"}
FACTS = ("machine", "cpu", "gpu", "cores", "threads", "torch", "python", "commit")  # the first ones of an environment


def page(drawn: Sequence[Drawn], notes: Sequence[str] = ()) -> str:
    """The page of these exhibits, in order; ``notes`` tell of the records. The same records give the same text."""
    records = list({id(record): record for one in drawn for record in one.records}.values())
    sources, colours = Sources(), {look.colour for look in _looks(records).values()}
    sections = []
    for one in drawn:
        html, used = _exhibit(one, sources)
        sections.append(html)
        colours |= used
    style = "\n".join([_part("page.css"), *sorted({rule(colour) for colour in colours})])
    script = _part("page.js")
    return Template(_part("page.html")).substitute(
        policy=inert(_policy(style, script)),
        style=style,
        script=script,
        markers=svg.markers(),
        nav="".join(_nav_line(one) for one in drawn),
        filters=_filters(records),
        lead=_lead(records),
        verdicts=_verdicts(drawn),
        notes=notes_html(notes),
        sections="\n".join(sections),
        environments=_environments(sources),
        sources=sources.to_json(),
        version=inert(__version__),
    )


def _exhibit(one: Drawn, sources: Sources) -> tuple[str, set[str]]:
    """A section, and the colours of its figures."""
    name, title = inert(one.exhibit.name), inert(one.exhibit.title)
    head = f'<h2 id="{name}-title">{title}</h2>'
    parts, colours = list[str](), set[str]()
    if one.missing:
        parts.append(f'<p class="missing">{inert(one.missing)}</p>')
    else:
        number = sources.number(one, one.records)
        head += f'<button type="button" data-source="{number}">Command and conditions</button>'
    for stem, figure in one.figures.items():
        html, used = figure_html(figure, one.exhibit.title, Systems.of(of_machine(stem, one.records)))
        if len(one.figures) > 1 and stem != one.exhibit.name:
            parts.append(f"<h3>{inert(stem.removeprefix(f'{one.exhibit.name}-'))}</h3>")
        parts.append(html)
        colours |= used
    for table in without_repeats(one.tables):
        parts.append(claims_html(table) if is_ledger(table) else table_html(table, one, sources))
    parts.append(notes_html(one.notes))
    if one.command and not one.missing:
        lines = "\n".join(inert(line) for line in one.command.splitlines())
        parts.append(f'<details class="made"><summary>Command</summary><pre><code>{lines}</code></pre></details>')
    style = ' class="empty"' if one.missing else ""
    inside = f"<header>{head}</header>{''.join(parts)}"
    return f'<section id="{name}"{style} aria-labelledby="{name}-title">{inside}</section>', colours


# ---- above the exhibits -------------------------------------------------------------------------------------------


def _lead(records: Sequence[Record]) -> str:
    """What the page is made of, in a sentence."""
    measured = [one for one in records if one.machine != MODEL]
    machines, systems = len({one.machine for one in measured}), len({one.cell.system for one in measured})
    predicted = len(records) - len(measured)
    model = f", and {_count(predicted, 'prediction')} of a model" if predicted else ""
    return (
        f"{_count(len(measured), 'record')} of {_count(systems, 'system')} on {_count(machines, 'machine')}{model}. "
        "Measured unless called the paper’s or a model’s."
    )


def _verdicts(drawn: Sequence[Drawn]) -> str:
    """How many claims are supported, and so on, with a link to them."""
    counts: Counter[str] = Counter()
    for one in (one for one in drawn if one.exhibit.sums_up):
        for table in one.tables:
            places = [at for at, column in enumerate(table.columns) if column.name == "verdict"]
            counts.update(row[at].text for at in places for row in table.rows)
    anchor = next((inert(one.exhibit.name) for one in drawn if one.exhibit.sums_up), "")
    found = [words for words in VERDICTS if counts[words]]
    lines = "".join(f'<li><a href="#{anchor}"><b>{counts[words]}</b> {verdict(words)}</a></li>' for words in found)
    return f'<ul class="verdicts" aria-label="Verdicts on the claims of the paper">{lines}</ul>' if lines else ""


def _filters(records: Sequence[Record]) -> str:
    """A group of check boxes for systems, sizes and machines."""
    known = Systems.of(records)
    sizes = sorted(known.sizes, key=lambda size: (rank(size) < 0, rank(size), size))  # last what is none
    names = {"system": sorted(known.systems, key=place), "size": sizes, "machine": known.machines}
    groups = []
    for group, title in FILTERS.items():
        boxes = "".join(
            f'<label><input type="checkbox" name="{group}" value="{inert(name)}" checked>'
            f"{_swatch(name, known) if group == 'system' else ''}<span>{inert(name) or 'unnamed'}</span></label>"
            for name in names[group]
        )
        groups.append(f"<fieldset><legend>{title}</legend>{boxes}</fieldset>" if boxes else "")
    return "".join(groups)


def _swatch(name: str, known: Systems) -> str:
    look = looks(known.systems)[name]
    return svg.key(Entry(name, Look(look.colour, look.marker), Scope(name, name)))


def _looks(records: Sequence[Record]) -> Any:
    return looks(one.cell.system for one in records)


def _nav_line(one: Drawn) -> str:
    """A link, ``Figure 6`` for ``Figure 6: memory, ...``."""
    state = ' <span class="absent">not run</span>' if one.missing else ""
    return f'<li><a href="#{inert(one.exhibit.name)}">{inert(one.exhibit.title.split(":")[0])}{state}</a></li>'


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


# ---- environments, policy -----------------------------------------------------------------------------------------


def _environments(sources: Sources) -> str:
    """All facts of every environment, the telling ones first."""
    parts = []
    for number, facts in enumerate(sources.facts()):
        names = sorted(facts, key=lambda name: (FACTS.index(name) if name in FACTS else len(FACTS), name))
        lines = "".join(f"<dt>{inert(name)}</dt><dd>{_fact(facts[name])}</dd>" for name in names)
        title = f"<summary>{_title(number, facts)}</summary>"
        parts.append(f'<details id="environment-{number}">{title}<dl>{lines}</dl></details>')
    return "".join(parts)


def _title(number: int, facts: dict[str, Any]) -> str:
    words = [str(facts[name]) for name in ("machine", "torch", "commit") if facts.get(name)]
    return inert(f"{number + 1}: {', '.join(words) or 'nothing is known'}")


def _fact(value: Any) -> str:
    """A value; of an object its own lines."""
    if isinstance(value, dict):
        return "<br>".join(inert(f"{name}={part}") for name, part in sorted(value.items()))
    return inert("-" if value is None else str(value))


def _policy(style: str, script: str) -> str:
    """Nothing is loaded, and of what is in the page nothing runs or styles but these two texts."""
    hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _part(name: str) -> str:
    """A file of the page, as it stands in the package."""
    return (PARTS / name).read_text(encoding="utf-8").strip()
