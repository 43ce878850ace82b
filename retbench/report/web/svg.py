"""A panel as SVG that takes its colours from the page, every value in it findable by a script."""

from collections.abc import Iterator, Sequence
from html import escape

import numpy as np
from matplotlib.markers import MarkerStyle

from retbench.report.tables import one_line
from retbench.report.web.colours import css_class
from retbench.report.web.plots import Axis, Bar, Entry, Look, Panel, Point, Series, Shape, Spot, Words
from retbench.report.web.scope import Scope

WIDTH = 380  # of a panel, in units of its view box; about its pixels
TOP, BOTTOM, SIDE = 26, 40, 12  # margins for labels; those on the left and right depend on their length
BARE = 6  # a margin without labels
CHARACTER = 7.2  # width of a character, at most
MARKER = 8.0  # width of a marker
DASH = 1.6  # of a matplotlib dash, in units of the view box
RATIOS = (0.6, 1.0)  # height / width of the axes
LEAST = 60  # width of axes, however long the names beside them
ROW = 17  # least height of a horizontal bar with its name
MARKERS = "os^vDd8pPhX*<>"  # those of report.style; any other is shown as a circle


class Frame:
    """Where the axes of a panel stand in its view box."""

    def __init__(self, panel: Panel) -> None:
        self.top = TOP if panel.y.label or panel.right else BARE
        self.bottom = BOTTOM if panel.x.ticks or panel.x.label else BARE
        self.left = SIDE + CHARACTER * _longest(panel.y)
        right = SIDE + (6 + CHARACTER * _longest(panel.right) if panel.right else 0)
        self.width = max(WIDTH - self.left - right, LEAST)
        rows = ROW * len(panel.y.ticks) if panel.bars and not panel.x.ticks else 0
        self.height = max(self.width * min(max(panel.ratio, RATIOS[0]), RATIOS[1]), rows)

    def x(self, at: float) -> float:
        return self.left + at * self.width

    def y(self, at: float) -> float:
        return self.top + (1 - at) * self.height

    def xy(self, spot: Spot) -> str:
        return f"{self.x(spot[0]):.1f},{self.y(spot[1]):.1f}"


def markers() -> str:
    """The shapes of all markers once, as symbols that panels and legends use."""
    shapes = "".join(f'<path id="{_marker_id(name)}" d="{_path(name)}"/>' for name in MARKERS)
    return f'<svg class="defs" aria-hidden="true" width="0" height="0"><defs>{shapes}</defs></svg>'


def draw(panel: Panel) -> str:
    """The panel, its title left to the page. Series carry what they are, values their words."""
    frame = Frame(panel)
    height = frame.top + frame.height + frame.bottom
    words = f"{panel.title}: {panel.y.label} over {panel.x.label}; the arrow keys go through its values"
    series = sorted(panel.series, key=lambda one: not one.scope.paper)  # ours above the paper's
    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {height:.0f}" role="img" tabindex="0" aria-label="{inert(words)}" '
        f'data-x="{inert(panel.x.label)}">',
        _axes(panel, frame),
        f'<svg x="{frame.left:.1f}" y="{frame.top}" width="{frame.width:.1f}" height="{frame.height:.1f}" '
        f'viewBox="{frame.left:.1f} {frame.top} {frame.width:.1f} {frame.height:.1f}">',
        *(_shape(shape, frame) for shape in panel.shapes),
        *(_line(one, frame) for one in series),
        "</svg>",
        *(_bar(bar, frame, panel) for bar in panel.bars),
        *(_series(one, frame) for one in series),
        *_words(panel.words, frame),
        "</svg>",
    ]
    return "".join(parts)


def inert(words: str) -> str:
    """Words as text or as the value of an attribute: on one line, nothing but themselves."""
    return escape(one_line(words), quote=True)


def key(entry: Entry) -> str:
    """What stands before a name in a legend."""
    look = entry.look
    if entry.bar:
        inside = f'<rect x="5" y="2" width="16" height="9" class="{_bar_class(look)}"/>'
    else:
        inside = f'<path d="M1 6.5H25"{_stroke(look)}/>' if look.line else ""
        inside += _marker(look, 13, 6.5) if look.marker else ""
    return f'<svg class="key {css_class(look.colour)}" viewBox="0 0 26 13" aria-hidden="true">{inside}</svg>'


def data(scope: Scope) -> str:
    """Attributes that the filters look at."""
    known = {"system": scope.system, "size": scope.size, "machine": scope.machine}
    return "".join(f' data-{name}="{inert(value)}"' for name, value in known.items() if value)


def _axes(panel: Panel, frame: Frame) -> str:
    """Grid, ticks and labels; those of the y axes lie above them."""
    base = frame.top + frame.height
    parts = [f'<path class="axis" d="M{frame.left:.1f} {base:.1f}h{frame.width:.1f}"/>']
    for at, text in panel.y.ticks:
        y = frame.y(at)
        parts.append(f'<path class="grid" d="M{frame.left:.1f} {y:.1f}h{frame.width:.1f}"/>' if panel.x.ticks else "")
        parts.append(_text(text, frame.left - 6, y + 4, "end", "tick"))
    shown = _spread(panel.x, frame)
    for at, text in panel.x.ticks:
        parts.append(f'<path class="axis" d="M{frame.x(at):.1f} {base:.1f}v4"/>')
        parts.append(_text(text, frame.x(at), base + 17, "middle", "tick") if text in shown else "")
    parts.append(_text(panel.x.label, frame.x(0.5), base + 34, "middle", "label"))
    parts.append(_text(panel.y.label, frame.left, 13, "start", "label"))
    if panel.right:
        end = frame.x(1)
        parts.append(f'<path class="axis" d="M{end:.1f} {frame.top}v{frame.height:.1f}"/>')
        parts += [_text(text, end + 6, frame.y(at) + 4, "start", "tick") for at, text in panel.right.ticks]
        parts.append(_text(panel.right.label, WIDTH - 2, 13, "end", "label"))
    return f'<g aria-hidden="true">{"".join(parts)}</g>'


def _spread(axis: Axis, frame: Frame) -> set[str]:
    """The words of ticks that have room beside each other."""
    shown, end = set(), float("-inf")
    for at, text in sorted(axis.ticks):
        half = CHARACTER * len(text) / 2
        if frame.x(at) - half > end + 4:
            shown.add(text)
            end = frame.x(at) + half
    return shown


def _line(one: Series, frame: Frame) -> str:
    """Line and whiskers, which may run out of the axes."""
    points = " ".join(frame.xy(point.at) for point in one.points)
    line = f'<polyline{_stroke(one.look)} points="{points}"/>' if one.look.line else ""
    return _group(one.scope, one.look, line + "".join(_whisker(point, frame) for point in one.points), "line")


def _whisker(point: Point, frame: Frame) -> str:
    if not point.whisker:
        return ""
    low, high = (frame.xy(end) for end in point.whisker)
    return f'<path class="whisker" d="M{low}L{high}"/>'


def _series(one: Series, frame: Frame) -> str:
    """The values that lie inside the axes; a line without markers has invisible ones to be pointed at."""
    inside = [point for point in one.points if all(-0.01 <= part <= 1.01 for part in point.at)]
    marks = [
        f'<g data-x="{inert(point.x_words)}" data-y="{inert(_with_unit(point, one.unit))}">'
        f"{_marker(one.look, frame.x(point.at[0]), frame.y(point.at[1]))}</g>"
        for point in inside
    ]
    return _group(one.scope, one.look, "".join(marks), "series")


def _bar(bar: Bar, frame: Frame, panel: Panel) -> str:
    """A bar with its whisker; its unit is that of an axis, else what the title says after a comma: ``latency, ms``."""
    (x0, y0), (x1, y1) = bar.corners
    rect = (
        f'<rect x="{frame.x(x0):.1f}" y="{frame.y(y1):.1f}" width="{(x1 - x0) * frame.width:.1f}" '
        f'height="{(y1 - y0) * frame.height:.1f}" class="{_bar_class(bar.look)}"/>'
    )
    unit = panel.y.label or panel.x.label or panel.title.rpartition(", ")[2]
    value = inert(_with_unit(bar.point, unit))
    mark = f'<g data-x="{inert(bar.point.x_words)}" data-y="{value}">{rect}</g>{_whisker(bar.point, frame)}'
    return _group(bar.scope, bar.look, mark, "series")


def _bar_class(look: Look) -> str:
    """Solid as measured, hollow as the paper's, dashed as a model's."""
    return "bar" + (" dashed" if look.dashes else " hollow" if look.hollow else "")


def _shape(shape: Shape, frame: Frame) -> str:
    points = " ".join(frame.xy(spot) for spot in shape.spots)
    inside = f'<polygon class="area" points="{points}"/>' if shape.filled else ""
    inside = inside or f'<polyline{_stroke(shape.look)} points="{points}"/>'
    return _group(shape.scope, shape.look, inside, "line")


def _words(words: Sequence[Words], frame: Frame) -> Iterator[str]:
    """The words, moved to the right where they would run into those before them: type is larger here than in a file."""
    ends: dict[int, float] = {}
    for one in sorted(words, key=lambda one: (one.at[1], one.at[0])):
        x, y = frame.x(one.at[0]), frame.y(one.at[1]) + 4
        if one.anchor == "start":
            x = max(x, ends.get(round(y), x))
            ends[round(y)] = x + CHARACTER * len(one.text) + 4
        style = f"words{' bold' * one.bold} {css_class(one.colour)}"
        yield f"<g{data(one.scope)}>{_text(one.text, x, y, one.anchor, style)}</g>"


def _group(scope: Scope, look: Look, inside: str, style: str) -> str:
    label = inert(scope.label)
    faint = " faint" * (scope.paper or look.hollow)
    return f'<g class="{style} {css_class(look.colour)}{faint}"{data(scope)} data-label="{label}">{inside}</g>'


def _marker(look: Look, x: float, y: float) -> str:
    name = look.marker if look.marker and look.marker in MARKERS else "o"
    style = "ghost" if not look.marker else f"dot{' hollow' * look.hollow}"
    return f'<use href="#{_marker_id(name)}" x="{x:.1f}" y="{y:.1f}" class="{style}"/>'


def _marker_id(name: str) -> str:
    return f"m{ord(name)}"


def _path(name: str) -> str:
    """The outline of a matplotlib marker around the origin, y downwards."""
    style = MarkerStyle(name)
    outline = style.get_path().transformed(style.get_transform())
    polygons = outline.to_polygons(closed_only=False)
    lines = ["L".join(f"{MARKER * x:.1f} {-MARKER * y:.1f}" for x, y in np.asarray(one)) for one in polygons]
    return "".join(f"M{line}{'Z' if style.is_filled() else ''}" for line in lines)


def _stroke(look: Look) -> str:
    dashes = " ".join(f"{DASH * part:g}" for part in look.dashes)
    return ' class="stroke"' + (f' stroke-dasharray="{dashes}"' if dashes else "")


def _text(text: str, x: float, y: float, anchor: str, style: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}">{inert(text)}</text>'


def _with_unit(point: Point, unit: str) -> str:
    return f"{point.y_words} {unit}".strip()


def _longest(axis: Axis) -> int:
    return max((len(text) for _, text in axis.ticks), default=0)
