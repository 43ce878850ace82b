"""What the figures share of their layout: the width at which panels stack, and the caption below."""

import textwrap

from matplotlib.figure import Figure

from retbench.report.style import PAGE_WIDTH, PAPER, plain

CAPTION_POINTS = 5.8
CHARACTERS_PER_INCH = 21.5  # of the caption's type, measured


def is_column(width: float) -> bool:
    """Whether a figure of ``width`` inches stands in a column, so that its panels are stacked."""
    return width < 0.75 * PAGE_WIDTH


def caption(figure: Figure, text: str, width: float) -> None:
    """Small grey lines below all panels."""
    lines = textwrap.wrap(plain(text), int(width * CHARACTERS_PER_INCH))
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=CAPTION_POINTS, color=PAPER, linespacing=1.25)
