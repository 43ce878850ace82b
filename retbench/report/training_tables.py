"""The tables of the training experiment: every cell, its memory by kind, and the paper's Table 4 beside them."""

import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from retbench.record import Record
from retbench.report.conditions import disturbance_words, measured_words
from retbench.report.numbers import ABSENT, memory_unit, ratio, significant, with_interval
from retbench.report.pairs import same_rounds, time_ratio
from retbench.report.tables import Column, Detail, Entry, Table, shortened
from retbench.spec import Cell, Training

Row = tuple[Entry, ...]

BASES = {"transformer": "base", "transformer-flash": "flash"}  # what the ratios are against, and its short name
PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "rest")
CONDITIONS = {  # columns, those that differ between cells head the sections of a terminal
    "dtype": "dtype",
    "threads": "threads",
    "checkpointing": "checkpointing",
    "grad_accumulation": "micro-batches",
    "loss": "loss",
    "tensor_parallel": "tensor parallel",
    "data_parallel": "data parallel",
    "fsdp": "fsdp",
    "compile": "compiled",
    "chunk_size": "chunk",
}
LEAST_SHOWN = 0.01  # of a unit of memory


def training_tables(records: Sequence[Record]) -> list[Table]:
    """Speed and peak of every cell, what the peak is made of, and what the paper says."""
    conditions = (f"measured on {measured_words(records)}", *disturbance_words(records)) if records else ("no records",)
    return [_steps_table(records, conditions), _memory_table(records, conditions), _paper_table()]


def _steps_table(records: Sequence[Record], conditions: tuple[str, ...]) -> Table:
    unit, size = memory_unit(record.metrics.get("peak_memory_bytes") for record in records)
    columns = (
        *_setting_columns(records),
        Column("step_ms", "step\nms", "ms"),
        Column("tokens_per_s", "tokens/s", "tokens/s"),
        Column("tokens_per_s_low", "its lower end", "tokens/s", detail="data"),
        Column("tokens_per_s_high", "its upper end", "tokens/s", detail="data"),
        Column("optimizer_share", "optim.\n%"),
        Column("peak_memory_bytes", f"peak\n{unit}", "bytes"),
        *(column for name, short in BASES.items() for column in _speed_columns(name, short)),
        *(Column(f"memory_vs_{name}", f"peak\nvs {short}", "ratio") for name, short in BASES.items()),
        *(Column(name, name, detail="data") for name in ("backend", "form", "status", "reason")),
    )
    rows = []
    for record in records:
        value, low, high = (record.metrics.get(f"tokens_per_s{end}") for end in ("", "_low", "_high"))
        share, bases = record.metrics.get("optimizer_share"), [_base(name, record, records) for name in BASES]
        rows.append(
            (
                *_setting(record),
                _number(record, "step_ms"),
                Entry(value, with_interval(value, low, high)),
                *(Entry(end, significant(end)) for end in (low, high)),
                Entry(share, ABSENT if share is None else f"{100 * share:.1f}"),
                _memory(record, "peak_memory_bytes", size),
                *(entry for base in bases for entry in _speed(record, base)),
                *(_ratio(base, record, "peak_memory_bytes") for base in bases),
                *_words(record.cell.backend, record.cell.form, record.status, record.reason),
            )
        )
    notes = (
        "step: forward, backward and AdamW, warm; tokens/s (the paper says words/s): positions read in a step / its "
        "median time ± 95 % interval; optim.: AdamW's share of that time",
        "speed: tokens/s of this system / of transformer (base), of transformer-flash (flash); peak vs: their peak "
        "memory / this system's; above 1 this system is better",
        *_pair_words(records),
        *(("bf16: the model computes in bf16, AdamW updates float32 master weights",) * _any_bf16(records)),
        *_rank_words(records),
        *_failures(records),
        *_notes(records),
        *conditions,
    )
    return Table("training", "Training, an optimizer step", columns, tuple(rows), notes, _section(records))


def _memory_table(records: Sequence[Record], conditions: tuple[str, ...]) -> Table:
    """The peak and its parts, which add up to it."""
    known = [record for record in records if "peak_memory_bytes" in record.metrics]
    unit, size = memory_unit(record.metrics["peak_memory_bytes"] for record in known)
    heads = {"weights": "weights", "gradients": "gradi\N{SOFT HYPHEN}\nents", "optimizer": "opti\N{SOFT HYPHEN}\nmizer"}
    heads |= {"activations": "acti\N{SOFT HYPHEN}\nvations", "logits": "logits", "rest": "rest"}
    columns = (
        *_setting_columns(known),
        Column("peak_memory_bytes", f"peak\n{unit}", "bytes"),
        *(Column(f"{part}_bytes", heads[part], "bytes") for part in PARTS),
    )
    names = ("peak_memory_bytes", *(f"{part}_bytes" for part in PARTS))
    rows = [(*_setting(record), *(_memory(record, name, size) for name in names)) for record in known]
    notes = (
        f"{unit} at the moment of the peak; optimizer: moments, and master weights where there are any; logits: all "
        "between the input of the head and its gradient, the loss included; rest: what operators use inside",
        "gradients of 0: the peak is in the loss, before there are any",
        *_rank_words(known),
        *(("compiled: activations, logits and gradients are in the rest",) * any(one.cell.compile for one in known)),
        *conditions,
    )
    return Table("training_memory", "Memory at the peak", columns, tuple(rows), notes, _section(known))


def _paper_table() -> Table:
    """Table 4 as printed: nothing of it was measured here."""
    paper = paper_training()
    columns = [Column("size", "size", justify="left")]
    rows: list[Row] = []
    for name, unit in (("memory", "GB"), ("throughput", "words/s")):
        columns += [Column(f"{name}_{system}", f"{unit}\n{short}", unit) for system, short in _SHORT.items()]
    columns += [Column(f"speedup_vs_{base}", f"speed\nvs {short}", "ratio") for base, short in BASES.items()]
    for at, size in enumerate(paper["memory"]["sizes"]):
        memory, speed = ({name: paper[what][name][at] for name in _SHORT} for what in ("memory", "throughput"))
        rows.append(
            (
                Entry(size, size),
                *(Entry(value, f"{value:g}") for value in memory.values()),
                *(Entry(value, f"{value:,.0f}") for value in speed.values()),
                *(Entry(speed["retnet"] / speed[base], ratio(speed["retnet"] / speed[base])) for base in BASES),
            )
        )
    notes = (
        f"as printed, {paper['device']}, length {paper['seq_len']}, chunks of {paper['chunk_size']}: "
        f"{paper['source']}; base: transformer, flash: transformer-flash; GB a GPU, words/s of all GPUs (inferred)",
        "the paper does not state batch, dtype, checkpointing or the degree of tensor parallelism",
    )
    return Table("paper", "The paper's Table 4, not measured here", tuple(columns), tuple(rows), notes)


_SHORT = {**BASES, "retnet": "RetNet"}


@cache
def paper_training() -> dict[str, Any]:
    """Table 4, from experiments/training.toml: system -> a value a size, for memory and throughput."""
    text = (Path(__file__).parents[2] / "experiments" / "training.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


# ---- columns ------------------------------------------------------------------------------------------------------


def _setting_columns(records: Sequence[Record]) -> list[Column]:
    shown = _section(records)
    heads = {"size": "size", "batch_size": "batch", "seq_len": "length", **CONDITIONS}
    details: dict[str, Detail] = {name: "terminal" if name in shown else "data" for name in heads}
    columns = [Column(name, head, justify="left", detail=details[name]) for name, head in heads.items()]
    return [Column("system", "system", justify="left"), *columns]


def _setting(record: Record) -> Row:
    cell = record.cell
    plain = (cell.system, cell.size, cell.batch_size, cell.seq_len, *(_condition(cell, name) for name in CONDITIONS))
    return _words(*plain)


def _condition(cell: Cell, name: str) -> str | int | None:
    training = cell.training or Training()
    value: str | int | None = getattr(training, name) if hasattr(training, name) else getattr(cell, name)
    return value


def _section(records: Sequence[Record]) -> tuple[str, ...]:
    """What heads a section: size, batch and length, and each other condition in which cells of a system differ."""
    differing = []
    for name in CONDITIONS:
        by_system: dict[str, set[object]] = {}
        for record in records:
            by_system.setdefault(record.cell.system, set()).add(_condition(record.cell, name))
        differing += [name] * any(len(values) > 1 for values in by_system.values())
    return ("size", "batch_size", "seq_len", *differing)


def _words(*values: str | int | None) -> Row:
    return tuple(Entry(value, ABSENT if value is None else str(value)) for value in values)


def _number(record: Record, name: str) -> Entry:
    """A metric, or what became of the cell in its place."""
    value = record.metrics.get(name)
    if value is None:
        return Entry(None, ABSENT if record.status == "ok" else record.status, record.status not in ("ok", "skipped"))
    return Entry(value, significant(value))


def _memory(record: Record, name: str, size: int) -> Entry:
    """Bytes in a unit of ``size`` bytes."""
    value = record.metrics.get(name)
    if value is None or 0 < value < LEAST_SHOWN * size:
        return Entry(value, ABSENT if value is None else f"<{LEAST_SHOWN}")
    return Entry(value, significant(value / size, 4 if value >= 1000 * size else 3))


def _base(name: str, record: Record, records: Sequence[Record]) -> Record | None:
    """The record of a system under the conditions of another record."""
    found = [one for one in records if one.cell.system == name and _conditions(one) == _conditions(record)]
    return found[-1] if found else None


def _conditions(record: Record) -> tuple[object, ...]:
    return record.cell.setting, record.machine


def _speed_columns(name: str, short: str) -> tuple[Column, ...]:
    return (
        Column(f"speedup_vs_{name}", f"speed\nvs {short}", "ratio"),
        Column(f"speedup_vs_{name}_low", "95 %\ninterval", "ratio", detail="page"),
        Column(f"speedup_vs_{name}_high", "its upper end", "ratio", detail="data"),
    )


def _speed(record: Record, base: Record | None) -> Row:
    """Tokens/s over those of ``base``, with the interval of it where both were measured in the same rounds."""
    found = time_ratio(base, record, "step_ns") if base and base is not record else None  # of the same tokens
    if found is None:
        return _ratio(record, base, "tokens_per_s"), Entry(None, ABSENT), Entry(None, ABSENT)
    low, high = ratio(found.low), ratio(found.high)
    return Entry(found.value, ratio(found.value)), Entry(found.low, f"{low} to {high}"), Entry(found.high, high)


def _ratio(above: Record | None, below: Record | None, name: str) -> Entry:
    values = [one.metrics.get(name) if one else None for one in (above, below)]
    found = values[0] / values[1] if values[0] and values[1] else None
    return Entry(found, ratio(found))


# ---- footnotes ----------------------------------------------------------------------------------------------------


def _pair_words(records: Sequence[Record]) -> tuple[str, ...]:
    """Whether the speeds that stand beside each other were measured in turn."""
    timed = [record for record in records if "tokens_per_s" in record.metrics]
    pairs = [(one, base) for one in timed for name in BASES if (base := _base(name, one, timed)) and base is not one]
    paired = [same_rounds(*pair) for pair in pairs]
    in_turn = "speed with an interval: systems measured in turn, paired step by step"
    apart = "speed without an interval: not paired, systems measured at different times; --fresh measures them in turn"
    return (*((in_turn,) * any(paired)), *((apart,) * (not all(paired))))


def _any_bf16(records: Sequence[Record]) -> bool:
    return any(record.cell.dtype == "bf16" for record in records)


def _rank_words(records: Sequence[Record]) -> tuple[str, ...]:
    trainings = [record.cell.training for record in records if record.cell.training]
    shared = next((training for training in trainings if training.ranks > 1), None)
    if shared is None:
        return ()
    degrees = f"tensor parallel {shared.tensor_parallel}, data parallel {shared.data_parallel}{', fsdp' * shared.fsdp}"
    return (
        f"{shared.ranks} processes ({degrees}): tokens/s of all together; memory of the process that needs most, what "
        "FSDP gathers among its activations",
    )


def _failures(records: Sequence[Record]) -> tuple[str, ...]:
    failed = [record for record in records if record.status != "ok"]
    return tuple(f"{one.cell.label}: {one.status}, {shortened(str(one.reason))}" for one in failed)


def _notes(records: Sequence[Record]) -> tuple[str, ...]:
    plain = [(one.cell.label, one.notes["not_compiled"]) for one in records if one.notes.get("not_compiled")]
    return tuple(f"{label}: not compiled, {shortened(reason)}" for label, reason in plain)
