"""One colour and marker a system in every figure, safe for colour-blind readers, and the type of the figures."""

import hashlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

COLUMN_WIDTH = 3.4  # inches, of a column of a two-column page
PAGE_WIDTH = 7.0  # inches, of a page
NAME_LENGTH = 40  # characters

INK = "#333333"
PAPER = "#707070"  # whatever is not ours: the paper's axes and captions
GRID = "#e6e6e6"

_RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # shipped with matplotlib: the same letters on every machine
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "errorbar.capsize": 1.5,
    "svg.hashsalt": "retbench",  # ids in an SVG come from this, so the same records give the same bytes
}


@dataclass(frozen=True)
class Look:
    """How one system is drawn."""

    colour: str
    marker: str


# Colours of Okabe and Ito, "Color Universal Design", 2008. The Transformers share the blues and the black. RetNet and
# its ablations, one table of the paper, differ in colour; beside the other systems they differ by marker.
KNOWN = {
    "retnet": Look("#D55E00", "o"),
    "transformer": Look("#0072B2", "s"),
    "transformer-flash": Look("#56B4E9", "^"),
    "transformer-concat-cache": Look("#000000", "D"),
    "linear-transformer": Look("#009E73", "v"),
    "lstm": Look("#E69F00", "8"),
    "rwkv": Look("#CC79A7", "d"),
    "h3": Look("#882255", "X"),
    "hyena": Look("#999933", "*"),
    "retnet-no-gate": Look("#CC79A7", "<"),
    "retnet-no-groupnorm": Look("#332288", ">"),
    "retnet-no-decay": Look("#882255", "h"),
    "retnet-no-multiscale": Look("#999933", "p"),
    "retnet-small-heads": Look("#E69F00", "*"),
    # A peer has the colour of its twin; what differs is the marker.
    "retnet-torchscale": Look("#E69F00", "v"),
    "torchscale": Look("#E69F00", "P"),
    "llama": Look("#009E73", ">"),
    "transformers-llama": Look("#009E73", "X"),
    "transformers-llama-static": Look("#009E73", "h"),
}
# The rest of theirs but the yellow, which white paper swallows, then darker ones of Paul Tol's "muted" scheme.
SPARE_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#332288", "#882255", "#999933")
SPARE = [Look(colour, marker) for marker in "vPX*<>hp" for colour in SPARE_COLOURS]


def looks(systems: Iterable[str]) -> dict[str, Look]:
    """A look for each system: fixed for the main ones, else picked by the name, and distinct among these systems."""
    names = sorted(set(systems))
    chosen = {system: KNOWN[system] for system in names if system in KNOWN}
    for system in (system for system in names if system not in KNOWN):
        start = int.from_bytes(hashlib.sha256(system.encode()).digest()[:4]) % len(SPARE)
        taken = [look.colour for look in chosen.values()]
        free = [look for look in SPARE[start:] + SPARE[:start] if look not in chosen.values()] or SPARE
        chosen[system] = min(free, key=lambda look, taken=taken: taken.count(look.colour))  # type: ignore[misc]
    return chosen


def place(system: str) -> tuple[int, str]:
    """Where a system stands among others: the main ones in the order above, the rest by name."""
    return list(KNOWN).index(system) if system in KNOWN else len(KNOWN), system


def styled() -> AbstractContextManager[None]:
    """Within it matplotlib draws and saves in our style; outside, nothing is changed."""
    import matplotlib

    return matplotlib.rc_context(_RC)


def named(text: str) -> str:
    """The name of a system or machine as figures have room for it."""
    line = " ".join(text.split())
    return plain(line if len(line) <= NAME_LENGTH else f"{line[: NAME_LENGTH - 3]}...")


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: one line, dollars are no formula."""
    return " ".join(text.split()).replace("$", r"\$")
