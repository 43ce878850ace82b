"""A figure as HTML: legend, panels, caption, and the table of its values behind it."""

import base64
from collections.abc import Iterable, Sequence
from io import BytesIO

from matplotlib.figure import Figure

from retbench.report.style import styled
from retbench.report.web import svg
from retbench.report.web.plots import Bar, Entry, Panel, Plot, Series, UnknownShapeError, plot
from retbench.report.web.scope import Scope, Systems
from retbench.report.web.svg import inert

Values = dict[tuple[float, str], dict[str, str]]  # position and words of an x -> series -> words of its value


def figure_html(figure: Figure, title: str, systems: Systems) -> tuple[str, frozenset[str]]:
    """The figure and the colours that it needs; as a picture where it shows what a page cannot draw anew."""
    with styled():
        try:
            shown = plot(figure, systems)
        except UnknownShapeError:
            return _picture(figure, title), frozenset()
    panels = "".join(f'<div class="panel"><h4>{inert(one.title)}</h4>{svg.draw(one)}{_legend(one.legend)}</div>'
                     for one in shown.panels)  # fmt: skip
    caption = f"<figcaption>{inert(shown.caption)}</figcaption>" if shown.caption else ""
    few = " few" * (len(shown.panels) in (1, 2, 4))
    html = f'<figure>{_legend(shown.legend)}<div class="panels{few}">{panels}</div>{caption}{_data(shown)}</figure>'
    return html, shown.colours


def _legend(entries: Sequence[Entry]) -> str:
    lines = "".join(f"<li{svg.data(entry.scope)}>{svg.key(entry)}{inert(entry.text)}</li>" for entry in entries)
    return f'<ul class="legend">{lines}</ul>' if lines else ""


def _data(shown: Plot) -> str:
    """The values of all panels as tables."""
    tables = "".join(_panel_table(panel) for panel in shown.panels if panel.series or panel.bars)
    return f"<details><summary>Data of the figure</summary>{tables}</details>"


def _panel_table(panel: Panel) -> str:
    """A row for each x, a column for each series; failed cells in words."""
    values: Values = {}
    scopes: dict[str, Scope] = {}
    parts: tuple[Series | Bar, ...] = (*panel.series, *panel.bars)
    for part in parts:
        name = _name(part)
        scopes.setdefault(name, part.scope)
        for point in (part.point,) if isinstance(part, Bar) else part.points:
            values.setdefault((point.x, point.x_words), {})[name] = point.y_words
    places = dict(values.keys())
    for words in panel.words:
        if words.x is not None and (name := _of_scope(scopes, words.scope)):
            place = words.x, places.get(words.x, f"{words.x:,.0f}")
            values.setdefault(place, {}).setdefault(name, words.text.removeprefix("× "))
    shared = [f", {own.pop()}" for kind in ("size", "machine") if len(own := _said(scopes.values(), kind)) == 1]
    heads = "".join(
        f'<th scope="col" class="n"{svg.data(scope)}>{inert(_without(name, shared))}</th>'
        for name, scope in scopes.items()
    )
    rows = "".join(_row(place[1], values[place], scopes) for place in sorted(values))
    title = inert(f"{panel.title}{f', {panel.y.label}' if panel.y.label else ''}")
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{title}"><table><caption>{title}</caption>'
        f'<thead><tr><th scope="col">{inert(panel.x.label)}</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _said(scopes: Iterable[Scope], kind: str) -> set[str]:
    return {value for scope in scopes if (value := getattr(scope, kind))}


def _without(name: str, shared: Sequence[str]) -> str:
    """A name without the size and machine that all columns share."""
    for part in shared:
        name = name.replace(part, "", 1)
    return name


def _row(name: str, values: dict[str, str], scopes: dict[str, Scope]) -> str:
    cells = (f'<td class="n"{svg.data(scope)}>{inert(values.get(one, "-"))}</td>' for one, scope in scopes.items())
    return f'<tr><th scope="row">{inert(name)}</th>{"".join(cells)}</tr>'


def _name(part: Series | Bar) -> str:
    """The head of its column; values of another unit say so."""
    label = part.scope.label or "value"
    return f"{label} ({part.unit})" if isinstance(part, Series) and part.scope.paper and part.unit else label


def _of_scope(scopes: dict[str, Scope], wanted: Scope) -> str:
    """The column of our values of a system."""
    names = (name for name, scope in scopes.items() if scope.label == wanted.label and not scope.paper)
    return next(names, "")


def _picture(figure: Figure, title: str) -> str:
    file = BytesIO()
    with styled():
        figure.savefig(file, format="svg", metadata={"Date": None})
    data = base64.b64encode(file.getvalue()).decode()
    return f'<figure><img alt="{inert(title)}" src="data:image/svg+xml;base64,{data}"></figure>'
