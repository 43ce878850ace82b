"""Table 4 as bars: memory of a GPU by size, the model's dashed and hatched, the paper's hollow, measured a dot."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from retbench.report.layout import caption
from retbench.report.panels import DASHES
from retbench.report.style import PAGE_WIDTH, looks, styled
from retbench.report.training_cost import UNITS, Assumptions, Cost, Peaks, rms

WIDTH = 0.12  # of a bar; sizes are 1 apart


def draw(costs: Sequence[Cost], assumed: Assumptions, measured: Peaks) -> Figure:
    """Pairs of bars for every system, side by side by size, on a page; a dot on the model's where it was measured."""
    systems = list(dict.fromkeys(cost.system for cost in costs))
    look = looks(systems)
    dots = " Dots: measured under the same assumptions." if measured else ""
    with styled():
        figure = Figure(figsize=(PAGE_WIDTH, 2.6), layout="constrained")
        ax = figure.subplots()
        for cost in costs:
            left = cost.place + (systems.index(cost.system) - (len(systems) - 1) / 2) * 2.2 * WIDTH
            colour, named = look[cost.system].colour, cost.place == 0
            label = f"{'' if named else '_'}{cost.system}, model"
            height = cost.memory(assumed)
            drawn = ax.bar(left - WIDTH / 2, height, WIDTH, label=label, color="white", edgecolor=colour)
            drawn.patches[0].set(hatch="//////", linestyle=DASHES)
            if peak := measured.get((cost.system, cost.size)):
                label = f"_{cost.system}, measured"
                ax.plot(left - WIDTH / 2, peak / UNITS[assumed.unit], "o", color=colour, label=label)
            label = f"{'' if named else '_'}{cost.system}, paper"
            ax.bar(
                left + WIDTH / 2, cost.paper_memory, WIDTH, label=label, color="white", edgecolor=colour, linewidth=1
            )
        sizes = list(dict.fromkeys(cost.size for cost in costs))
        ax.set_xticks(range(len(sizes)), sizes)
        ax.grid(False, axis="x")
        ax.set(title="memory of a GPU in training, Table 4", ylabel=f"{assumed.unit} (paper: GB as printed)")
        figure.legend(loc="outside upper center", ncols=3)
        caption(
            figure,
            f"Dashed, hatched: model, not measured: {assumed.words}; none of it is stated by the paper (root mean "
            f"square error {rms(costs, assumed):.1%}). Hollow: the paper, as printed.{dots}",
            PAGE_WIDTH,
        )
    return figure
