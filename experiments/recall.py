"""Beyond the paper: associative recall, where a state of fixed size may be weaker than attention.

Each system is trained on generated sequences of key-value pairs and asked for the value of every key; the table and the
figure show how many it answers over the number of pairs. Records go to results/, the figure to reports/recall/.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from models.catalogue import paper_systems
from models.catalogue import systems as known_systems
from models.sizes import SIZES
from retbench import options, ranks
from retbench.devices import find_device
from retbench.errors import UsageError
from retbench.learning.experiment import (
    PLAN_FOR,
    Budget,
    DryRun,
    Fresh,
    Seeds,
    TrainTokens,
    dry_run,
    run_suite,
)
from retbench.learning.presets import tokens_within
from retbench.quantities import parse_counts, parse_duration
from retbench.record import Record
from retbench.registry import choose, numbers_beside
from retbench.report.exhibit import Exhibit
from retbench.spec import Cell, Dtype, Recall
from retbench.train import one_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from retbench.report.tables import Table

SYSTEMS = "transformer-flash,retnet,linear-transformer,lstm,rwkv,h3,hyena"


@dataclass(frozen=True)
class Setting:
    """What experiments/recall.toml says."""

    source: str
    vocab_size: int
    tokens: int
    step_tokens: int
    learning_rate: float
    warm_up_share: float
    seeds: int
    start_s: float
    tokens_per_s: Mapping[str, float]

    def within(self, budget_s: float, systems: Sequence[str], seeds: int) -> int:
        """The tokens of a run if all take so long together, by the speeds of the file: asked again, the same."""
        slowest = min(self.tokens_per_s.values())
        speeds = [self.tokens_per_s.get(system, slowest) for system in systems]
        return tokens_within(budget_s, speeds, seeds, self.step_tokens, self.start_s)


def command(
    systems: options.Systems = SYSTEMS,
    size: Annotated[str, typer.Option(help="See: retbench list sizes.")] = "tiny",
    pairs: Annotated[str, typer.Option(help="Key-value pairs of a sequence: lists and ranges, 2-64*2.")] = "2-64*2",
    tokens: TrainTokens = "",
    budget: Budget = "",
    seeds: Seeds = None,
    dtype: options.DtypeName = "auto",
    device: options.DeviceName = "auto",
    threads: options.Threads = 0,
    out: options.Out = Path(),
    fresh: Fresh = False,
    plan_only: DryRun = False,
    output_format: options.Format = "table",
) -> None:
    from rich.console import Console

    ranks.check_alone()
    options.check_format(output_format)
    chosen = find_device(device)
    names, numbers = choose(systems, paper_systems(), "system"), parse_counts(pairs, "--pairs")
    setting = Setting(**numbers_beside(__file__))
    if max(numbers) > setting.vocab_size // 2:
        raise UsageError(f"--pairs {max(numbers)} is too many: there are {setting.vocab_size // 2} keys")
    seeds = seeds or setting.seeds
    recall = Recall(
        pairs=tuple(sorted(set(numbers))),
        tokens=_tokens(setting, names, seeds, tokens, budget),
        step_tokens=setting.step_tokens,
        learning_rate=setting.learning_rate,
        warm_up_share=setting.warm_up_share,
    )
    checked = options.trainable(options.check_dtype("fp32" if dtype == "auto" else dtype))
    cell = _cell(recall, setting.vocab_size, one_of(size, SIZES, "size"), checked, chosen.name)
    cells = [replace(cell, system=name, seed=seed, l_max=_l_max(name, cell)) for seed in range(seeds) for name in names]
    console = Console(stderr=True)
    console.print(_choice(cell, names, seeds), soft_wrap=True, markup=False, highlight=False)
    if plan_only:
        dry_run(cells, PLAN_FOR[chosen.name], output_format)
        return

    from retbench.learning.suite import Suite
    from retbench.session import Report

    jobs = options.check_threads(threads, chosen) if chosen.name == "cpu" else 1
    run_suite(Suite("recall", cells, chosen, None, out, jobs), Report(tables, figures), fresh, output_format, console)


def tables(records: Sequence[Record]) -> "list[Table]":
    """Accuracy over the number of pairs, a row a system."""
    from retbench.report.recall_table import recall_table

    return [recall_table(records)]


def figures(records: Sequence[Record]) -> "Mapping[str, Figure]":
    """One panel, a line a system."""
    from retbench.report.figures.recall import draw

    return {"recall": draw(records)} if records else {}


EXHIBITS = (Exhibit("recall", "Associative recall (beyond the paper)", "recall", "retbench recall", tables, figures),)


def _tokens(setting: Setting, systems: Sequence[str], seeds: int, tokens: str, budget: str) -> int:
    """What each run reads: what was typed, what all runs read in the time, or what the file says."""
    if tokens and budget:
        raise UsageError("--tokens and --budget both set the tokens: give one of them")
    if budget:
        return setting.within(parse_duration(budget, "--budget"), systems, seeds)
    return max(parse_counts(tokens, "--tokens")) if tokens else setting.tokens


def _cell(recall: Recall, vocab_size: int, size: str, dtype: Dtype, device: str) -> Cell:
    """What all runs share; its length and batch are those of the most pairs."""
    length = 3 * max(recall.pairs)
    return Cell(
        system="",
        size=size,
        workload="recall",
        seq_len=length,
        batch_size=max(1, recall.step_tokens // length),
        dtype=dtype,
        device=device,
        threads=1,  # of a run: its losses shall not depend on how many cores there are
        vocab_size=vocab_size,
        recall=recall,
    )


def _l_max(system: str, cell: Cell) -> int | None:
    return cell.seq_len if known_systems()[system].module == "models.hyena" else None


def _choice(cell: Cell, systems: Sequence[str], seeds: int) -> str:
    """What will be run, in a line."""
    assert cell.recall is not None, "that is what is asked for"
    pairs = ", ".join(map(str, cell.recall.pairs))
    return (
        f"{len(systems) * seeds} runs ({', '.join(systems)}; {cell.size}; {seeds} seed{'s' * (seeds > 1)}), each "
        f"{cell.recall.steps} steps of {cell.recall.step_tokens} tokens of {pairs} pairs, {cell.dtype} on {cell.device}"
    )
