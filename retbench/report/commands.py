"""The commands that make given records: the options of a verb, read back from the cells."""

import inspect
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from operator import attrgetter
from typing import Any

from models.catalogue import Peer, peer_of, systems
from retbench.predictions import MACHINE as MODEL
from retbench.record import Record
from retbench.registry import experiments
from retbench.report.exhibit import Exhibit
from retbench.spec import Cell, Training

LISTS = ("size", "seq_len", "batch_size")  # options that take several values
SINGLE = ("dtype", "device", "threads", "seed", "chunk_size")  # options that take one: more need as many commands
TRAINING = ("checkpointing", "grad_accumulation", "loss", "tensor_parallel", "data_parallel", "fsdp")


def command_of(exhibit: Exhibit, records: Sequence[Record]) -> str:
    """A line for each command; the exhibit's own where its verb lets nobody choose the systems, or nothing ran."""
    verb = exhibit.command.split()[1]
    options = _options(verb)
    if "systems" not in options or records[0].machine == MODEL:
        return exhibit.command
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for record in records:
        groups.setdefault(_alike(record.cell, options), []).append(record.cell)
    flags = re.findall(r"--\S+(?= --|$)", exhibit.command)
    return "\n".join(dict.fromkeys(_line([verb, *flags], cells, options) for cells in groups.values()))


@cache
def _options(verb: str) -> Mapping[str, object]:
    """The options of a verb, by their name in Python; none where it is no experiment's."""
    module = experiments().get(verb.replace("-", "_"))
    return inspect.signature(module.command).parameters if module else {}


def _alike(cell: Cell, options: Mapping[str, object]) -> tuple[Any, ...]:
    """What the cells of one command agree in; chunk_size is RetNet's alone, so it parts none."""
    training, single = cell.training or Training(), [name for name in SINGLE[:-1] if name in options]
    shared = replace(cell.learning, data=(), vocabulary="", learning_rate=0.0) if cell.learning else None
    limit = cell.mem_limit_bytes if "mem_limit" in options else None
    return (*(getattr(cell, name) for name in single), limit, *(getattr(training, name) for name in TRAINING), shared)


def _line(start: Sequence[str], cells: Sequence[Cell], options: Mapping[str, object]) -> str:
    names = _distinct(cells, attrgetter("system"))
    parts = ["retbench", *start, f"--systems {_joined([name for name in names if name in systems()]) or 'none'}"]
    parts += [f"--peer {name}" for name in dict.fromkeys(peer.name for row in names for peer in _peers_of(row))]
    parts += [f"--checkpoint {shlex.quote(name)}" for name in _distinct(cells, attrgetter("checkpoint"))]
    for name in (*LISTS, *SINGLE):
        values = _distinct(cells, attrgetter(name))
        values = [value for value in values if value != "checkpoint"]  # no size, but where the weights come from
        if name in options and values:
            parts.append(f"--{name.replace('_', '-')} {_joined(values)}")
    limited = "mem_limit" in options and cells[0].mem_limit_bytes is not None
    parts += [f"--mem-limit {cells[0].mem_limit_bytes}"] * limited
    quantized = {"none": "as-is"}
    weights = [quantized.get(value, value) for value in _distinct(cells, attrgetter("quantize"))]
    parts += [f"--weights {_joined(weights)}"] * ("weights" in options and weights != ["as-is"])
    parts += ["--compile"] * any(cell.compile for cell in cells)
    return " ".join([*parts, *_training_options(cells[0].training), *_learning_options(cells, options)])


def _training_options(training: Training | None) -> list[str]:
    """What differs from a plain step; several ranks are started on this machine."""
    if training is None:
        return []
    plain = Training()
    changed = [name for name in TRAINING if getattr(training, name) != getattr(plain, name)]
    options = [
        f"--{name.replace('_', '-')}" + ("" if name == "fsdp" else f" {getattr(training, name)}") for name in changed
    ]
    return [*options, *([f"--nproc {training.ranks}"] if training.ranks > 1 else [])]


def _learning_options(cells: Sequence[Cell], options: Mapping[str, object]) -> list[str]:
    """How many seeds, and what all of them were trained on and scored on."""
    parts, learning = [f"--seeds {1 + max(cell.seed for cell in cells)}"] * ("seeds" in options), cells[0].learning
    if learning is None:
        return parts
    corpora = (learning.corpus, *learning.others)
    return [*parts, f"--tokens {learning.tokens}", *(f"--corpus {shlex.quote(name)}" for name in corpora)]


def _peers_of(row: str) -> list[Peer]:
    peer = peer_of(row)
    return [peer] if peer else []


def _distinct(cells: Sequence[Cell], pick: Callable[[Cell], Any]) -> list[Any]:
    return list(dict.fromkeys(value for cell in cells if (value := pick(cell)) is not None))


def _joined(values: Sequence[Any]) -> str:
    return ",".join(map(str, values))
