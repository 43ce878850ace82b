"""Power laws of the loss over the parameters, with intervals over seeds and documents, and where two cross."""

# R resamples, G sizes, S seeds, D documents

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
from retbench.statistics import RESAMPLES, Interval, expanded_tail

Floats = npt.NDArray[np.float64]


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

    def resampled(self) -> Floats:
        """Means of every size (R, G) over drawn seeds and documents, the same ones for all sizes and systems."""
        generator = np.random.default_rng(0)
        _, n_seeds, n_documents = self.nats.shape
        seeds = generator.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), RESAMPLES)  # (R, S)
        documents = generator.multinomial(n_documents, np.full(n_documents, 1 / n_documents), RESAMPLES)  # (R, D)
        nats = np.einsum("rs,gsd,rd->rg", seeds, self.nats, documents, optimize=True)  # (R, G)
        found: Floats = nats / n_seeds / (documents @ self.tokens)[:, None]
        return found

    @property
    def draws(self) -> int:
        """What a bootstrap draws from, at the least."""
        _, n_seeds, n_documents = map(int, self.nats.shape)
        return min(n_seeds, n_documents) if n_seeds > 1 else n_documents


@dataclass(frozen=True)
class PowerLaw:
    """loss = scale * parameters^-exponent, in nats; ``resampled`` holds log scale and exponent (R, 2)."""

    scale: float
    exponent: Interval
    resampled: Floats

    def at(self, parameters: float) -> float:
        return self.scale / math.exp(self.exponent.value * math.log(parameters))


def fit(losses: Losses) -> PowerLaw | None:
    """Least squares of log loss over log parameters; None with fewer than three sizes."""
    if len(losses.parameters) < 3:
        return None
    logs = np.log(np.asarray(losses.parameters, dtype=float))
    found = _lines(logs, np.log(losses.means)[None])[0]
    resampled = _lines(logs, np.log(losses.resampled()))
    low, high = _ends(resampled[:, 1], losses.draws)
    return PowerLaw(math.exp(found[0]), Interval(float(found[1]), low, high), resampled)


def _lines(logs: Floats, values: Floats) -> Floats:
    """Intercepts and falls (R, 2) of lines through values (R, G) at ``logs`` (G,)."""
    centred = logs - logs.mean()
    falls = -(values @ centred) / np.square(centred).sum()  # (R,)
    return np.stack((values.mean(axis=1) + falls * logs.mean(), falls), axis=1)


def difference(one: Losses, other: Losses) -> list[Interval]:
    """Mean loss of ``one`` less that of ``other`` at each size, over the same seeds and documents."""
    drawn = one.resampled() - other.resampled()  # (R, G)
    return [Interval(float(value), *_ends(drawn[:, at], one.draws)) for at, value in enumerate(one.means - other.means)]


def crossing(one: PowerLaw, other: PowerLaw, draws: int) -> Interval | None:
    """The parameters at which two laws give one loss, None where the bootstrap does not say that they cross once.

    That is so where the interval of the difference of their exponents holds 0: they may be parallel.
    """
    fall = one.resampled[:, 1] - other.resampled[:, 1]  # (R,)
    low, high = _ends(fall, draws)
    if low <= 0 <= high:
        return None
    lead = one.resampled[:, 0] - other.resampled[:, 0]
    with np.errstate(divide="ignore", over="ignore"):
        found = np.exp(np.clip(lead / fall, -700, 700))
    value = math.exp(min(700.0, math.log(one.scale / other.scale) / (one.exponent.value - other.exponent.value)))
    return Interval(value, *_ends(found, draws))


def lead_at(one: PowerLaw, other: PowerLaw, parameters: float, draws: int) -> Interval:
    """The extrapolated loss of ``one`` less that of ``other`` at so many parameters."""
    log = math.log(parameters)
    drawn = [np.exp(law.resampled[:, 0] - law.resampled[:, 1] * log) for law in (one, other)]
    return Interval(one.at(parameters) - other.at(parameters), *_ends(drawn[0] - drawn[1], draws))


def _ends(samples: Floats, draws: int) -> tuple[float, float]:
    """The 95 % interval of a bootstrap."""
    tail = 100 * expanded_tail(draws, 0.025)
    low, high = np.percentile(samples, [tail, 100 - tail])
    return float(low), float(high)


def parameters_of(cell: Cell) -> int:
    """Those that a size gives to every system, without embedding and head: 12 d_model^2 a layer, within 1 %."""
    size = SIZES[cell.size]
    return 12 * size.d_model**2 * (cell.n_layers or size.n_layers)


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
