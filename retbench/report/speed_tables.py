"""The tables of the speed experiment: the machine's limits, decode, its batch scaling, prefill, training."""

from collections.abc import Callable, Sequence
from typing import Any

from models.sizes import SIZES
from retbench.record import Record
from retbench.report.conditions import disturbance_words, measured_words
from retbench.report.frame import BASELINE
from retbench.report.numbers import ABSENT, memory_unit, ratio, significant, with_interval
from retbench.report.pairs import same_rounds, time_ratio
from retbench.report.tables import Column, Entry, Table
from retbench.statistics import Interval

Row = tuple[Entry, ...]
Limit = dict[str, Any]
METRICS = {
    "decode": "tpot_ms",
    "prefill": "ttft_ms",
    "train_step": "train_step_ms",
    "train_tokens": "train_step_ms",
}
FLASH = "transformer-flash"  # what the training forms of all systems are compared with
UNITS = {"read": ("GB/s", 1e9), "product": ("GFLOP/s", 1e9)}


def speed_tables(records: Sequence[Record]) -> list[Table]:
    """A table for each kind of workload that was measured, the conditions below the last."""
    kinds = {name: [record for record in records if record.cell.workload == name] for name in ("limits", *METRICS)}
    tables = []
    if kinds["limits"]:
        tables.append(limits_table(kinds["limits"]))
    if kinds["decode"]:
        tables += [decode_table(kinds["decode"]), scaling_table(kinds["decode"])]
    tables += [products_table(name, kinds[name]) for name in ("prefill", "train_step") if kinds[name]]
    if kinds["train_tokens"]:
        tables.append(training_table(kinds["train_tokens"]))
    return [table for table in tables if table.rows]


def limits_table(records: Sequence[Record]) -> Table:
    """What the machine can do: every way to read and to multiply, its median and interval."""
    names = list(dict.fromkeys(limit["name"] for record in records for limit in _limits(record)))
    columns = [*_columns({"threads": "threads", "dtype": "dtype"}), *(Column(name, name, "1/s") for name in names)]
    rows = []
    for record in records:
        found = {limit["name"]: limit for limit in _limits(record)}
        speeds = [_speed(found[name]) if name in found else _status(record) for name in names]
        rows.append((_plain(record.cell.threads), _plain(record.cell.dtype), *speeds))
    note = (
        "reading a gibibyte in GB/s by the ways that are named by their operator and dtype; products (torch.mm, "
        "F.linear, packed: oneDNN's own weight layout) in GFLOP/s; medians of rounds ± 95 % interval"
    )
    return Table(
        "limits",
        "What the machine can do",
        tuple(columns),
        tuple(rows),
        (note, *_failures(records), *_conditions(records)),
    )


def decode_table(records: Sequence[Record]) -> Table:
    """TPOT, its fraction of the read bandwidth, and RetNet's advantage beside what the bytes allow."""
    columns = (
        *_columns(_SETTING),
        Column("tpot_ms", "TPOT\nms", "ms"),
        Column("tokens_per_s", "tok/s", "tokens/s"),
        Column("step_bytes", "step\nMB", "bytes"),
        Column("read_bytes_per_s", "read\nGB/s", "bytes/s"),
        Column("fraction", "of\nread"),
        Column("fraction_low", "95 %\ninterval"),
        Column("speedup", "vs best\nTransf.", "ratio"),
        Column("speedup_low", "95 %\ninterval"),
        Column("bytes_ratio", "bytes\nallow", "ratio"),
        Column("limit", "the fastest read", justify="left", detail="page"),
    )
    rows = [
        (
            *_setting(record),
            _time(record),
            _number(record.metrics.get("tokens_per_s")),
            _number(record.metrics.get("step_bytes"), 1e6),
            _number(_limit(record, "per_s"), 1e9),
            *_fraction(_limits(record)[:1]),
            *_advantage(record, records, "step_bytes"),
            Entry(_limit(record, "name"), _limit(record, "name") or ABSENT),
        )
        for record in records
    ]
    notes = (
        "of read: bytes that a step must move (weights, and the state read and written or the KV cache read) / TPOT, "
        "over the read bandwidth sampled beside it in the same rounds",
        "vs best Transf.: TPOT of the fastest Transformer of the group (*) / TPOT, paired by round; bytes allow: the "
        "bytes that it must move / those of this system",
        *_failures(records),
        *_conditions(records),
    )
    return Table("decode", "Decode against the read bandwidth", columns, tuple(rows), notes, _SECTION)


def scaling_table(records: Sequence[Record]) -> Table:
    """How tokens/s grow with the batch, beside what the bytes allow, where more than two batches were measured."""
    series: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        cell = record.cell
        key = (record.notes.get("child"), cell.system, cell.quantize, cell.seq_len)
        series.setdefault(key, []).append(record)
    rows = []
    for group in series.values():
        known = sorted((one for one in group if one.status == "ok"), key=lambda one: one.cell.batch_size)
        if len(known) < 3:
            continue
        first = known[0]
        for record in known:
            allowed = record.cell.batch_size / first.cell.batch_size
            allowed *= first.metrics["step_bytes"] / record.metrics["step_bytes"]
            growth = allowed * _limit(record, "fraction") / _limit(first, "fraction")
            speed = _number(record.metrics["tokens_per_s"])
            rows.append((*_setting(record), speed, _ratio(growth), _ratio(allowed), *_fraction(_limits(record)[:1])))
    columns = (
        *_columns(_SETTING),
        Column("tokens_per_s", "tok/s", "tokens/s"),
        Column("growth", "over the\nsmallest", "ratio"),
        Column("allowed", "bytes\nallow", "ratio"),
        Column("fraction", "of\nread"),
        Column("fraction_low", "95 %\ninterval"),
    )
    note = (
        "over the smallest: tokens/s over those at the smallest batch, each in proportion to the read bandwidth beside "
        "it, since batches are measured one after the other; bytes allow: batch / bytes of a step, likewise"
    )
    return Table("scaling", "Decode over the batch", columns, tuple(rows), (note,), ("shape", "dtype", "threads"))


def products_table(workload: str, records: Sequence[Record]) -> Table:
    """Time, operations a second against matrix products, activations and the advantage over the Transformer."""
    names = list(dict.fromkeys(limit["name"] for record in records for limit in _limits(record)))
    unit, size = memory_unit([record.metrics.get("activations_bytes") for record in records])
    columns = [
        *_columns(_SETTING),
        Column(METRICS[workload], "ms", "ms"),
        Column("flops", "GFLOP"),
        Column("flops_per_s", "GFLOP/s", "1/s"),
    ]
    for name in names:
        columns += [Column(f"fraction_of_{name}", f"of\n{name}"), Column(f"{name}_low", "95 %\ninterval")]
    columns += [
        Column("speedup", "vs best\nTransf.", "ratio"),
        Column("speedup_low", "95 %\ninterval"),
        Column("flops_ratio", "FLOPs\nallow", "ratio"),
        Column("activations_bytes", f"activations\n{unit}", "bytes"),
    ]
    rows = []
    for record in records:
        flops, time_ms = record.metrics.get("flops"), record.metrics.get(METRICS[workload])
        found = {limit["name"]: limit for limit in _limits(record)}
        fractions = [entry for name in names for entry in _fraction([found[name]] if name in found else [])]
        rows.append(
            (
                *_setting(record),
                _time(record),
                _number(flops, 1e9),
                _number(flops / time_ms * 1e3 if flops and time_ms else None, 1e9),
                *fractions,
                *_advantage(record, records, "flops"),
                _number(record.metrics.get("activations_bytes"), size),
            )
        )
    titles = {
        "prefill": "Prefill against matrix products",
        "train_step": "Forward and backward against matrix products",
    }
    notes = (
        "of torch.mm, of packed: operations that the pass must make (models/flops.py) / time, over the rate of a "
        "product as wide as the FFN, sampled beside it in the same rounds; activations: peak beyond weights and state",
        *_failures(records),
        *_conditions(records),
    )
    return Table(workload, titles[workload], tuple(columns), tuple(rows), notes, _SECTION)


def training_table(records: Sequence[Record]) -> Table:
    """Time and tokens/s of a training step of every system, beside transformer-flash of the same rounds."""
    unit, size = memory_unit([record.metrics.get("activations_bytes") for record in records])
    columns = (
        *_columns(_SETTING),
        Column("form", "form", justify="left", detail="page"),
        Column("train_step_ms", "ms", "ms"),
        Column("tokens_per_s", "tok/s", "tokens/s"),
        Column("speedup", "vs\nflash", "ratio"),
        Column("speedup_low", "95 %\ninterval"),
        Column("activations_bytes", f"activations\n{unit}", "bytes"),
    )
    rows = [
        (
            *_setting(record),
            _plain(record.cell.form),
            _time(record),
            _number(record.metrics.get("tokens_per_s")),
            *_faster_than(next((one for one in _rivals(record, records) if one.cell.system == FLASH), None), record),
            _number(record.metrics.get("activations_bytes"), size),
        )
        for record in records
    ]
    notes = (
        f"forward and backward of one sequence; vs {FLASH}: its time / this one's, paired by round; activations: peak "
        "beyond the weights, gradients included",
        *_failures(records),
        *_conditions(records),
    )
    return Table("train_systems", "Forward and backward of every system", columns, tuple(rows), notes, _SECTION)


# ---- columns that tables share ------------------------------------------------------------------------------------

_SETTING = {
    "system": "system", "shape": "d x layers", "dtype": "dtype", "threads": "thr.", "batch_size": "batch",
    "seq_len": "length",
}  # fmt: skip
_SECTION = ("shape", "dtype", "threads", "batch_size", "seq_len")


def _columns(heads: dict[str, str]) -> list[Column]:
    return [Column(name, head, justify="left") for name, head in heads.items()]


def _shape(record: Record) -> tuple[int, int]:
    size = SIZES[record.cell.size]
    return size.d_model, record.cell.n_layers or size.n_layers


def _setting(record: Record) -> Row:
    cell, (d_model, n_layers) = record.cell, _shape(record)
    name = cell.system + f" {cell.quantize}" * (cell.quantize != "none") + " compiled" * cell.compile
    plain = (f"{d_model} x {n_layers}", cell.dtype, cell.threads, cell.batch_size, cell.seq_len)
    return (_plain(name), *(_plain(value) for value in plain))


def _plain(value: str | int) -> Entry:
    return Entry(value, str(value))


def _status(record: Record) -> Entry:
    return Entry(None, ABSENT if record.status == "ok" else record.status, record.status not in ("ok", "skipped"))


def _number(value: float | None, size: float = 1.0) -> Entry:
    return Entry(value, ABSENT if value is None else significant(value / size))


def _ratio(value: float | None) -> Entry:
    return Entry(value, ratio(value))


def _time(record: Record) -> Entry:
    name = METRICS[record.cell.workload]
    value, low, high = (record.metrics.get(f"{name}{end}") for end in ("", "_low", "_high"))
    return _status(record) if value is None else Entry(value, with_interval(value, low, high))


def _limits(record: Record) -> list[Limit]:
    found: list[Limit] = record.notes.get("limits", [])
    return found


def _limit(record: Record, field: str) -> Any:
    return _limits(record)[0][field] if _limits(record) else None


def _speed(limit: Limit) -> Entry:
    return Entry(limit["per_s"], with_interval(*(limit[f"per_s{end}"] / 1e9 for end in ("", "_low", "_high"))))


def _fraction(limits: Sequence[Limit]) -> Row:
    """The fraction of a limit and its interval; absent for none."""
    if not limits:
        return Entry(None, ABSENT), Entry(None, ABSENT)
    (limit,) = limits
    return _range(Interval(limit["fraction"], limit["fraction_low"], limit["fraction_high"]))


def _range(interval: Interval) -> Row:
    low, high = ratio(interval.low), ratio(interval.high)
    return Entry(interval.value, ratio(interval.value)), Entry(interval.low, f"{low} to {high}")


# ---- ratios -------------------------------------------------------------------------------------------------------


def _advantage(record: Record, records: Sequence[Record], amount: str) -> Row:
    """Speed-up over the fastest Transformer of the record's group, paired by round, and what the amounts allow."""
    best = fastest_transformer(record, records)
    compared = best is not None and best is not record and record.status == "ok"
    allowed = best.metrics[amount] / record.metrics[amount] if best and compared else None
    return (*_faster_than(best, record), _ratio(allowed))


def _faster_than(base: Record | None, record: Record) -> Row:
    """Speed-up over ``base`` with its interval, paired by round; * for the base itself."""
    if base is record:
        return Entry(1.0, "*"), Entry(None, ABSENT)
    found = time_ratio(base, record, "round_ns") if base and record.status == "ok" else None
    return _range(found) if found else (Entry(None, ABSENT),) * 2


def fastest_transformer(record: Record, records: Sequence[Record]) -> Record | None:
    """The Transformer of the smallest time among the rivals of a record."""
    metric: Callable[[Record], float] = lambda one: one.metrics[METRICS[one.cell.workload]]  # noqa: E731
    return min(_rivals(record, records), key=metric, default=None)


def _rivals(record: Record, records: Sequence[Record]) -> list[Record]:
    """The Transformers measured in the same rounds with the same kind of weights."""
    return [
        one
        for one in records
        if one.status == "ok"
        and same_rounds(one, record)
        and one.cell.quantize == record.cell.quantize
        and one.cell.system.startswith(BASELINE)
    ]


# ---- footnotes ----------------------------------------------------------------------------------------------------


def _failures(records: Sequence[Record]) -> tuple[str, ...]:
    return tuple(f"{one.status}: {one.reason} - {one.cell.label}" for one in records if one.status != "ok")


def _conditions(records: Sequence[Record]) -> tuple[str, ...]:
    counts = sorted({record.notes["rounds"] for record in records if "rounds" in record.notes})
    words = " to ".join(str(count) for count in dict.fromkeys(counts[:1] + counts[-1:]))
    rounds = (f"{words} rounds",) if counts else ()
    return (", ".join(("measured on " + measured_words(records), *rounds)), *disturbance_words(records))
