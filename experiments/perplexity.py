"""Tables 5 and 8: perplexity of every system, trained from scratch on the same tokens, or of --checkpoint FOLDERs.

Every system and seed reads the same tokens in the same order; n-grams of those tokens stand beside. A run that is done
is not made again, one that was interrupted goes on. Records go to results/, runs and checkpoints to runs/.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retbench import options
from retbench.errors import UsageError
from retbench.learning import experiment
from retbench.record import Record
from retbench.registry import numbers_beside
from retbench.report.exhibit import Exhibit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from retbench.report.tables import Table

SYSTEMS = "retnet,transformer-flash,rwkv,h3,hyena,linear-transformer,lstm"
BASES = ("retnet", "transformer-flash")
CONTEXT = "512"

Checkpoints = Annotated[
    list[str] | None,
    typer.Option("--checkpoint", help="Score this folder, or hub:OWNER/NAME@REVISION, as it is; repeatable."),
]
Tokens = Annotated[
    str, typer.Option(help="Tokens to train on: 512k, 2m; of checkpoints: of each corpus at most, default 64k.")
]
Context = Annotated[
    str, typer.Option(help="Of checkpoints whose state grows, such as Transformers: tokens of their windows.")
]
Windows = Annotated[bool, typer.Option("--windows", help="Of checkpoints: windows for all, no state is carried.")]


def command(
    systems: options.Systems = SYSTEMS,
    preset: experiment.PresetName = "auto",
    seeds: experiment.Seeds = None,
    tokens: Tokens = "",
    budget: experiment.Budget = "",
    corpus: experiment.Corpora = None,
    checkpoint: Checkpoints = None,
    context: Context = CONTEXT,
    windows: Windows = False,
    dtype: options.DtypeName = "auto",
    device: options.DeviceName = "auto",
    threads: options.Threads = 0,
    out: options.Out = Path(),
    fresh: experiment.Fresh = False,
    dry_run: experiment.DryRun = False,
    output_format: options.Format = "table",
) -> None:
    if checkpoint:
        from retbench.perplexity import Settings, score_checkpoints

        if (systems, preset, seeds, budget, fresh, dry_run) != (SYSTEMS, "auto", None, "", False, False):
            raise UsageError(
                "--checkpoint scores folders as they are: --systems, --preset, --seeds, --budget, --fresh and --dry-run"
                " belong to training from scratch"
            )
        settings = Settings(context, windows, tokens or "64k", dtype, device, threads, output_format)
        score_checkpoints(checkpoint, corpus, settings)
        return
    if (context, windows) != (CONTEXT, False):
        raise UsageError("--context and --windows belong to --checkpoint: what is trained is read as its preset says")

    from retbench.session import Report

    asked = experiment.Asked(
        systems, preset, seeds, tokens, budget, corpus, dtype, device, threads, out, fresh, dry_run, output_format
    )
    experiment.run("perplexity", asked, Report(tables, figures))


def tables(records: Sequence[Record]) -> "list[Table]":
    """Table 5, paired differences, by position, and Table 8."""
    from retbench.report.learning_tables import learning_tables

    return learning_tables(records, numbers_beside(__file__), "Table 5, trained here from scratch", BASES)


def figures(records: Sequence[Record]) -> "Mapping[str, Figure]":
    """Learning curves and perplexity by position."""
    from retbench.report.figures import learning

    return learning.figures(records)


EXHIBITS = (
    Exhibit(
        "table5",
        "Tables 5 and 8: perplexity",
        "perplexity",
        "retbench perplexity",
        tables,
        figures,
        systems=tuple(SYSTEMS.split(",")),
    ),
)
