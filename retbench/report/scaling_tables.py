"""The tables of retbench scaling: perplexity by size, fitted power laws and their crossing, the paper's points."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from retbench.record import Record
from retbench.report.conditions import measured_words
from retbench.report.numbers import ABSENT, significant
from retbench.report.scaling_fit import (
    Losses,
    crossing,
    difference,
    fit,
    lead_at,
    losses_by_system,
    main_setting,
    parameters_of,
    sizes_of,
)
from retbench.report.tables import Column, Entry, Table, shortened
from retbench.report.trained import fate
from retbench.statistics import Interval

CHALLENGER, BASELINES = "retnet", ("transformer", "transformer-flash")  # of the paper's claim; one function
EMPTY, NOT_RUN = Entry(None, ABSENT), "not run"

Paper = Mapping[str, Any]  # experiments/scaling.toml


def scaling_tables(records: Sequence[Record], paper: Paper) -> list[Table]:
    """Of the setting that was trained longest."""
    shown = main_setting(records)
    if not shown:
        columns = (Column("size", "size"),)
        return [Table("scaling", "Figure 5, trained here", columns, (), ("no records",)), paper_table(paper)]
    losses = losses_by_system(shown)
    return [_sizes(shown, losses), _fits(losses, paper), paper_table(paper)]


def _sizes(shown: Sequence[Record], losses: Mapping[str, Losses]) -> Table:
    """A row a size: the perplexity of every system, and how the first differs from the second in loss."""
    systems = list(dict.fromkeys(record.cell.system for record in shown))
    compared = len(systems) > 1 and bool(losses)
    columns = [Column("size", "size", justify="left"), Column("parameters", "parameters", "parameters")]
    for system in systems:
        columns += [
            Column(f"perplexity {system}", system, "perplexity"),
            Column(f"perplexity_spread {system}", f"{system}, half the range", "perplexity", detail="data"),
        ]
    columns += [Column("seeds", "seeds")]
    if compared:
        columns += [
            Column("difference", f"{systems[0]} less\n{systems[1]}", "nats a token"),
            Column("difference_low", "95 % interval", "nats a token"),
            Column("difference_high", "its upper end", "nats a token", detail="data"),
            Column("verdict", "verdict", justify="left"),
        ]
    differences: dict[int, Interval] = {}
    if compared:
        one, other = losses[systems[0]], losses[systems[1]]
        differences = dict(zip(one.parameters, difference(one, other), strict=True))
    rows = []
    for size in sizes_of(shown):
        runs = [record for record in shown if record.cell.size == size]
        entries = [entry for system in systems for entry in _perplexity(runs, system)]
        seeds = len({record.cell.seed for record in runs if record.status == "ok"})
        parameters = parameters_of(next(record.cell for record in shown if record.cell.size == size))
        row = [Entry(size, size), Entry(parameters, f"{parameters / 1e6:.2f}M"), *entries, Entry(seeds, str(seeds))]
        rows.append((*row, *(_difference(differences.get(parameters), systems) if compared else ())))
    return Table("scaling", "Figure 5, trained here", tuple(columns), tuple(rows), _notes(shown))


def _perplexity(runs: Sequence[Record], system: str) -> tuple[Entry, Entry]:
    """The perplexity of the mean loss over seeds, and half its range; or what became of its runs."""
    own = [record for record in runs if record.cell.system == system]
    losses = [record.metrics["loss"] for record in own if record.status == "ok"]
    if not losses:
        return Entry(None, fate(own) or NOT_RUN, failed=bool(own)), EMPTY
    middle, spread = math.exp(sum(losses) / len(losses)), (math.exp(max(losses)) - math.exp(min(losses))) / 2
    words = f"{significant(middle)}" + f" ±{significant(spread, 2)}" * (len(losses) > 1)
    return Entry(middle, words), Entry(spread, significant(spread, 2))


def _difference(found: Interval | None, systems: Sequence[str]) -> tuple[Entry, ...]:
    if found is None:
        return (EMPTY,) * 4
    verdict = "not distinguishable"
    if not found.low <= 0 <= found.high:
        verdict = f"{systems[0 if found.value < 0 else 1]} is better"
    return (
        Entry(found.value, f"{found.value:+.4f}"),
        Entry(found.low, f"{found.low:+.4f} to {found.high:+.4f}"),
        Entry(found.high, f"{found.high:+.4f}"),
        Entry(verdict, verdict),
    )


def _notes(shown: Sequence[Record]) -> tuple[str, ...]:
    cell = shown[0].cell
    assert cell.learning is not None, "the records of this table were trained from scratch"
    rates = {record.cell.size: record.cell.learning.learning_rate for record in shown if record.cell.learning}
    return (
        f"trained from scratch on {cell.learning.tokens:,} tokens of {cell.learning.corpus} by "
        f"{cell.learning.tokenizer}, length {cell.seq_len}, batch {cell.batch_size}; learning rates "
        f"{', '.join(f'{size} {rate:g}' for size, rate in rates.items())}, the same for all systems",
        "perplexity of a token over held-out documents of that corpus, in windows of the trained length; mean and half "
        "the range over seeds; parameters: without embedding and head; intervals: Student's, over seeds and documents",
        *(f"{one.cell.label}: {one.status}, {shortened(one.reason or '')}" for one in shown if one.status != "ok"),
        f"measured on {measured_words(shown)}",
    )


def _fits(losses: Mapping[str, Losses], paper: Paper) -> Table:
    """loss = a N^-b of every system, and what that says of the paper's claim."""
    columns = (
        Column("system", "system", justify="left"),
        Column("exponent", "exponent"),
        Column("exponent_low", "95 % interval"),
        Column("exponent_high", "its upper end", detail="data"),
        Column("scale", "loss at\n1M", "nats a token"),
        Column("misfit", "largest\nmisfit", "share"),
    )
    rows = []
    for system, of_system in losses.items():
        law = fit(of_system)
        if law is None:
            rows.append((Entry(system, system), *(EMPTY,) * 5))
            continue
        misfit = max(
            abs(loss / law.at(parameters) - 1)
            for loss, parameters in zip(of_system.means, of_system.parameters, strict=True)
        )
        found = law.exponent
        rows.append(
            (
                Entry(system, system),
                Entry(found.value, f"{found.value:.4f}"),
                Entry(found.low, f"{found.low:.4f} to {found.high:.4f}"),
                Entry(found.high, f"{found.high:.4f}"),
                Entry(law.at(1e6), significant(law.at(1e6))),
                Entry(float(misfit), f"{misfit:.1%}"),
            )
        )
    notes = (
        "loss = a N^-b in nats a token, N parameters without embedding and head, least squares of logarithms; no "
        "constant term, which so few sizes cannot tell from the exponent",
        *claim_words(losses, paper),
    )
    return Table("fits", "Power laws of the loss", columns, tuple(rows), notes)


def claim_words(losses: Mapping[str, Losses], paper: Paper) -> tuple[str, ...]:
    """Where the two laws cross, and the verdict on the paper's claim, which concerns other sizes than ours."""
    baseline = next((losses[name] for name in BASELINES if name in losses), None)
    if CHALLENGER not in losses or baseline is None:
        return ()
    one, other = losses[CHALLENGER], baseline
    above, largest = float(paper["claimed_above_parameters"]), max(one.parameters)
    lead = lead_at(one, other, above)
    if lead is None:
        return ()
    meet = crossing(one, other)
    where = (
        f"the laws cross at {_count(meet.value)} parameters ({_count(meet.low)} to {_count(meet.high)})"
        if meet
        else "the exponents are not distinguishable, so the laws have no crossing that could be told"
    )
    extrapolated = (
        f"at {_count(above)} they say {lead.value:+.3f} nats for {CHALLENGER} ({lead.low:+.3f} to {lead.high:+.3f}), "
        f"an extrapolation by a factor of {significant(above / largest, 2)}"
    )
    verdict = "cannot be decided at these sizes" if largest < above else "see the verdicts by size"
    return (f"{where}; {extrapolated}", f'the paper says "{paper["claim"]}": {verdict}')


def _count(parameters: float) -> str:
    """2B, 310M, 0.2M; what is beyond any model is said so."""
    if not 1e3 <= parameters <= 1e15:
        return "beyond any model" if parameters > 1 else "below any model"
    return f"{significant(parameters / 1e9, 2)}B" if parameters >= 1e9 else f"{significant(parameters / 1e6, 2)}M"


def paper_table(paper: Paper) -> Table:
    """The paper's points, which are estimates."""
    points = paper["perplexity"]
    systems = [name for name in points if name != "sizes"]
    columns = (Column("size", "size", justify="left"), *(Column(name, name, "perplexity") for name in systems))
    rows = tuple(
        (Entry(size, size), *(Entry(points[name][at], f"{points[name][at]:g}") for name in systems))
        for at, size in enumerate(points["sizes"])
    )
    return Table("paper_figure5", "Figure 5 in the paper, estimated", columns, rows, (paper["source"],))
