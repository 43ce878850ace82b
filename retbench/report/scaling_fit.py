"""Power laws of the loss over the parameters, with intervals over seeds and documents, and where two cross."""

# G sizes, S seeds, D documents

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from models.sizes import SIZES
from retbench.learning.run import ORDERS
from retbench.record import Record
from retbench.report.learning_scores import in_domain
from retbench.report.trained import longest_setting
from retbench.spec import Cell
from retbench.statistics import Interval, crossed_interval

Floats = npt.NDArray[np.float64]
LEAST, MOST = 1e2, 1e16  # parameters between which the ends of a crossing are looked for
ROUNDING = 1e-9  # of an exponent: a smaller difference is what sums of float64 leave
HALVINGS = 30  # of the way to such an end, on a scale of logarithms


@dataclass(frozen=True)
class Losses:
    """Nats of each document by the models of one system, which were trained alike but for their size and seed."""

    nats: Floats  # (G, S, D)
    tokens: Floats  # (D,)
    parameters: tuple[int, ...]  # of each size, without embedding and head

    @property
    def means(self) -> Floats:
        """Nats a token of every size (G,)."""
        found: Floats = self.nats.mean(axis=1).sum(axis=1) / self.tokens.sum()
        return found

    @property
    def of_seeds(self) -> Floats:
        """Nats a token of every run (G, S)."""
        found: Floats = self.nats.sum(axis=2) / self.tokens.sum()
        return found

    def moved(self, shares: Floats) -> Floats:
        """What a sum of log losses with ``shares`` (G,) owes to each seed and document (S, D), to first order."""
        found: Floats = np.einsum("g,gsd->sd", shares / self.means, self.nats)
        return found


@dataclass(frozen=True)
class PowerLaw:
    """loss = scale * parameters^-exponent, in nats."""

    scale: float
    exponent: Interval

    def at(self, parameters: float) -> float:
        return self.scale / math.exp(self.exponent.value * math.log(parameters))


def fit(losses: Losses) -> PowerLaw | None:
    """Least squares of log loss over log parameters; None with fewer than three sizes."""
    if len(losses.parameters) < 3:
        return None
    fall, height = _slope(losses), _height(losses, 1.0)
    exponent = float(fall @ np.log(losses.means))
    half = _half_width(losses.moved(fall), losses)
    return PowerLaw(
        math.exp(float(height @ np.log(losses.means))), Interval(exponent, exponent - half, exponent + half)
    )


def _slope(losses: Losses) -> Floats:
    """By which shares the log losses of the sizes (G,) make the exponent of the fitted law."""
    logs = np.log(np.asarray(losses.parameters, dtype=float))
    centred = logs - logs.mean()
    found: Floats = -centred / np.square(centred).sum()
    return found


def _height(losses: Losses, parameters: float) -> Floats:
    """By which shares they make the fitted law's log loss at so many parameters (G,)."""
    logs = np.log(np.asarray(losses.parameters, dtype=float))
    found: Floats = 1 / logs.size - (math.log(parameters) - logs.mean()) * _slope(losses)
    return found


def _half_width(moved: Floats, losses: Losses) -> float:
    """Of the 95 % interval of what seeds and documents have moved so (S, D)."""
    found = crossed_interval(moved.tolist(), losses.tokens.tolist())
    return (found.high - found.low) / 2


def difference(one: Losses, other: Losses) -> list[Interval]:
    """Mean loss of ``one`` less that of ``other`` at each size, over the same seeds and documents."""
    return [crossed_interval(nats.tolist(), one.tokens.tolist()) for nats in one.nats - other.nats]


def crossing(one: Losses, other: Losses) -> Interval | None:
    """The parameters at which two laws give one loss, None where it cannot be said that they cross once.

    That is so where the interval of the difference of their exponents holds 0, or where that is a rounding error: they
    may be parallel. Else the interval is where the laws cannot be told apart (Fieller 1954).
    """
    laws = fit(one), fit(other)
    if laws[0] is None or laws[1] is None:
        return None
    fall = laws[0].exponent.value - laws[1].exponent.value
    half = _half_width(one.moved(_slope(one)) - other.moved(_slope(other)), one)
    if abs(fall) <= max(half, ROUNDING * abs(laws[0].exponent.value)):
        return None
    value = math.exp(min(700.0, max(-700.0, math.log(laws[0].scale / laws[1].scale) / fall)))
    return Interval(value, *(_edge(one, other, value, end) for end in (min(value, LEAST), max(value, MOST))))


def _edge(one: Losses, other: Losses, inside: float, outside: float) -> float:
    """How far from ``inside`` towards ``outside`` two laws cannot be told apart."""
    if _alike(one, other, outside):
        return outside
    for _ in range(HALVINGS):
        middle = math.sqrt(inside) * math.sqrt(outside)
        inside, outside = (middle, outside) if _alike(one, other, middle) else (inside, middle)
    return inside


def _alike(one: Losses, other: Losses, parameters: float) -> bool:
    """Whether the laws of two systems cannot be told apart there."""
    shares = _height(one, parameters)
    apart = abs(float(shares @ (np.log(one.means) - np.log(other.means))))
    return apart <= _half_width(one.moved(shares) - other.moved(shares), one)


def lead_at(one: Losses, other: Losses, parameters: float) -> Interval | None:
    """The extrapolated loss of ``one`` less that of ``other`` at so many parameters, in nats."""
    laws = fit(one), fit(other)
    if laws[0] is None or laws[1] is None:
        return None
    shares, heights = _height(one, parameters), [law.at(parameters) for law in laws if law]
    half = _half_width(heights[0] * one.moved(shares) - heights[1] * other.moved(shares), one)
    value = heights[0] - heights[1]
    return Interval(value, value - half, value + half)


def parameters_of(cell: Cell) -> int:
    """Those that a size gives to every system, without embedding and head: 12 d_model^2 a layer, within 1 %."""
    size = SIZES[cell.size]
    return replace(size, n_layers=cell.n_layers or size.n_layers).layer_parameters


def main_setting(records: Sequence[Record]) -> list[Record]:
    """Those of the setting that was trained longest, of all sizes; no n-grams."""
    of_models = [record for record in records if record.cell.learning and record.cell.system not in ORDERS]
    return longest_setting(of_models, _of_any_size)


def losses_by_system(records: Sequence[Record]) -> dict[str, Losses]:
    """Of each system at the sizes where all systems have a finished seed, of the seeds that all these sizes share."""
    done = {_place(record.cell): record for record in records if record.status == "ok"}
    systems = list(dict.fromkeys(record.cell.system for record in records))
    every = sorted({record.cell.seed for record in records})
    whole = {
        size: [seed for seed in every if all((system, size, seed) in done for system in systems)]
        for size in sizes_of(records)
    }
    sizes = [size for size, found in whole.items() if found]
    seeds = [seed for seed in every if all(seed in whole[size] for size in sizes)]
    if not sizes or not seeds:
        return {}
    found = {}
    for system in systems:
        documents = np.array([[in_domain(done[system, size, seed]) for seed in seeds] for size in sizes], dtype=float)
        parameters = tuple(parameters_of(done[system, size, seeds[0]].cell) for size in sizes)
        found[system] = Losses(documents[..., 0], documents[0, 0, :, 1], parameters)  # of (G, S, D, 2)
    return found


def sizes_of(records: Sequence[Record]) -> list[str]:
    """The smallest first."""
    sizes = {record.cell.size: parameters_of(record.cell) for record in records}
    return sorted(sizes, key=lambda size: sizes[size])


def _of_any_size(cell: Cell) -> Cell:
    """Each size has a learning rate of its own."""
    assert cell.learning is not None, "main_setting has left the others out"
    return replace(cell, size="", learning=replace(cell.learning, learning_rate=0.0))


def _place(cell: Cell) -> tuple[str, str, int]:
    return cell.system, cell.size, cell.seed
