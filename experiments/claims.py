"""The claims ledger: what the paper claims in numbers, judged by all stored records; first, whether the forms agree.

That the parallel, recurrent and chunkwise forms of retention compute the same is measured here, in float64; everything
else comes from the records of the other experiments. The claims and their predicates are in claims.toml.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from retbench import options
from retbench.devices import find_device
from retbench.record import Record
from retbench.report.exhibit import Exhibit
from retbench.spec import Cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from retbench.report.claims import Claim
    from retbench.report.tables import Table

SIZE, SEQ_LEN, BUDGET_S = "mini", 512, 60.0  # of the forms: more than two chunks, in some seconds


def command(
    device: options.DeviceName = "auto",
    threads: options.Threads = 0,
    out: options.Out = Path(),
    fresh: options.Fresh = False,
    dry_run: options.DryRun = False,
    seed: options.Seed = 0,
    output_format: options.Format = "table",
) -> None:
    options.check_format(output_format)
    chosen = find_device(device)
    count = options.check_threads(threads, chosen)
    cell = Cell("retnet", SIZE, "forms", SEQ_LEN, 1, "fp32", chosen.name, count, seed=seed, chunk_size=SEQ_LEN // 4)

    from retbench.report.draw import read_records
    from retbench.session import Report, Session

    def tables(records: Sequence[Record]) -> "list[Table]":
        stored = read_records(out / "results").records if records else ()
        return ledger(stored or records)

    session = Session("claims", chosen, [cell], out, BUDGET_S, fresh, dry_run, output_format)
    session.run(Report(tables, figures))


def ledger(records: Sequence[Record]) -> "list[Table]":
    """Every claim with its verdict."""
    from retbench.report.claims_table import claims_table
    from retbench.report.draw import exhibits
    from retbench.report.verdicts import judge

    return [claims_table([judge(claim, records) for claim in paper_claims()], exhibits())]


def figures(records: Sequence[Record]) -> "Mapping[str, Figure]":
    """None: a ledger is a table."""
    return {}


@cache
def paper_claims() -> "list[Claim]":
    """The claims of claims.toml."""
    from retbench.report.claims import read_claims

    return read_claims(Path(__file__).with_suffix(".toml"))


EXHIBITS = (
    Exhibit(
        "claims",
        "What the paper claims, and what was measured",
        "claims",
        "retbench claims",
        ledger,
        figures,
        sums_up=True,
    ),
)
