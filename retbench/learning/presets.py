"""Presets of learning experiments: a data file each, and the cells that one makes of systems and seeds."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from models.catalogue import systems as known_systems
from retbench.devices import find_device
from retbench.errors import UsageError
from retbench.learning.run import ORDERS
from retbench.quantities import format_duration
from retbench.registry import choose
from retbench.spec import Cell, Checkpointing, Dtype, Learning, Loss, Schedule, Training

FOLDER = Path(__file__).parent / "presets"
LEAST_WARM_UP = 64  # steps, in runs that are long enough: with fewer some systems diverge at the cpu preset's rate
SIDE_BY_SIDE = 2  # runs, where the stated speeds were measured


@dataclass(frozen=True)
class Preset:
    """A setting in which every system is trained. Lengths and counts are in tokens unless the name says more."""

    name: str
    summary: str
    corpus: str
    others: tuple[str, ...]
    tokenizer: str
    tokens: int
    seq_len: int
    batch_size: int
    grad_accumulation: int
    warm_up_share: float  # of the steps
    schedule: Schedule
    loss: Loss
    checkpointing: Checkpointing
    dtype: Dtype
    device: str
    plan_for: str  # the specification that a dry run plans for
    seeds: int
    documents: int  # of a corpus that are scored at most
    excerpt: int
    contexts: tuple[int, ...]
    l_max: int
    sizes: Mapping[str, float]  # to the highest learning rate of each
    distinct_tokens: int | None = None  # that are read again and again, where not all are
    n_layers: int | None = None  # where they are not the size's
    tokens_per_s: Mapping[str, float] = field(default_factory=dict)  # of SIDE_BY_SIDE runs, by system or "system size"
    scoring_s: float = 0.0  # of a run, and its start

    @property
    def step_tokens(self) -> int:
        return self.seq_len * self.batch_size * self.grad_accumulation

    def cells(self, systems: Sequence[str], seeds: int) -> list[Cell]:
        """Every system at every size with seeds 0, 1, ...; what depends on the texts is left open."""
        return [
            self._cell(system, size, learning_rate, seed)
            for size, learning_rate in self.sizes.items()
            for seed in range(seeds)
            for system in systems
        ]

    def _cell(self, system: str, size: str, learning_rate: float, seed: int) -> Cell:
        steps = -(-self.tokens // self.step_tokens)
        is_hyena = system in known_systems() and known_systems()[system].module == "models.hyena"
        return Cell(
            system=system,
            size=size,
            workload="learn",
            seq_len=self.seq_len,
            batch_size=self.batch_size,
            dtype=self.dtype,
            device=self.device,
            threads=1,  # of a run: its losses shall not depend on how many cores there are
            seed=seed,
            n_layers=self.n_layers,
            l_max=self.l_max if is_hyena else None,
            training=Training(self.checkpointing, self.grad_accumulation, self.loss),
            learning=Learning(
                corpus=self.corpus,
                tokenizer=self.tokenizer,
                tokens=steps * self.step_tokens,
                learning_rate=learning_rate,
                warm_up=max(int(self.warm_up_share * steps), min(LEAST_WARM_UP, steps // 2)),
                schedule=self.schedule,
                others=self.others,
                excerpt=self.excerpt,
                contexts=self.contexts,
                data=(),
                vocabulary="",
                distinct_tokens=self.distinct_tokens,
                documents=self.documents,
            ),
        )

    def within(self, budget_s: float, systems: Sequence[str], seeds: int) -> "Preset":
        """The preset with the tokens that all runs together read in a time, by the speeds that the file states.

        They depend on nothing that is measured now: asked again, the same command finds the same cells.
        """
        if not self.tokens_per_s:
            raise UsageError(f"preset {self.name} states no speeds that a budget could be shared out by: give --tokens")
        trained = [system for system in systems if system not in ORDERS]
        speeds = [self._speed(system, size) for size in self.sizes for system in trained]
        return replace(self, tokens=tokens_within(budget_s, speeds, seeds, self.step_tokens, self.scoring_s))

    def _speed(self, system: str, size: str) -> float:
        """Tokens a second; without a stated one the slowest that is stated."""
        stated = (self.tokens_per_s.get(name) for name in (f"{system} {size}", system))
        return next(filter(None, stated), min(self.tokens_per_s.values()))


def tokens_within(budget_s: float, speeds: Sequence[float], seeds: int, step_tokens: int, beside_s: float) -> int:
    """The tokens of a run, in whole steps, if one at each speed (tokens/s) and seed take so long together.

    Each takes ``beside_s`` beside its steps. Raises UsageError where there is no time for a step.
    """
    a_token_s = sum(1 / speed for speed in speeds)
    needed_s = (len(speeds) * beside_s + step_tokens * a_token_s) * seeds / SIDE_BY_SIDE
    if budget_s < needed_s:
        raise UsageError(
            f"--budget {format_duration(budget_s)} is too small: the start, a step and the scoring of all runs "
            f"({len(speeds) * seeds}) take about {format_duration(needed_s)}"
        )
    tokens = (SIDE_BY_SIDE * budget_s / seeds - len(speeds) * beside_s) / a_token_s
    return int(tokens) // step_tokens * step_tokens


def presets() -> list[str]:
    """The names of the presets that have a file here."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find_preset(name: str, device: str = "auto") -> Preset:
    """The preset of that name; ``auto`` is cpu on the CPU, paper-200m on another device. UsageError for another."""
    if name == "auto":
        name = "cpu" if find_device(device).name == "cpu" else "paper-200m"
    found = choose(name, presets(), "preset")
    if len(found) > 1:
        raise UsageError(f"an experiment has one preset, not {', '.join(found)}")
    data = tomllib.loads((FOLDER / f"{found[0]}.toml").read_text(encoding="utf-8"))
    lists = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
    return Preset(found[0], **{**data, **lists})
