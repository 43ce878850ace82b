"""Figures 6 and 1 (left): memory, throughput and latency of decoding, RetNet against Transformers.

Each cell prefills a prompt of the length, then times single decode steps with a full cache or state. Records go to
results/, figures to reports/inference/.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from models.catalogue import paper_systems, peer_of
from retbench import options
from retbench.devices import Device
from retbench.errors import UsageError
from retbench.options import Grid
from retbench.quantities import format_bytes, parse_duration
from retbench.record import Record
from retbench.report.exhibit import Exhibit
from retbench.spec import Cell
from retbench.specifications import find_specification

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from retbench.report.tables import Table

ARCHITECTURES = {"linear-transformer", "lstm", "rwkv", "h3", "hyena"}
PAPER_MODEL, PAPER_DEVICE = "paper_model", "a100-80gb"  # its records, and the paper's device
SYSTEMS = "retnet,transformer,transformer-flash,transformer-concat-cache"
GIB = 2**30

Frontier = Annotated[
    bool,
    typer.Option(
        "--frontier",
        help="Find the largest batch and the longest length that fit into --mem-limit, instead of timing; by default "
        "into half of a computer's memory or what a GPU has free, in whole GiB.",
    ),
]

PaperModel = Annotated[
    bool, typer.Option("--paper-model", help="Predict Figure 6 in the paper's own setting instead; measures nothing.")
]


def command(
    seq_len: options.SeqLen = "8192",
    batch_size: options.BatchSize = "1,8",
    systems: options.Systems = SYSTEMS,
    checkpoint: options.Checkpoints = None,
    peer: options.Peers = None,
    size: options.Size = "auto",
    dtype: options.DtypeName = "auto",
    weights: options.Weights = "as-is",
    device: options.DeviceName = "auto",
    threads: options.Threads = 0,
    budget: options.Budget = "150s",
    mem_limit: options.MemLimit = "",
    out: options.Out = Path(),
    fresh: options.Fresh = False,
    dry_run: options.DryRun = False,
    seed: options.Seed = 0,
    compile_prefill: options.Compile = False,
    frontier: Frontier = False,
    paper_model: PaperModel = False,
    output_format: options.Format = "table",
) -> None:
    beside = (tuple(checkpoint or ()), tuple(peer or ()), weights, compile_prefill)
    grid = Grid(seq_len, batch_size, systems, size, dtype, device, threads, mem_limit, seed, *beside)
    options.check_format(output_format)
    if paper_model:
        show_paper_model(out, output_format)
        return
    chosen_device, cells = grid.cells("frontier" if frontier else "decode")
    budget_s = parse_duration(budget, "--budget")

    from retbench.session import Report, Session

    if frontier:
        cells = frontier_cells(cells, chosen_device)
        session = Session("frontier", chosen_device, cells, out, budget_s, fresh, dry_run, output_format)
        session.run(Report(frontier_tables, lambda records: {}))
        return
    session = Session("inference", chosen_device, cells, out, budget_s, fresh, dry_run, output_format)
    session.run(Report(tables, figures))


def show_paper_model(out: Path, output_format: str) -> None:
    """Figure 6 as a plan for the paper's size, batch and device, beside its points."""
    from retbench.predictions import predicted
    from retbench.report.figures import save_all
    from retbench.report.paper import inference_paper
    from retbench.report.paper_model import cells
    from retbench.report.tables import Format, render

    records = predicted(PAPER_MODEL, cells(inference_paper()), out)
    fmt = "json" if output_format == "jsonl" else output_format
    render(paper_model_tables(records), cast(Format, fmt), sys.stdout)
    files = save_all(paper_model_figures(records), out / "reports" / PAPER_MODEL)
    print(f"figures: {', '.join(map(str, files))}", file=sys.stderr)


def paper_model_tables(records: Sequence[Record]) -> "list[Table]":
    """The model's points beside the paper's."""
    from retbench.report.paper import inference_paper
    from retbench.report.paper_model import paper_model_table, points

    paper, device = inference_paper(), find_specification(PAPER_DEVICE)
    return [paper_model_table(points(records, device, paper), device, paper)]


def paper_model_figures(records: Sequence[Record]) -> "Mapping[str, Figure]":
    """The same as lines over the length."""
    from retbench.report.figures import figure6_model
    from retbench.report.paper import inference_paper
    from retbench.report.paper_model import points

    paper, device = inference_paper(), find_specification(PAPER_DEVICE)
    return {"figure6-model": figure6_model.draw(points(records, device, paper), device, paper)}


def frontier_cells(cells: Sequence[Cell], device: Device) -> list[Cell]:
    """The cells with a limit of memory, ``frontier_limit`` where none was given; peers take no part."""
    if peers := sorted({cell.system for cell in cells if peer_of(cell.system)}):
        raise UsageError(f"--frontier is for systems of ours, not for peers such as {peers[0]}")
    limit = cells[0].mem_limit_bytes or frontier_limit(device)  # one for all of them
    return [replace(cell, mem_limit_bytes=limit) for cell in cells]


def frontier_limit(device: Device) -> int:
    """Whole GiB, the same in every run: they are part of what makes a record reusable. UsageError where there are none.

    Half of a computer's memory, since what is free of it changes all the time; what is free of a GPU's.
    """
    free = device.free_bytes()
    wanted = free if device.name != "cpu" else int(device.describe()["memory_bytes"]) // 2
    limit = wanted // GIB * GIB
    if not 0 < limit <= free:
        words = f"{format_bytes(limit)} by default, and {format_bytes(free)} are free"
        raise UsageError(f"--frontier would take {words}: say how much with --mem-limit")
    return limit


def frontier_tables(records: Sequence[Record]) -> "list[Table]":
    """What fits at the most, found and planned."""
    from retbench.report.frontier_table import frontier_table

    return [frontier_table(records)]


def tables(records: Sequence[Record]) -> "list[Table]":
    """The main table, the headline ratios, those to peers, and the slopes."""
    every, headline, slope = *figure6_tables(records), *figure1_tables(records)
    return [every, headline, *peer_tables(records), slope]


def figures(records: Sequence[Record]) -> "Mapping[str, Figure]":
    """Figure 6 and Figure 1 (left) by file stem."""
    return {**figure6(records), **figure1(records)}


def figure6_tables(records: Sequence[Record]) -> "list[Table]":
    """Every cell."""
    from retbench.report.inference_tables import inference_table
    from retbench.report.paper import inference_paper

    return [inference_table(records, inference_paper())]


def figure1_tables(records: Sequence[Record]) -> "list[Table]":
    """The headline ratios, and how TPOT grows over the context."""
    from retbench.report.inference_tables import headline_table, slope_table
    from retbench.report.paper import inference_paper

    return [headline_table(records, inference_paper()), slope_table(records)]


def peer_tables(records: Sequence[Record]) -> "list[Table]":
    """Ours / peer, where peers were measured."""
    from retbench.report.peer_table import peer_tables

    return peer_tables(records)


def figure6(records: Sequence[Record]) -> "Mapping[str, Figure]":
    """Figure 6 of each family."""
    from retbench.report.figures import figure6
    from retbench.report.paper import inference_paper

    return {f"figure6{name}": figure6.draw(own, inference_paper()) for name, own in families(records).items()}


def figure1(records: Sequence[Record]) -> "Mapping[str, Figure]":
    """Figure 1 (left) of each family."""
    from retbench.report.figures import figure1
    from retbench.report.paper import inference_paper

    return {f"figure1{name}": figure1.draw(own, inference_paper()) for name, own in families(records).items()}


def families(records: Sequence[Record]) -> dict[str, list[Record]]:
    """What one figure has colours for, by the end of its name: Transformers, other architectures and ablations.

    Each stands beside RetNet, the architectures also beside the Transformer; a family without a record has no figure.
    """
    ablations = {name for name in paper_systems() if name.startswith("retnet-")}
    known = {record.cell.system for record in records}
    first = known - ablations - ARCHITECTURES
    members = {"": first or known}
    members |= {"-architectures": {"retnet", "transformer", *ARCHITECTURES}} if first and known & ARCHITECTURES else {}
    members |= {"-ablations": {"retnet", *ablations}} if first and known & ablations else {}
    return {name: [one for one in records if one.cell.system in systems] for name, systems in members.items()}


EXHIBITS = (
    Exhibit(
        "figure6",
        "Figure 6: memory, throughput and latency of decoding",
        "inference",
        "retbench inference --seq-len 1k-8k*2 --batch-size 1,2,4,8",
        figure6_tables,
        figure6,
        overlays=True,
        systems=tuple(SYSTEMS.split(",")),
    ),
    Exhibit(
        "figure1",
        "Figure 1, left: RetNet's advantage in memory, throughput and latency",
        "inference",
        "retbench inference",
        figure1_tables,
        figure1,
        systems=tuple(SYSTEMS.split(",")),
    ),
    Exhibit(
        "peers",
        "Other projects' models, with our weights",
        "inference",
        "retbench inference --peer torchscale --peer transformers-llama",
        peer_tables,
        lambda records: {},
    ),
    Exhibit(
        "figure6-model",
        "Figure 6 predicted in the paper's setting (model, not measured)",
        PAPER_MODEL,
        "retbench inference --paper-model",
        paper_model_tables,
        paper_model_figures,
    ),
    Exhibit(
        "frontier",
        "How much fits into the memory",
        "frontier",
        "retbench inference --frontier",
        frontier_tables,
        lambda records: {},
    ),
)
