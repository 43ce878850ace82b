"""The options that experiments share on the command line, and the cells that they ask for."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

import typer

from models.catalogue import paper_systems, peer_of
from models.catalogue import peers as known_peers
from models.catalogue import systems as known_systems
from models.sizes import SIZES
from retbench.checkpoints import find_checkpoint
from retbench.devices import Device, find_device
from retbench.errors import UsageError
from retbench.peers import find_peers
from retbench.quantities import parse_bytes, parse_counts
from retbench.registry import choose
from retbench.spec import MAX_BATCH_SIZE, MAX_SEQ_LEN, Cell, Dtype, Quantize

AS_IS = "as-is"  # as --weights; a peer has its own weights only so
WEIGHTS: dict[str, Quantize] = {AS_IS: "none", "int8": "int8"}
NONE = "none"  # as --systems: the checkpoints and peers alone
ALL = "all"  # as --systems: the rows of the paper, not the twins of peers
FORMATS = ("table", "md", "csv", "json", "jsonl")

SeqLen = Annotated[str, typer.Option(help="Lengths: 8192, lists 1k,2k (1k = 1024), ranges 1k-8k*2 or 1k-4k+1k.")]
BatchSize = Annotated[str, typer.Option(help="Batch sizes: lists and ranges as for --seq-len.")]
Systems = Annotated[str, typer.Option(help="Comma-separated, or all of the paper's; see: retbench list systems.")]
Checkpoints = Annotated[
    list[str] | None,
    typer.Option(
        "--checkpoint",
        help="Folder of a checkpoint, or hub:OWNER/NAME@REVISION, to measure too; repeatable. Alone: --systems none.",
    ),
]
Peers = Annotated[
    list[str] | None,
    typer.Option(
        "--peer",
        help=f"Another project's model with our weights, beside the system of ours that computes the same: "
        f"{', '.join(known_peers())}; repeatable.",
    ),
]
Size = Annotated[str, typer.Option(help="Comma-separated model sizes, or auto for the device's default.")]
DtypeName = Annotated[str, typer.Option("--dtype", help="fp32, bf16, fp16, or auto for the device's default.")]
DeviceName = Annotated[str, typer.Option("--device", help="auto (CUDA if it works), cpu or cuda.")]
Threads = Annotated[int, typer.Option(help="CPU threads; 0 takes the physical cores.")]
Weights = Annotated[str, typer.Option(help="as-is, int8 (weight-only), or both: as-is,int8.")]
Budget = Annotated[str, typer.Option(help="Time for all cells together: 150s, 3m, 1h30m.")]
MemLimit = Annotated[str, typer.Option(help="Memory that each cell may allocate, such as 4GiB; default: no limit.")]
Out = Annotated[Path, typer.Option(help="Folder that gets results/ and reports/.", file_okay=True)]
Fresh = Annotated[bool, typer.Option("--fresh", help="Measure cells again that already have a record.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the cells and their predicted bytes; run nothing.")]
Compile = Annotated[
    bool, typer.Option("--compile", help="torch.compile for prefills: faster, after half a minute a cell.")
]
Seed = Annotated[int, typer.Option(help="Seed of weights and tokens.", min=0, max=2**32 - 1)]
Format = Annotated[str, typer.Option("--format", help=f"What stdout gets: {', '.join(FORMATS)}.")]


@dataclass(frozen=True)
class Row:
    """A model to measure: a system at a size, or a checkpoint."""

    system: str
    size: str
    checkpoint: str | None = None
    weights: str | None = None


@dataclass(frozen=True)
class Grid:
    """Options as typed; ``cells`` checks them and expands every combination."""

    seq_len: str
    batch_size: str
    systems: str
    size: str
    dtype: str
    device: str
    threads: int
    mem_limit: str
    seed: int
    checkpoints: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    weights: str = "as-is"
    compile: bool = False

    def cells(self, workload: str) -> tuple[Device, list[Cell]]:
        """The device and its cells, neighbours differing in the system; raises UsageError for bad input."""
        device = find_device(self.device)
        dtype = device.default_dtype() if self.dtype == "auto" else check_dtype(self.dtype)
        threads = check_threads(self.threads, device)
        mem_limit = parse_bytes(self.mem_limit, "--mem-limit") if self.mem_limit else None
        cells = [
            Cell(
                system=row.system,
                size=row.size,
                workload=workload,
                seq_len=seq_len,
                batch_size=batch_size,
                dtype=dtype,
                device=device.name,
                threads=threads,
                seed=self.seed,
                mem_limit_bytes=mem_limit,
                checkpoint=row.checkpoint,
                weights=row.weights,
                quantize=WEIGHTS[weights],
                compile=self.compile and not peer_of(row.system),
            )
            for rows in self._rows(device)
            for seq_len in counts(self.seq_len, "--seq-len", MAX_SEQ_LEN)
            for batch_size in counts(self.batch_size, "--batch-size", MAX_BATCH_SIZE)
            for weights in choose(self.weights, WEIGHTS, "--weights value")
            for row in rows
            if weights == AS_IS or not peer_of(row.system)
        ]
        return device, cells

    def _rows(self, device: Device) -> list[list[Row]]:
        """What is compared with each other: systems and peers, each with its twin, at each size, and checkpoints."""
        sizes = [device.default_size()] if self.size == "auto" else choose(self.size, SIZES, "size")
        names = dict.fromkeys(self._system_names())
        names |= dict.fromkeys(row for peer in find_peers(self.peers) for row in (peer.twin, *peer.rows))
        checkpoints = [find_checkpoint(given) for given in self.checkpoints]
        groups = [[Row(name, size) for name in names] for size in sizes]
        groups.append([Row(found.system, "checkpoint", str(found.folder), found.weights) for found in checkpoints])
        return [group for group in groups if group]

    def _system_names(self) -> list[str]:
        if self.systems == NONE and (self.checkpoints or self.peers):
            return []
        return list(paper_systems()) if self.systems.strip() == ALL else choose(self.systems, known_systems(), "system")


def check_format(text: str) -> str:
    if text not in FORMATS:
        raise UsageError(f"unknown format {text!r}; formats are {', '.join(FORMATS)}")
    return text


def check_threads(threads: int, device: Device) -> int:
    """The threads to use; 0 stands for the device's default."""
    processors = os.cpu_count() or 1
    if not 0 <= threads <= processors:
        raise UsageError(f"--threads {threads} is not possible here: 1 to {processors}, or 0 for the default")
    return threads or device.default_threads()


def check_dtype(text: str) -> Dtype:
    for dtype in get_args(Dtype):
        if dtype == text:
            return dtype  # type: ignore[no-any-return]
    raise UsageError(f"unknown dtype {text!r}; dtypes are auto, {', '.join(get_args(Dtype))}")


def trainable(dtype: Dtype) -> Dtype:
    """The dtype, if models are trained in it; else UsageError."""
    if dtype == "fp16":
        raise UsageError("--dtype fp16 would need scaled losses; dtypes of training are auto, fp32, bf16")
    return dtype


def counts(text: str, option: str, most: int) -> tuple[int, ...]:
    """The counts of a list or range; raises UsageError for one that is too large."""
    found = parse_counts(text, option)
    if max(found) > most:
        raise UsageError(f"{option} {max(found)} is too large: at most {most}")
    return found
