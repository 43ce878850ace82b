"""What a matplotlib figure shows, as plain data: panels of series, bars and words, in fractions of their axes.

A page draws them anew, so that its figures have the page's type and colours, fit its width and tell their values.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis as MatplotlibAxis
from matplotlib.collections import Collection as MatplotlibCollection
from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from matplotlib.colors import to_hex, to_rgba
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon, Rectangle
from matplotlib.text import Annotation, Text
from numpy.typing import NDArray

from retbench.report.numbers import significant
from retbench.report.web.scope import Scope, Systems

Spot = tuple[float, float]  # fractions of the width and the height of the axes, from the lower left
Floats = NDArray[np.float64]

EDGE = 0.005  # fraction beyond the axes that still counts as inside
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class UnknownShapeError(ValueError):
    """A figure with something in it that is neither line, bar, area nor words: it stays a picture."""


@dataclass(frozen=True)
class Look:
    """How a series is drawn. ``marker`` is matplotlib's, empty for none; ``dashes`` its strokes and gaps, in widths."""

    colour: str
    marker: str = ""
    line: bool = True
    dashes: tuple[float, ...] = ()
    hollow: bool = False


@dataclass(frozen=True)
class Axis:
    """A label and ticks: where they are, as fractions of the axis, and their words."""

    label: str = ""
    ticks: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Point:
    """A value: where it stands and its words; ``whisker`` holds the ends of its interval."""

    at: Spot
    x: float
    x_words: str
    y_words: str
    whisker: tuple[Spot, Spot] | None = None


@dataclass(frozen=True)
class Series:
    """The values of one system; ``unit`` is what they are measured in."""

    scope: Scope
    look: Look
    points: tuple[Point, ...]
    unit: str


@dataclass(frozen=True)
class Bar:
    """A bar from a lower left to an upper right corner, and its value."""

    scope: Scope
    look: Look
    corners: tuple[Spot, Spot]
    point: Point


@dataclass(frozen=True)
class Words:
    """Text in a panel, such as the status of a failed cell; ``x`` is the place that it speaks of, where it has one."""

    text: str
    at: Spot
    anchor: str  # start, middle or end, as in SVG
    bold: bool
    colour: str
    scope: Scope
    x: float | None = None


@dataclass(frozen=True)
class Shape:
    """A line across the axes (``filled`` False) or an area."""

    spots: tuple[Spot, ...]
    look: Look
    filled: bool
    scope: Scope


@dataclass(frozen=True)
class Entry:
    """A line of a legend."""

    text: str
    look: Look
    scope: Scope
    bar: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes; ``ratio`` is height / width."""

    title: str
    x: Axis
    y: Axis
    right: Axis | None
    ratio: float
    series: tuple[Series, ...] = ()
    bars: tuple[Bar, ...] = ()
    words: tuple[Words, ...] = ()
    shapes: tuple[Shape, ...] = ()
    legend: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class Plot:
    """A figure: its panels, its legend and the words below it."""

    panels: tuple[Panel, ...]
    legend: tuple[Entry, ...] = ()
    caption: str = ""
    colours: frozenset[str] = field(default_factory=frozenset)


def plot(figure: Figure, systems: Systems) -> Plot:
    """What ``figure`` shows; raises UnknownShapeError where that is more than lines, bars, areas and words."""
    figure.draw_without_rendering()  # the layout decides where words stand
    found: list[Panel] = []
    for ax in figure.axes:
        twins = [other for other in figure.axes if _same_place(ax, other)]
        if ax is twins[0] and ax.get_visible():
            found.append(_panel(ax, twins[1:], figure, systems))
    legend = tuple(entry for one in figure.legends for entry in _entries(one, systems))
    return Plot(tuple(found), legend, " ".join(figure.get_supxlabel().split()), frozenset(_colours(found, legend)))


def _same_place(ax: Axes, other: Axes) -> bool:
    return ax is other or bool(np.allclose(ax.get_position().bounds, other.get_position().bounds))


def _panel(ax: Axes, twins: Sequence[Axes], figure: Figure, systems: Systems) -> Panel:
    """The axes with those that share their place, whose scale stands on the right."""
    layers = [ax, *twins]
    for layer in layers:
        _check(layer)
    box = ax.get_window_extent()
    y, right = _axis(ax, "y"), next((_axis(twin, "y") for twin in twins), None)
    y = y if y.label else replace(y, label=_plain(figure.get_supylabel()))
    series, bars = [], []
    for layer in layers:
        unit = (right if right and layer is not ax else y).label
        own, whiskers = _series(layer, unit, systems)
        series += [_on_the_right(one, ax, twins[0]) if twins and one.scope.paper else one for one in own]
        bars += [_with_whisker(bar, whiskers) for bar in _bars(layer, systems)]
    legend = ax.get_legend()
    return Panel(
        title=_plain(ax.get_title(loc="left") or ax.get_title(loc="center")),
        x=_axis(ax, "x"),
        y=y,
        right=right,
        ratio=float(box.height / box.width),
        series=tuple(series),
        bars=tuple(bars),
        words=tuple(words for layer in layers for words in _texts(layer, systems)),
        shapes=tuple(shape for layer in layers for shape in _shapes(layer, systems)),
        legend=tuple(_entries(legend, systems)) if legend else (),
    )


def _check(ax: Axes) -> None:
    """Refuses what would be lost."""
    known = (LineCollection, PathCollection, PolyCollection)
    strange: list[Artist] = [one for one in ax.collections if not isinstance(one, known)]
    strange += [one for one in ax.patches if not isinstance(one, Rectangle | Polygon)]
    strange += [*ax.images, *ax.tables]
    if strange:
        raise UnknownShapeError(f"{type(strange[0]).__name__} is not a line, bar, area or text")


# ---- axes ---------------------------------------------------------------------------------------------------------


def _axis(ax: Axes, name: str) -> Axis:
    """Label and ticks; without ticks where they are switched off with their labels."""
    axis = cast(MatplotlibAxis, ax.xaxis if name == "x" else ax.yaxis)
    shown = axis.get_tick_params(which="major")
    sides = ("bottom", "top") if name == "x" else ("left", "right")
    if not any(shown.get(f"{kind}{side}", True) for side in sides for kind in ("", "label")):
        return Axis(_plain(axis.get_label_text()))
    places = np.asarray(axis.get_majorticklocs(), dtype=np.float64)
    texts = axis.get_major_formatter().format_ticks(cast(Any, places))
    spots = _fractions(ax, _on_axis(ax, name, places)) if len(places) else np.empty((0, 2))
    ends = zip(spots[:, 0 if name == "x" else 1], texts, strict=True)
    ticks = tuple((_rounded(at), _plain(text)) for at, text in ends if -EDGE <= at <= 1 + EDGE)
    return Axis(_plain(axis.get_label_text()), ticks)


def _on_axis(ax: Axes, name: str, places: Floats) -> Floats:
    """Data points on an axis: the other coordinate is one that every scale can take."""
    other = np.full_like(places, (ax.get_ylim() if name == "x" else ax.get_xlim())[1])
    return np.column_stack([places, other] if name == "x" else [other, places])


def _fractions(ax: Axes, points: Floats) -> Floats:
    """Data to fractions of the axes."""
    return np.asarray(ax.transAxes.inverted().transform(ax.transData.transform(points)), dtype=np.float64)


def _spot(at: Sequence[float]) -> Spot:
    return _rounded(at[0]), _rounded(at[1])


def _rounded(value: float) -> float:
    return round(float(value), 4) + 0.0  # no negative zero


# ---- series -------------------------------------------------------------------------------------------------------


def _series(ax: Axes, unit: str, systems: Systems) -> tuple[list[Series], list[Point]]:
    """The lines of the axes in the data's coordinates; and whiskers that belong to no line, those of bars."""
    found, whiskers = [], list[Point]()
    covered: set[Artist] = set()
    for container in ax.containers:
        if isinstance(container, ErrorbarContainer):
            line, caps, ranges = container.lines
            covered |= {*caps, *((line,) if line else ())}
            if line is not None:
                label = _label(container) or _label(line)
                one = _line_series(ax, line, label, cast(Sequence[LineCollection], ranges), unit, systems)
                bare = not one.look.marker and (not one.look.line or len(one.points) < 2)
                whiskers += one.points if bare else ()
                found += [] if bare else [one]
    for drawn in ax.lines:
        if drawn not in covered and drawn.get_visible() and drawn.get_transform() == ax.transData:
            found.append(_line_series(ax, drawn, _label(drawn), (), unit, systems))
    for cloud in ax.collections:
        if isinstance(cloud, PathCollection):
            look = Look(_colour(cloud.get_facecolor()), "o", line=False)
            points = _points(ax, np.asarray(cloud.get_offsets(), dtype=np.float64), ())
            found.append(Series(systems.scope(_label(cloud), look.colour, ""), look, points, unit))
    return found, whiskers


def _line_series(
    ax: Axes, line: Line2D, label: str, ranges: Sequence[LineCollection], unit: str, systems: Systems
) -> Series:
    data = np.column_stack([np.asarray(line.get_xdata(orig=False)), np.asarray(line.get_ydata(orig=False))])
    look = _line_look(line)
    scope = systems.scope(label, look.colour, look.marker)
    return Series(scope, look, _points(ax, data.astype(np.float64), ranges), unit)


def _points(ax: Axes, data: Floats, ranges: Sequence[LineCollection]) -> tuple[Point, ...]:
    """A point for each finite pair, with the segment of an error bar that passes through it."""
    segments = [np.asarray(one, dtype=np.float64) for some in ranges for one in some.get_segments()]
    names = _names(ax, "x")
    found = []
    for x, y in data:
        ends = next((one for one in segments if len(one) == 2 and _through(one, x, y)), None)
        spots = _fractions(ax, np.array([[x, y], *(ends if ends is not None else ())]))
        if not np.isfinite(spots).all():
            continue
        whisker = (_spot(spots[1]), _spot(spots[2])) if ends is not None and not np.allclose(*ends) else None
        along = 1 if ends is None or ends[0][0] == ends[1][0] else 0
        low, high = (ends[0][along], ends[1][along]) if ends is not None and whisker else (None, None)
        words = interval_words((x, y)[along], low, high)
        found.append(Point(_spot(spots[0]), float(x), names.get(float(x), _number(x)), words, whisker))
    return tuple(found)


def _through(segment: Floats, x: float, y: float) -> bool:
    """Whether a vertical or horizontal segment passes through a point."""
    (x0, y0), (x1, y1) = segment
    slack = 1e-9 * (1 + abs(x) + abs(y))
    return bool(min(x0, x1) - slack <= x <= max(x0, x1) + slack and min(y0, y1) - slack <= y <= max(y0, y1) + slack)


def _on_the_right(series: Series, ax: Axes, twin: Axes) -> Series:
    """The paper's values in the unit of the axis on the right, although they are drawn on the left."""
    to_data = twin.transData.inverted()
    values = [float(to_data.transform(ax.transAxes.transform(point.at))[1]) for point in series.points]
    points = tuple(
        replace(point, y_words=significant(value)) for point, value in zip(series.points, values, strict=True)
    )
    return replace(series, points=points, unit=_plain(twin.get_ylabel()).removeprefix("paper: "))


# ---- bars, areas, words -------------------------------------------------------------------------------------------


def _bars(ax: Axes, systems: Systems) -> Iterator[Bar]:
    """The bars with the words of the tick that they stand at."""
    containers = [one for one in ax.containers if isinstance(one, BarContainer)]
    upright = not any(one.orientation == "horizontal" for one in containers)
    names = _names(ax, "x" if upright else "y") if containers else {}
    for container in containers:
        for patch in container.patches:
            x, y, width, height = patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height()
            value, middle = (height, x + width / 2) if upright else (width, y + height / 2)
            look = _patch_look(patch)
            scope = systems.scope(_label(container) or _label(patch), look.colour, "")
            corners = _fractions(ax, np.array([[x, y], [x + width, y + height]]))
            tip = _fractions(ax, np.array([[middle, y + height] if upright else [x + width, middle]]))[0]
            nearest = min(names, key=lambda place, middle=middle: abs(place - middle), default=middle)  # type: ignore[misc]
            point = Point(_spot(tip), float(middle), names.get(nearest, _number(middle)), interval_words(value))
            if value and np.isfinite(corners).all():
                yield Bar(scope, look, (_spot(corners.min(axis=0)), _spot(corners.max(axis=0))), point)


def _with_whisker(bar: Bar, whiskers: Sequence[Point]) -> Bar:
    """The bar with the interval of the error bar at its end."""
    for one in whiskers:
        if one.whisker and np.allclose(one.at, bar.point.at, atol=EDGE):
            return replace(bar, point=replace(bar.point, y_words=one.y_words, whisker=one.whisker))
    return bar


def _shapes(ax: Axes, systems: Systems) -> Iterator[Shape]:
    """Lines and areas that are not tied to data in both directions, and filled bands."""
    for line in ax.lines:
        if line.get_transform() != ax.transData and line.get_visible():
            spots = _in_axes(ax, line.get_transform().transform(np.asarray(line.get_xydata())))
            yield Shape(spots, _line_look(line), False, systems.scope(_label(line), "", ""))
    for band in ax.collections:
        if isinstance(band, PolyCollection):
            look = Look(_colour(band.get_facecolor()), line=False)
            for path in band.get_paths():
                spots = _in_axes(ax, band.get_transform().transform(np.asarray(path.vertices)))
                yield Shape(spots, look, True, systems.scope(_label(band), look.colour, ""))
    bars = {patch for one in ax.containers if isinstance(one, BarContainer) for patch in one.patches}
    for patch in ax.patches:
        if patch not in bars:
            look = _patch_look(patch)
            spots = _in_axes(ax, patch.get_transform().transform(np.asarray(patch.get_path().vertices)))
            yield Shape(spots, look, True, systems.scope(_label(patch), look.colour, ""))


def _in_axes(ax: Axes, display: Floats) -> tuple[Spot, ...]:
    spots = ax.transAxes.inverted().transform(display)
    return tuple(_spot(spot) for spot in spots if np.isfinite(spot).all())


def _texts(ax: Axes, systems: Systems) -> Iterator[Words]:
    """Words where the layout has put them, anchored as they were written."""
    for text in ax.texts:
        if not text.get_visible() or not text.get_text().strip():
            continue
        box = text.get_window_extent()
        anchor, x = {"left": ("start", box.x0), "right": ("end", box.x1)}.get(
            text.get_horizontalalignment(), ("middle", (box.x0 + box.x1) / 2)
        )
        ((fx, fy),) = ax.transAxes.inverted().transform([[x, (box.y0 + box.y1) / 2]])
        colour = _colour(text.get_color())
        bold = text.get_fontweight() in ("bold", "semibold", "heavy", 700, 800)
        place = _place(text)
        yield Words(_plain(text.get_text()), _spot((fx, fy)), anchor, bold, colour,
                    systems.scope(_label(text), "", ""), place)  # fmt: skip


def _place(text: Text) -> float | None:
    """The x of the data that an annotation points at."""
    coordinates = text.xycoords if isinstance(text, Annotation) else None
    first = coordinates[0] if isinstance(coordinates, tuple) else coordinates
    return float(cast(Annotation, text).xy[0]) if first == "data" else None


def _entries(legend: Legend, systems: Systems) -> Iterator[Entry]:
    for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
        words = _plain(text.get_text())
        if isinstance(handle, Line2D):
            look, bar = _line_look(handle), False
        elif isinstance(handle, Rectangle):
            look, bar = _patch_look(handle), True
        elif isinstance(handle, MatplotlibCollection):
            look, bar = Look(_colour(handle.get_edgecolor())), False
        else:
            continue
        yield Entry(words, look, systems.scope(words, look.colour, look.marker), bar)


# ---- looks and words ----------------------------------------------------------------------------------------------


def _line_look(line: Line2D) -> Look:
    marker = str(line.get_marker())
    marker = "" if marker in ("None", "none", " ", "") else marker
    face = to_rgba(cast(Any, line.get_markerfacecolor()))
    hollow = bool(marker) and (face[3] == 0 or min(face[:3]) > 0.98)
    line_style = str(line.get_linestyle())
    shown = line_style not in ("None", "none", " ", "")
    return Look(_colour(line.get_color()), marker, shown, _dashes(line), hollow)


def _patch_look(patch: Rectangle | Polygon | Any) -> Look:
    face, edge = to_rgba(patch.get_facecolor()), to_rgba(patch.get_edgecolor())
    empty, dashes = face[3] == 0 or min(face[:3]) > 0.98, _dashes(patch)
    return Look(to_hex(edge if empty else face), dashes=dashes, hollow=empty and not dashes)


def _dashes(drawn: Any) -> tuple[float, ...]:
    """The strokes and gaps of a line or an outline."""
    return tuple(float(part) for part in drawn._unscaled_dash_pattern[1] or ())  # there is no public way to ask


def _colour(value: Any) -> str:
    """``#rrggbb`` of one colour, or of the first of several."""
    several = np.asarray(value) if not isinstance(value, str) else None
    if several is not None and several.ndim == 2:
        value = tuple(several[0]) if len(several) else "#333333"
    return to_hex(value)


def _colours(panels: Sequence[Panel], legend: Collection[Entry]) -> Iterator[str]:
    for panel in panels:
        parts: tuple[Series | Bar | Shape | Entry, ...] = (*panel.series, *panel.bars, *panel.shapes, *panel.legend)
        yield from (part.look.colour for part in parts)
        yield from (words.colour for words in panel.words)
    yield from (entry.look.colour for entry in legend)


def _label(artist: Any) -> str:
    """The label that was given to it, without the underscore that keeps it out of legends; empty for a made-up one."""
    label = str(artist.get_label() or "")
    made_up = re.fullmatch(r"_(child|container|line|nolegend_?).*", label)
    return "" if made_up else _plain(label.removeprefix("_"))


def _names(ax: Axes, name: str) -> dict[float, str]:
    """Position -> words of the ticks that are no numbers: categories."""
    axis = cast(MatplotlibAxis, ax.xaxis if name == "x" else ax.yaxis)
    places = [float(place) for place in axis.get_majorticklocs()]
    texts = [_plain(text) for text in axis.get_major_formatter().format_ticks(cast(Any, places))]
    numeric = all(re.fullmatch(r"[−-]?[\d.,]*[kM]?|10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+", text) for text in texts)
    return {} if numeric else {place: text for place, text in zip(places, texts, strict=True) if text}


def interval_words(value: float, low: float | None = None, high: float | None = None) -> str:
    """A value and the ends of its interval."""
    ends = "" if low is None or high is None else f" ({_number(low)} to {_number(high)})"
    return f"{_number(value)}{ends}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else significant(float(value))


def _plain(text: str) -> str:
    """Text without matplotlib's markup: escaped dollars, powers of ten."""
    line = " ".join(str(text).split())
    line = re.sub(
        r"(?<!\\)\$\\mathdefault\{(.*?)\}(?<!\\)\$", lambda match: _power(match.group(1)), line
    )  # as log axes write it
    return line.replace(r"\$", "$")


def _power(text: str) -> str:
    return re.sub(r"\^\{(-?\d+)\}", lambda match: match.group(1).translate(SUPERSCRIPT), text)
