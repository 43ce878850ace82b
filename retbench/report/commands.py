"""The commands that make given records and no others: the options of a verb, read back from the cells."""

import inspect
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from operator import attrgetter
from typing import Any

from models.catalogue import peer_of
from retbench.learning.presets import find_preset, presets
from retbench.learning.run import ORDERS
from retbench.options import WEIGHTS
from retbench.predictions import MACHINE as MODEL
from retbench.record import Record
from retbench.registry import experiments
from retbench.report.exhibit import Exhibit
from retbench.report.tables import one_line
from retbench.spec import Cell, Training

Options = Mapping[str, inspect.Parameter]  # of a verb, by their name in Python
Point = dict[str, Any]  # what each option has to be for a cell
Box = dict[str, tuple[Any, ...]]  # several values of each: a command makes every combination
Getter = Callable[[Record], Any]

LISTS = ("seeds", "systems", "num_fewshot", "tasks", "batch_size", "seq_len", "size")  # take several values
SHOWN = ("size", "seq_len", "batch_size", "dtype", "device", "threads", "seed", "chunk_size")  # as by default, too
WORDS = {quantize: words for words, quantize in WEIGHTS.items()}


def command_of(exhibit: Exhibit, records: Sequence[Record]) -> str:
    """A line for each command; the exhibit's own where its verb lets nobody choose, or nothing ran."""
    verb = exhibit.command.split()[1]
    options = _options(verb)
    if records[0].machine == MODEL or not {"systems", "checkpoint", "cases"} & set(options):
        return exhibit.command
    if "cases" in options:
        return "\n".join(_case_lines(verb, records)) or exhibit.command
    flags = re.findall(r"--\S+(?= --|$)", exhibit.command)
    return "\n".join(_line([verb, *flags], box, options) for box in _boxes(_points(records, options), options))


@cache
def _options(verb: str) -> Options:
    """Those of a verb, --compile by that name; none where it is no experiment's."""
    module = experiments().get(verb.replace("-", "_"))
    known = inspect.signature(module.command).parameters if module else {}
    return {"compile" if name.startswith("compile") else name: option for name, option in known.items()}


# ---- what each option has to be -----------------------------------------------------------------------------------


def _of_training(name: str) -> Getter:
    return lambda record: getattr(record.cell.training or Training(), name)


def _corpora(record: Record) -> tuple[str, ...] | None:
    learning = record.cell.learning
    return (learning.corpus, *learning.others) if learning else None


def _preset_of(record: Record) -> str | None:
    return _preset(record.cell)


# In the order in which a command shows them.
GETTERS: Mapping[str, Getter] = {
    **{name: attrgetter(f"cell.{cell}") for name, cell in (
        ("tasks", "task"), ("num_fewshot", "num_fewshot"), ("limit", "limit"), ("max_length", "seq_len"),
    )},
    "preset": _preset_of,
    "size": lambda record: record.cell.size if record.cell.checkpoint is None else None,
    **{name: attrgetter(f"cell.{name}") for name in SHOWN[1:]},
    "mem_limit": attrgetter("cell.mem_limit_bytes"),
    "weights": lambda record: WORDS.get(record.cell.quantize, record.cell.quantize),
    "compile": attrgetter("cell.compile"),
    **{name: _of_training(name) for name in Training.__dataclass_fields__},
    "nproc": _of_training("ranks"),
    "seeds": attrgetter("cell.seed"),
    "pairs": lambda record: record.cell.recall and record.cell.recall.pairs,
    "tokens": lambda record: getattr(record.cell.learning or record.cell.recall, "tokens", None),
    "corpus": _corpora,
}  # fmt: skip
LEARNT: Mapping[str, Getter] = {"threads": lambda record: None}  # of all runs together: they change no cell
EVALUATED: Mapping[str, Getter] = {
    "seed": lambda record: record.notes.get("corpus_seed") or None,
    "corpus": lambda record: record.notes.get("corpus"),
    "nproc": lambda record: record.notes.get("ranks"),
}


def _points(records: Sequence[Record], options: Options) -> list[Point]:
    """A point for each distinct cell; what a cell leaves open is as in those beside it."""
    getters = {**GETTERS, **(LEARNT if "seeds" in options else EVALUATED if "tasks" in options else {})}
    getters = {name: getter for name, getter in getters.items() if name in options}
    points = [_point(record, getters, options) for record in records]
    if "chunk_size" in options:
        _fill_chunks(points)
    if "peer" in options:
        _join_peers(points)
    return list({tuple(point.items()): point for point in points}.values())


def _point(record: Record, getters: Mapping[str, Getter], options: Options) -> Point:
    """What is as by default is None, but for what tells which cell it is."""
    cell, point = record.cell, {name: getter(record) for name, getter in getters.items()}
    for name, value in point.items():
        if name not in SHOWN and str(value) == str(options[name].default):
            point[name] = None
    learning = cell.learning and replace(cell.learning, data=(), vocabulary="", learning_rate=0.0)
    return {"systems": (cell.system, cell.checkpoint), "learning": learning, **point}


def _fill_chunks(points: Sequence[Point]) -> None:
    """Systems that read in no chunks stand beside RetNet in its first."""

    def conditions(point: Point) -> tuple[Any, ...]:
        return tuple(value for name, value in point.items() if name not in (*LISTS, "chunk_size"))

    chunks: dict[tuple[Any, ...], int] = {}
    for point in points:
        if point["chunk_size"] is not None:
            chunks.setdefault(conditions(point), point["chunk_size"])
    for point in points:
        if point["chunk_size"] is None:
            point["chunk_size"] = chunks.get(conditions(point))


def _join_peers(points: Sequence[Point]) -> None:
    """A peer is never compiled: it stands beside its twin, which may be."""
    compiled: dict[str, set[Any]] = {}
    for point in points:
        compiled.setdefault(point["systems"][0], set()).add(point["compile"])
    for point in points:
        peer = peer_of(point["systems"][0])
        if peer and compiled.get(peer.twin) == {True}:
            point["compile"] = True


@cache
def _preset(cell: Cell) -> str | None:
    """The preset that makes the cell of a learning experiment with its tokens and corpora; None without one."""
    learning = cell.learning
    if learning is None:
        return None
    asked = replace(learning, data=(), vocabulary="")
    wanted = replace(cell.requested, vocab_size=None, learning=asked)
    for name in presets():
        preset = replace(find_preset(name), corpus=asked.corpus, others=asked.others, tokens=asked.tokens)
        preset = replace(preset, dtype=cell.dtype, device=cell.device)
        if wanted in preset.cells([cell.system], cell.seed + 1):
            return name
    return None


# ---- commands -----------------------------------------------------------------------------------------------------


def _boxes(points: Sequence[Point], options: Options) -> list[Box]:
    """Boxes that hold these points and no other: those that differ in one list alone are one, list by list."""
    boxes: list[Box] = [{name: (value,) for name, value in point.items()} for point in points]
    several = [name for name in LISTS if name in points[0]]
    for name in (name for name in several if name != "size" or "pairs" not in options):  # recall takes one size
        order = {value: at for at, value in enumerate(dict.fromkeys(point[name] for point in points))}
        alike: dict[tuple[Any, ...], list[Box]] = {}
        for box in boxes:
            alike.setdefault(tuple(values for other, values in box.items() if other != name), []).append(box)
        boxes = [
            {**group[0], name: tuple(sorted((box[name][0] for box in group), key=order.__getitem__))}
            for group in alike.values()
        ]
    return boxes


def _line(start: Sequence[str], box: Box, options: Options) -> str:
    parts = ["retbench", *start, *_system_options(box["systems"], options)]
    parts += [part for name, values in box.items() if name in options and name != "systems"
              for part in _option(name, [value for value in values if value is not None])]  # fmt: skip
    return " ".join(parts)


def _system_options(rows: Sequence[tuple[str, str | None]], options: Options) -> list[str]:
    """Systems, peers and checkpoints; n-grams come with whatever is trained."""
    built = [name for name, checkpoint in rows if checkpoint is None and name not in ORDERS]
    peers = list(dict.fromkeys(peer.name for name in built if (peer := peer_of(name))))
    beside = [f"--peer {_quoted([name])}" for name in peers]
    beside += [f"--checkpoint {_quoted([checkpoint])}" for _, checkpoint in rows if checkpoint is not None]
    ours = [name for name in built if not peer_of(name)] or ["none"] * bool(beside)
    return [f"--systems {_quoted(ours)}"] * ("systems" in options and bool(ours)) + beside


def _option(name: str, values: Sequence[Any]) -> list[str]:
    """An option with its values, quoted; none where there are none."""
    start = f"--{name.replace('_', '-')}"
    if not values:
        return []
    if values[0] is True:
        return [start]
    if name == "seeds":
        return [f"{start} {1 + max(values)}"]
    if isinstance(values[0], tuple):
        several = [[value] for value in values[0]] if name == "corpus" else values
        return [f"{start} {_quoted(some)}" for some in several]
    return [f"{start} {_quoted(values)}"]


def _quoted(values: Sequence[Any]) -> str:
    """As a shell reads it; a name that would break the line or steer a terminal is on one line without that."""
    text = ",".join(map(str, values))
    return shlex.quote(text if text.isprintable() else one_line(text))


def _case_lines(verb: str, records: Sequence[Record]) -> list[str]:
    """A case is run as a whole: first those that hold nothing but these cells, then those that hold what is left."""
    wanted = {record.cell.requested for record in records}
    left, lines = set(wanted), list[str]()
    for threads, device, seed in sorted({(cell.threads, cell.device, cell.seed) for cell in wanted}, reverse=True):
        for quick in (False, True):
            cases = _cases(verb, device, threads, seed, quick)
            chosen = set[str]()
            for whole in (True, False):
                for name, cells in cases.items():
                    if cells & left and (cells <= wanted or not whole):
                        chosen.add(name)
                        left -= cells
            if chosen:
                names = ["all"] if len(chosen) == len(cases) else [name for name in cases if name in chosen]
                shared = f"--device {_quoted([device])} --threads {threads} --seed {seed}"
                lines.append(f"retbench {verb} --cases {','.join(names)}{' --quick' * quick} {shared}")
    return lines


@cache
def _cases(verb: str, device: str, threads: int, seed: int, quick: bool) -> dict[str, set[Cell]]:
    """The cells of each case of a verb."""
    cases = experiments()[verb.replace("-", "_")].all_cases(device, threads, seed)
    return {name: set(case.cells(quick)) for name, case in cases.items()}
