"""Figure 1 (left): bars of memory, throughput and latency at the largest length and batch, with the paper's ratio."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retbench.record import Record
from retbench.report.conditions import hardware_words
from retbench.report.frame import BASELINE, CHALLENGER, TRANSFORMERS, headline_group
from retbench.report.layout import caption, is_column
from retbench.report.numbers import memory_unit, ratio, significant
from retbench.report.paper import Paper, Quantity
from retbench.report.style import COLUMN_WIDTH, PAPER, Look, looks, named, styled


@dataclass(frozen=True)
class Bar:
    """One bar: its value with the ends of its interval, or the status of a cell that has none."""

    name: str
    system: str
    value: float | None
    low: float | None = None
    high: float | None = None
    status: str = ""


@dataclass(frozen=True)
class Panel:
    """One of the three quantities; ``more_is_better`` turns the ratio round. ``theirs`` is the paper's ratio."""

    title: str
    bars: list[Bar]
    theirs: float
    more_is_better: bool = False

    @property
    def ours(self) -> float | None:
        """RetNet's value."""
        return next((bar.value for bar in self.bars if bar.system == CHALLENGER), None)

    def advantage(self, value: float | None) -> float | None:
        """How many times better RetNet is than a system of this value."""
        if not value or not self.ours:
            return None
        return self.ours / value if self.more_is_better else value / self.ours

    @property
    def ghost(self) -> float | None:
        """Where the Transformer would be if RetNet's advantage were the paper's; None without a Transformer."""
        if not self.ours or not any(bar.system.startswith(TRANSFORMERS) for bar in self.bars):
            return None
        return self.ours / self.theirs if self.more_is_better else self.ours * self.theirs


def draw(records: Sequence[Record], paper: Paper, width: float = COLUMN_WIDTH) -> Figure:
    """Three panels of bars, stacked in a column, side by side on a page; ``width`` in inches.

    Raises ValueError without records.
    """
    if not records:
        raise ValueError("no records to draw")
    shown = headline_group(records)
    panels = _panels(shown, paper)
    look = looks(record.cell.system for record in shown)
    with styled():
        rows = len(panels[0].bars) + 1
        height = 0.75 + 3 * (0.42 + 0.155 * rows) if is_column(width) else 1.05 + 0.19 * rows
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(3, 1) if is_column(width) else figure.subplots(1, 3, sharey=True)
        for ax, panel in zip(axes, panels, strict=True):
            _draw_panel(ax, panel, look)
        caption(figure, _words(shown, paper, any(panel.ghost for panel in panels)), width)
    return figure


def _panels(records: Sequence[Record], paper: Paper) -> list[Panel]:
    """Memory, throughput averaged over positions, and latency at the last position."""
    known = [record.metrics.get("peak_memory_bytes") for record in records]
    unit, size = memory_unit([max((value for value in known if value), default=None)])
    titles: dict[Quantity, tuple[str, str, float, bool]] = {
        "memory": (f"peak memory, {unit}", "peak_memory_bytes", size, False),
        "throughput": ("throughput, tokens/s", "tokens_per_s_mean", 1, True),
        "latency": ("latency, ms", "tpot_ms", 1, False),
    }
    return [
        Panel(title, [_bar(record, metric, scale) for record in records], paper.claims[quantity].ratio.value, more)
        for quantity, (title, metric, scale, more) in titles.items()
    ]


def _bar(record: Record, metric: str, scale: float) -> Bar:
    value, low, high = (record.metrics.get(f"{metric}{end}") for end in ("", "_low", "_high"))
    status = record.status if record.status != "ok" else "not measured"
    name = named(record.cell.system)
    if not value:
        return Bar(name, record.cell.system, None, status=status)
    return Bar(name, record.cell.system, value / scale, low and low / scale, high and high / scale)


def _draw_panel(ax: Axes, panel: Panel, look: dict[str, Look]) -> None:
    """A bar a system, RetNet first, and below them the paper's ratio as a hollow bar."""
    ax.set_title(panel.title)
    for place, bar in enumerate(panel.bars):
        colour = look[bar.system].colour
        ax.barh(place, bar.value or 0, height=0.7, color=colour, label=f"_{bar.system}")
        if bar.value is not None and bar.low and bar.high:
            ends = [[max(bar.value - bar.low, 0)], [max(bar.high - bar.value, 0)]]
            ax.errorbar([bar.value], [place], xerr=ends, color=PAPER, elinewidth=0.8)
        _label(ax, place, bar.high or bar.value or 0, *_bar_words(panel, bar), colour)
    names = [bar.name for bar in panel.bars]
    if panel.ghost:
        names.append("by the paper's ratio")
        ax.barh(len(panel.bars), panel.ghost, height=0.7, facecolor="none", edgecolor=PAPER, linewidth=0.8,
                label=f"_{BASELINE}, paper")  # fmt: skip
        _label(ax, len(panel.bars), panel.ghost, "", f"{panel.theirs:g}×", PAPER)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.6)
    ax.set_xlim(0, _room(panel))
    ax.grid(False)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", bottom=False, labelbottom=False)
    ax.spines["bottom"].set_visible(False)


def _bar_words(panel: Panel, bar: Bar) -> tuple[str, str]:
    """The value of a bar and RetNet's advantage over it; a failed cell says its status."""
    if bar.value is None:
        return f"× {bar.status}", ""
    return significant(bar.value), f"{ratio(panel.advantage(bar.value))}×" if bar.system != CHALLENGER else ""


def _label(ax: Axes, place: int, end: float, words: str, bold: str, colour: str) -> None:
    """The value beside the end of a bar, with the ratio in bold after it."""
    label = ax.annotate(words, (end, place), (3, 0), textcoords="offset points", va="center", fontsize=6.5,
                        color=colour if words.startswith("×") else None)  # fmt: skip
    at, system = ((1.0, 0.5), label) if words else ((end, place), "data")
    ax.annotate(bold, at, (3, 0), xycoords=system, textcoords="offset points", va="center", fontsize=6.5,
                fontweight="bold", color=colour)  # fmt: skip


def _room(panel: Panel) -> float:
    """The end of the axis: the longest bar and its label."""
    ends = [bar.high or bar.value or 0.0 for bar in panel.bars] + [panel.ghost or 0.0]
    return 1.65 * max(ends) or 1.0


def _words(shown: Sequence[Record], paper: Paper, hollow: bool) -> str:
    """The conditions of both sides."""
    cell = shown[0].cell
    ours = (
        f"{cell.size}, batch {cell.batch_size}, length {cell.seq_len}, {hardware_words(shown)}. Memory of decode and "
        "latency (TPOT) at the last position, throughput averaged over positions. × is RetNet's advantage."
    )
    bars = "; ".join(
        f"{quantity} {significant(pair.transformer)} and {significant(pair.retnet)} {pair.unit}"
        for quantity, pair in paper.bars.items()
    )
    theirs = (
        f" Hollow: where {BASELINE} would be by the paper's ratio ({paper.setting.words}; its bars, Transformer and "
        f"RetNet: {bars})."
    )
    return ours + theirs * hollow
