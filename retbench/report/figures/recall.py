"""Associative recall: the share of queries that each system answers over the number of key-value pairs."""

from collections.abc import Sequence
from statistics import mean

from matplotlib.figure import Figure

from retbench.record import Record
from retbench.report.conditions import hardware_words
from retbench.report.layout import caption
from retbench.report.recall_table import accuracies, main_setting
from retbench.report.style import PAGE_WIDTH, PAPER, looks, plain, styled


def draw(records: Sequence[Record]) -> Figure:
    """A line a system with the range over its seeds, and chance."""
    shown = main_setting(records)
    found = accuracies(shown)
    look = looks(found)
    numbers = sorted({pairs for of_system in found.values() for pairs in of_system})
    with styled():
        figure = Figure(figsize=(PAGE_WIDTH, 3.2), layout="constrained")
        ax = figure.add_subplot()
        ax.set(xscale="log", xlabel="key-value pairs", ylabel="queries answered", ylim=(0, 1.03))
        for system, of_system in found.items():
            means = [mean(of_system[pairs]) for pairs in numbers]
            ends = [
                [middle - min(of_system[pairs]) for middle, pairs in zip(means, numbers, strict=True)],
                [max(of_system[pairs]) - middle for middle, pairs in zip(means, numbers, strict=True)],
            ]
            line = look[system]
            ax.errorbar(
                numbers, means, yerr=ends, color=line.colour, marker=line.marker, label=plain(system), elinewidth=0.7
            )
        ax.plot(numbers, [1 / pairs for pairs in numbers], color=PAPER, linestyle=(0, (3, 2)), label="chance")
        ax.set_xticks(numbers, [str(pairs) for pairs in numbers])
        ax.minorticks_off()
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        caption(figure, _words(shown), PAGE_WIDTH)
    return figure


def _words(shown: Sequence[Record]) -> str:
    recall = shown[0].cell.recall if shown else None
    if recall is None:
        return "no records"
    seeds = len({record.cell.seed for record in shown})
    return (
        f"{shown[0].cell.size} models trained on {recall.tokens:,} generated tokens at the learning rate "
        f"{recall.learning_rate:g}, {hardware_words(shown)}. Points are means over {seeds} "
        f"seed{'s' * (seeds > 1)}, bars the range."
    )
