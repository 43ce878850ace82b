"""Figure 5: perplexity over the size of the model, RetNet beside the Transformer, with fitted power laws.

Every system is trained from scratch at every size of the preset on the same tokens in the same order. The losses over
held-out documents are fitted by a power law of the parameters, and the paper's points, estimates, stand beside them.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retbench import options
from retbench.devices import find_device
from retbench.learning import experiment
from retbench.learning.run import ORDERS
from retbench.record import Record
from retbench.registry import numbers_beside
from retbench.report.exhibit import Exhibit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from retbench.report.tables import Table

SYSTEMS = "retnet,transformer-flash"
PRESETS = {"cpu": "scaling-cpu", "cuda": "paper"}  # by device


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

    chosen = PRESETS[find_device(device).name] if preset == "auto" else preset
    asked = experiment.Asked(
        systems, chosen, seeds, tokens, budget, corpus, dtype, device, threads, out, fresh, dry_run, output_format
    )
    setting, names, number = asked.setting()
    cells = [cell for cell in setting.cells(names, number) if cell.system not in ORDERS]
    experiment.run_cells("scaling", cells, setting, asked, Report(tables, figures))


def tables(records: Sequence[Record]) -> "list[Table]":
    """Perplexity by size, the fits with their crossing, and the paper's points."""
    from retbench.report.scaling_tables import scaling_tables

    return scaling_tables(records, paper())


def figures(records: Sequence[Record]) -> "Mapping[str, Figure]":
    """Figure 5, ours and the paper's."""
    from retbench.report.figures.figure5 import draw
    from retbench.report.scaling_fit import main_setting

    return {"figure5": draw(records, paper())} if main_setting(records) else {}


@cache
def paper() -> dict[str, Any]:
    """What experiments/scaling.toml says."""
    return numbers_beside(__file__)


EXHIBITS = (Exhibit("figure5", "Figure 5: scaling curves", "scaling", "retbench scaling", tables, figures, sized=True),)
