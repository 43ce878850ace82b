"""What is read out of a figure: its values, its words, and the unit that each is in."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from experiments.scaling import paper
from retbench.report.figures import figure1, figure5, figure6, table4
from retbench.report.numbers import significant
from retbench.report.paper import inference_paper
from retbench.report.training_cost import Assumptions, Cost
from retbench.report.web import svg
from retbench.report.web.colours import CONTRAST, DARK, contrast, on_dark
from retbench.report.web.plots import Panel, Plot, UnknownShapeError, plot
from retbench.report.web.scope import Systems
from tests.models.helpers import repeatable
from tests.report.factory import cell, failed, sweep
from tests.report.test_scaling import runs as scaled

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


def test_bars_of_a_model_are_dashed_and_those_of_the_paper_hollow() -> None:
    costs = [
        Cost(name, "tiny", 0, 2.0, 1.0, 64, 10**9, {"none": 10**9}, {"none": 0}, {"none": 1})
        for name in ("retnet", "h3")
    ]
    shown = read(table4.draw(costs, Assumptions("none", "GB", 14.0, (1,), (1,)), {}))
    drawn = [(part.look, part.scope) for part in (*shown.panels[0].bars, *shown.legend)]

    assert len(drawn) == 8
    assert all((bool(look.dashes), look.hollow) == (not scope.paper, scope.paper) for look, scope in drawn)
    classes = {match for part in shown.legend for match in re.findall('class="(bar[a-z ]*)"', svg.key(part))}
    assert classes == {"bar dashed", "bar hollow"}


def test_the_papers_points_of_figure_5_are_hollow_and_fitted_laws_dashed() -> None:
    ours, theirs = read(figure5.draw(scaled(0.1), paper())).panels

    assert all(one.scope.paper and one.look.hollow for one in theirs.series)
    assert not any(one.scope.paper or one.look.hollow for one in ours.series)
    assert {bool(one.look.dashes) for one in ours.series if one.look.line} == {True}


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
