"""Each cell of the gate over its runs, relative to the reference workload, with the steps marked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retbench.history import History
from retbench.report.compare_table import cell_words
from retbench.report.style import INK, PAGE_WIDTH, looks, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_HEIGHT = 1.4  # inches


def draw(histories: Sequence[History]) -> "Figure":
    """A panel a cell, below each other."""
    from matplotlib.figure import Figure

    with styled():
        figure = Figure(figsize=(PAGE_WIDTH, PANEL_HEIGHT * len(histories) + 0.4), layout="constrained")
        panels = figure.subplots(len(histories), squeeze=False)[:, 0]
        for axes, history in zip(panels, histories, strict=True):
            _panel(axes, history)
        figure.supylabel("time / reference workload", fontsize=7)
    return figure


def _panel(axes: "Axes", history: History) -> None:
    values = [run.relative.value for run in history.runs]
    errors = [
        [run.relative.value - run.relative.low for run in history.runs],
        [run.relative.high - run.relative.value for run in history.runs],
    ]
    places = list(range(len(values)))
    colour = looks([history.cell.system])[history.cell.system].colour
    axes.errorbar(places, values, yerr=errors, fmt="o-", markersize=3, linewidth=1, color=colour)
    for step in history.steps:
        axes.axvline(step - 0.5, color=INK, linewidth=0.8, linestyle="--")
        axes.annotate(f"{history.change(step) - 1:+.0%}", (step - 0.4, max(values)), fontsize=6, color=INK, va="top")
    shown = places[:: max(len(places) // 8, 1)]
    axes.set_xticks(shown, [history.runs[at].commit[:7] for at in shown])
    axes.set_title(f"{cell_words(history.cell)}, {history.machine}")
