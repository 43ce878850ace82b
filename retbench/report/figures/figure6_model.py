"""Figure 6 predicted: memory and roofline times of the paper's setting as lines, the paper's own points hollow."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retbench.report.layout import caption
from retbench.report.numbers import length
from retbench.report.panels import DASHES
from retbench.report.paper import Paper
from retbench.report.paper_model import Point
from retbench.report.style import PAGE_WIDTH, looks, styled
from retbench.specifications import Specification

PANELS = (  # quantity, field of a point, title, unit, whether on a logarithmic axis
    ("memory", "memory_gb", "(a) memory", "GB", False),
    ("throughput", "tokens_per_s", "(b) throughput", "tokens/s", True),
    ("latency", "latency_ms", "(c) latency of a token", "ms", True),
)


def draw(points: Sequence[Point], device: Specification, paper: Paper) -> Figure:
    """Three panels over the length, on a page."""
    with styled():
        figure = Figure(figsize=(PAGE_WIDTH, 2.6), layout="constrained")
        for ax, (quantity, field, title, unit, log) in zip(figure.subplots(1, 3), PANELS, strict=True):
            _panel(ax, points, quantity, field)
            ax.set(title=title, xlabel="length (tokens)", ylabel=unit)
            if log:
                ax.set_yscale("log")
            else:
                ax.set_ylim(bottom=0)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4)
        caption(
            figure,
            f"Dashed: model, not measured: {paper.setting.words}, {device.description}; (a) fp16 weights without "
            "embeddings + KV cache or fp16 state, GB = 10^9 bytes; (b), (c) roofline: bytes / bandwidth. Hollow: the "
            f"paper's points, read off its figures ((c): {paper.panels['latency'].how}).",
            PAGE_WIDTH,
        )
    return figure


def _panel(ax: Axes, points: Sequence[Point], quantity: str, field: str) -> None:
    look = looks(point.system for point in points)
    for system in dict.fromkeys(point.system for point in points):
        own = [point for point in points if point.system == system]
        x = [point.seq_len for point in own]
        model = [getattr(point, field) for point in own]
        ax.plot(x, model, color=look[system].colour, linestyle=DASHES, label=f"{system}, model")
        theirs = [(point.seq_len, value) for point in own if (value := point.paper[quantity]) is not None]
        ax.plot(
            [at for at, _ in theirs],
            [value for _, value in theirs],
            color=look[system].colour,
            marker=look[system].marker,
            markerfacecolor="white",
            linestyle="none",
            label=f"{system}, paper",
        )
    ticks = sorted({point.seq_len for point in points})[::2]
    ax.set_xticks(ticks, [length(tick) for tick in ticks])
