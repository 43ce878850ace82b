"""Table 6: RetNet without each of its parts, trained from scratch on the same tokens.

Otherwise as retbench perplexity, which shares its runs of RetNet: what one has trained the other finds.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retbench import options
from retbench.learning import experiment
from retbench.record import Record
from retbench.registry import numbers_beside
from retbench.report.exhibit import Exhibit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from retbench.report.tables import Table

SYSTEMS = "retnet,retnet-no-gate,retnet-no-groupnorm,retnet-no-decay,retnet-no-multiscale,retnet-small-heads"
BASES = ("retnet",)


def command(
    systems: options.Systems = SYSTEMS,
    preset: experiment.PresetName = "auto",
    seeds: experiment.Seeds = None,
    tokens: experiment.TrainTokens = "",
    budget: experiment.Budget = "",
    corpus: experiment.Corpora = None,
    dtype: options.DtypeName = "auto",
    device: options.DeviceName = "auto",
    threads: options.Threads = 0,
    out: options.Out = Path(),
    fresh: experiment.Fresh = False,
    dry_run: experiment.DryRun = False,
    output_format: options.Format = "table",
) -> None:
    from retbench.session import Report

    asked = experiment.Asked(
        systems, preset, seeds, tokens, budget, corpus, dtype, device, threads, out, fresh, dry_run, output_format
    )
    experiment.run("ablation", asked, Report(tables, figures))


def tables(records: Sequence[Record]) -> "list[Table]":
    """Table 6, differences to RetNet paired over documents, by position and by context."""
    from retbench.report.learning_tables import learning_tables

    return learning_tables(records, numbers_beside(__file__), "Table 6, trained here from scratch", BASES)


def figures(records: Sequence[Record]) -> "Mapping[str, Figure]":
    """Learning curves and perplexity by position."""
    from retbench.report.figures import learning

    return learning.figures(records)


EXHIBITS = (
    Exhibit(
        "table6",
        "Table 6: the parts of RetNet",
        "ablation",
        "retbench ablation",
        tables,
        figures,
        systems=tuple(SYSTEMS.split(",")),
    ),
)
