"""What was learnt: the training loss over the tokens read, and held-out perplexity by the position in a document."""

from collections.abc import Sequence
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from retbench.learning.run import ORDERS
from retbench.record import Record
from retbench.report.conditions import measured_words
from retbench.report.layout import caption
from retbench.report.learning_scores import by_system, learning_of, main_setting, perplexity, score_of
from retbench.report.style import PAGE_WIDTH, Look, looks, styled

EARLY = 1 / 16  # of the tokens, whose losses are not shown: all else would be flat beside them


def figures(records: Sequence[Record]) -> dict[str, Figure]:
    """By file stem; none where no model has learnt anything yet."""
    return {"learning": draw(records)} if any("curve" in one.notes for one in main_setting(records)) else {}


def draw(records: Sequence[Record]) -> Figure:
    """Two panels of the setting that was trained longest, on a page."""
    shown = main_setting(records)
    systems = {name: runs for name, runs in by_system(shown).items() if runs and name not in ORDERS}
    look = looks(systems)
    with styled():
        figure = Figure(figsize=(PAGE_WIDTH, 3.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        for name, runs in systems.items():
            _draw_curve(left, runs, look[name], name)
            _draw_positions(right, runs, look[name])
        left.set(title="training loss", xlabel="tokens read", ylabel="nats a token")
        left.xaxis.set_major_formatter(EngFormatter(sep=""))
        right.set(title="held-out perplexity", xlabel="position in the document, from")
        figure.legend(loc="outside upper center", ncols=4)
        learning = learning_of(shown[0])
        caption(
            figure,
            f"{learning.tokens:,} tokens of {learning.corpus} by {learning.tokenizer}, means over seeds. "
            f"Right: in windows of {shown[0].cell.seq_len} tokens; dashed: with the state carried. "
            f"{measured_words(shown)}.",
            PAGE_WIDTH,
        )
    return figure


def _draw_curve(ax: Axes, runs: Sequence[Record], look: Look, name: str) -> None:
    """The mean over runs, which all read the same number of tokens at every point."""
    points = [
        (tokens[0], mean(losses))
        for tokens, losses in (
            zip(*point, strict=True) for point in zip(*(r.notes["curve"] for r in runs), strict=True)
        )
        if tokens[0] >= EARLY * learning_of(runs[0]).tokens
    ]
    ax.plot(*zip(*points, strict=True), color=look.colour, marker=look.marker, markevery=8, label=name)


def _draw_positions(ax: Axes, runs: Sequence[Record], look: Look) -> None:
    """A line for each way of reading."""
    for how, style in (("windows", "-"), ("carried", "--")):
        scores = [score["positions"] for run in runs if (score := score_of(run, learning_of(run).corpus, how))]
        if scores:
            firsts = sorted(scores[0], key=int)
            values = [perplexity([positions[first] for positions in scores]) for first in firsts]
            ax.plot(firsts, values, style, color=look.colour, marker=look.marker)  # evenly spaced, by their names
