"""What is read out of a figure: its values, its words, and the unit that each is in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from retbench.report.figures import figure1, figure6
from retbench.report.numbers import significant
from retbench.report.paper import inference_paper
from retbench.report.web.colours import CONTRAST, DARK, contrast, on_dark
from retbench.report.web.plots import Panel, Plot, UnknownShapeError, plot
from retbench.report.web.scope import Systems
from tests.models.helpers import repeatable
from tests.report.factory import cell, failed, sweep

PAPER = inference_paper()
RECORDS = sweep(lengths=(2048, 8192))


def read(figure: Figure) -> Plot:
    return plot(figure, Systems.of(RECORDS))


def latency() -> Panel:
    return read(figure6.draw(RECORDS, PAPER)).panels[2]


def test_the_values_of_a_line_are_those_of_the_records() -> None:
    expected = {one.cell.batch_size: one.metrics["tpot_ms"] for one in RECORDS
                if (one.cell.system, one.cell.seq_len) == ("retnet", 8192)}  # fmt: skip
    (line,) = (one for one in latency().series if one.scope.system == "retnet" and not one.scope.paper)

    assert {point.x: point.y_words.split(" (")[0] for point in line.points} == {
        x: significant(y) for x, y in expected.items()
    }
    assert line.unit == "ms"
    assert all(point.whisker and " to " in point.y_words for point in line.points)


def test_the_papers_values_are_in_the_papers_unit() -> None:
    curve = PAPER.panels["latency"].curve("transformer", 8192)
    (line,) = (one for one in latency().series if one.scope.system == "transformer" and one.scope.paper)

    assert curve
    assert {point.y_words for point in line.points} == {significant(curve.at(int(point.x))) for point in line.points}
    assert line.unit == PAPER.panels["latency"].unit


def test_places_are_those_on_the_drawn_axes() -> None:
    figure = Figure()
    ax = figure.subplots()
    ax.set(xscale="log", yscale="log", xlim=(1, 100), ylim=(1, 10000))
    ax.plot([1, 10, 100], [1, 100, 10000], label="retnet")
    (panel,) = read(figure).panels

    assert [point.at for point in panel.series[0].points] == [(0, 0), (0.5, 0.5), (1, 1)]
    assert (0.5, "10¹") in panel.x.ticks


def test_bars_have_their_values_intervals_and_names() -> None:
    panel = read(figure1.draw(RECORDS, PAPER)).panels[2]
    retnet = next(bar for bar in panel.bars if bar.scope.system == "retnet")

    assert retnet.point.x_words == "retnet"
    assert " to " in retnet.point.y_words
    assert retnet.corners[0][0] == 0
    assert any(bar.scope.paper and bar.look.hollow for bar in panel.bars)
    assert not panel.x.ticks, "the figure has none"


def test_a_failed_cell_is_tied_to_its_system_and_place() -> None:
    dead = failed(cell("transformer"), "oom", "too large")
    records = [one for one in sweep() if one.cell != dead.cell] + [dead]
    panel = read(figure6.draw(records, PAPER)).panels[2]
    (words,) = panel.words

    assert (words.text, words.scope.system, words.x) == ("× oom", "transformer", 8)


def test_machines_differ_in_their_dashes() -> None:
    figure = Figure()
    ax = figure.subplots()
    ax.plot([1, 2], [1, 2], label="retnet, a")
    ax.plot([1, 2], [1, 2], label="retnet, b", linestyle=(0, (5, 1, 1, 1)))
    solid, dashed = read(figure).panels[0].series

    assert (solid.look.dashes, dashed.look.dashes) == ((), (5, 1, 1, 1))


@pytest.mark.parametrize("label", ["retnet", "retnet, model", "retnet  1.02", "retnet, small, lab-2c"])
def test_a_label_begins_with_its_system(label: str) -> None:
    scope = Systems(("retnet", "retnet-no-gate"), ("small", "tiny"), ("lab-2c",)).scope(label, "#123456", "")

    assert (scope.system, scope.machine) == ("retnet", "lab-2c")
    assert scope.size == ("small" if "small" in label else "")


def test_a_line_without_a_label_is_known_by_its_look() -> None:
    systems = Systems(("retnet", "transformer"), ("small",), ("lab-2c",))

    assert systems.scope("", "#d55e00", "o").system == "retnet"
    assert systems.scope("", "#d55e00", "s").system == ""


def test_other_shapes_are_refused() -> None:
    figure = Figure()
    figure.subplots().imshow([[1, 2], [3, 4]])

    with pytest.raises(UnknownShapeError, match="AxesImage is not a line"):
        read(figure)


@repeatable
@given(st.integers(0, 0xFFFFFF))
def test_every_colour_can_be_seen_on_a_dark_page(value: int) -> None:
    assert contrast(on_dark(f"#{value:06x}"), DARK) >= CONTRAST
