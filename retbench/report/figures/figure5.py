"""Figure 5: the loss over the parameters with fitted power laws, and the paper's perplexities, which are estimates."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from models.sizes import SIZES
from retbench.record import Record
from retbench.report.conditions import hardware_words
from retbench.report.layout import caption
from retbench.report.panels import DASHES, DOTS, HOLLOW
from retbench.report.scaling_fit import Losses, fit, losses_by_system, main_setting
from retbench.report.style import PAGE_WIDTH, PAPER, Look, looks, plain, styled


def draw(records: Sequence[Record], paper: Mapping[str, Any]) -> Figure:
    """Ours on the left, log-log, a point a run; the paper's on the right."""
    shown = main_setting(records)
    losses = losses_by_system(shown)
    points = {name: values for name, values in paper["perplexity"].items() if name != "sizes"}
    look = looks([*losses, *points])
    with styled():
        figure = Figure(figsize=(PAGE_WIDTH, 2.8), layout="constrained")
        ours, theirs = figure.subplots(1, 2)
        _draw_ours(ours, losses, look)
        _draw_paper(theirs, paper["perplexity"]["sizes"], points, look)
        caption(figure, _words(shown, paper), PAGE_WIDTH)
    return figure


def _draw_ours(ax: Axes, losses: Mapping[str, Losses], look: Mapping[str, Look]) -> None:
    """A point a run, the fitted law as a dashed line through their means: it is a model."""
    ax.set(xscale="log", yscale="log", title="trained here", xlabel="parameters", ylabel="held-out loss, nats a token")
    for system, of_system in losses.items():
        colour, marker = look[system].colour, look[system].marker
        for parameters, runs in zip(of_system.parameters, of_system.of_seeds, strict=True):
            ax.plot([parameters] * len(runs), runs, linestyle="none", color=colour, marker=marker, alpha=0.6)
        law = fit(of_system)
        label = f"{plain(system)}  N^-{law.exponent.value:.3f}" if law else plain(system)
        if law:
            line = np.geomspace(min(of_system.parameters), max(of_system.parameters))
            ax.plot(line, law.scale * line**-law.exponent.value, color=colour, linestyle=DASHES, label=label)
        else:
            ax.plot(of_system.parameters, of_system.means, color=colour, label=label)
    sizes = sorted({parameters for of_system in losses.values() for parameters in of_system.parameters})
    ax.set_xticks(sizes, [f"{parameters / 1e6:.2g}M" for parameters in sizes])
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    if losses:
        ax.legend()
    else:
        ax.text(0.5, 0.5, "no seed of all systems is done", transform=ax.transAxes, ha="center", color=PAPER)


def _draw_paper(
    ax: Axes, sizes: Sequence[str], points: Mapping[str, Sequence[float]], look: Mapping[str, Look]
) -> None:
    """The paper's points by size, hollow."""
    ax.set(xscale="log", title="the paper's, estimated", xlabel="parameters", ylabel="validation perplexity")
    parameters = [SIZES[size].layer_parameters for size in sizes]
    for system, values in points.items():
        colour, marker = look[system].colour, look[system].marker
        label = f"{plain(system)}, paper"
        ax.plot(parameters, values, color=colour, marker=marker, linestyle=DOTS, label=label, **HOLLOW)
    ax.set_xticks(parameters, [size.upper() for size in sizes])
    ax.minorticks_off()
    ax.legend()


def _words(shown: Sequence[Record], paper: Mapping[str, Any]) -> str:
    learning = shown[0].cell.learning if shown else None
    if learning is None:
        return f"Right, hollow: {paper['source']}."
    seeds = len({record.cell.seed for record in shown})
    return (
        f"Left: {learning.tokens:,} tokens of {learning.corpus} by {learning.tokenizer}, {hardware_words(shown)}, "
        f"{seeds} seed{'s' * (seeds > 1)}, a point a run; dashed: fitted power laws of the parameters without "
        "embedding and head. "
        f"Right, hollow: {paper['source']}."
    )
