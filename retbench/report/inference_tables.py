"""The tables of the inference experiment: every cell, the headline ratios, and how TPOT grows over context."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from retbench.record import Record
from retbench.report.conditions import disturbance_words, measured_words
from retbench.report.frame import BASELINE, CHALLENGER, METRICS, SETTING, headline_group, rows, to_frame
from retbench.report.numbers import ABSENT, memory_unit, ratio, significant, with_interval
from retbench.report.paper import QUANTITIES, Paper, Quantity
from retbench.report.tables import Column, Detail, Entry, Table, shortened

Row = dict[str, Any]
Maker = Callable[[Row], Entry]
CONDITIONS = {name: name for name in ("dtype", "device", "threads", "machine")} | {
    "quantize": "quantized",
    "compile": "compiled",
}
CONCAT_CACHE = "transformer-concat-cache"
NATIVE = "native"  # how the backend of a cell with native steps begins


def inference_table(records: Sequence[Record], paper: Paper) -> Table:
    """Every cell: TTFT, TPOT, tokens/s, peak memory and its ratios; a cell without a number shows its status."""
    frame = to_frame(records)
    frame = frame.sort_values([*SETTING, "seq_len", "batch_size"], key=_in_order)
    body = rows(frame)
    makers = _cell_columns(frame) + _measured_columns(frame) + _ratio_columns(paper) + _data_columns()
    return Table(
        name="inference",
        title="Inference, cell by cell",
        columns=tuple(column for column, _ in makers),
        rows=tuple(tuple(make(row) for _, make in makers) for row in body),
        footnotes=(
            *(*_definitions(paper), *_failures(body), *_plain_steps(body)),
            *(*_quantized(body), *_conditions(records)),
        ),
        section=tuple(column.name for column, _ in makers if column.name in _section(frame)),
    )


def headline_table(records: Sequence[Record], paper: Paper) -> Table:
    """RetNet's advantage in memory, throughput and latency at the largest length and batch measured."""
    group = rows(to_frame(headline_group(records)))
    found = [row for row in group if row["system"] == CHALLENGER]
    if not found:
        return Table("headline", "RetNet against Transformers", (), (), (f"{CHALLENGER} was not measured",))
    retnet, others = found[-1], {row["system"]: row for row in group}
    against = {BASELINE: "transformer", "fastest": "fastest\nTransformer"}
    against |= {CONCAT_CACHE: "concat-\ncache"} if CONCAT_CACHE in others else {}
    columns = [Column("quantity", "RetNet's advantage over", justify="left")]
    columns += [Column(f"vs_{name.replace('-', '_')}", head, "ratio") for name, head in against.items()]
    columns += [_BYTES, Column("paper_ratio", "paper\nsays", "ratio"), _PAPER_HOW]
    fastest = retnet["fastest"]
    bases = [others.get(fastest if name == "fastest" else name) for name in against]
    return Table(
        name="headline",
        title=f"RetNet against Transformers: {_where(retnet)}",
        columns=tuple(columns),
        rows=tuple(_headline_row(retnet, bases, quantity, paper) for quantity in _QUANTITIES),
        footnotes=(
            f"fastest Transformer here: {fastest or 'none was measured'}; throughput is averaged over positions 1 to "
            f"{retnet['seq_len']}, latency is TPOT at the last position, memory the peak of decode there",
            _BYTES_NOTE,
            f"paper says, {paper.setting.words}: {_claims(paper)}",
            *_failures([row for row in group if row["tpot_ms"] is None]),
            *_conditions(records),
        ),
    )


def slope_table(records: Sequence[Record]) -> Table:
    """How much TPOT grows per 1024 tokens of context, a row for each system at the headline's length and batch."""
    group = rows(to_frame(headline_group(records)))
    name = "tpot_slope_ms_per_1k_tokens"
    body = []
    for row in group:
        value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
        slope = Entry(value, significant(value)) if value is not None else no_number(row)
        interval = f"{significant(low)} to {significant(high)}" if None not in (low, high) else ABSENT
        body.append((Entry(row["system"], row["system"]), slope, Entry(low, interval), _raw(high)))
    return Table(
        name="slope",
        title=f"TPOT over context: {_where(group[0])}" if group else "TPOT over context",
        columns=(
            Column("system", "system", justify="left"),
            Column(name, "slope\nms per 1k tokens", "ms per 1024 tokens"),
            Column(f"{name}_low", "95 % interval", "ms per 1024 tokens"),
            Column(f"{name}_high", "its upper end", "ms per 1024 tokens", detail="data"),
        ),
        rows=tuple(body),
        footnotes=("about 0 where a step does not depend on the context, positive for a KV cache",),
    )


# ---- the columns of the main table --------------------------------------------------------------------------------


def _cell_columns(frame: pd.DataFrame) -> list[tuple[Column, Maker]]:
    """What was measured: the system, and the conditions that the sections of a terminal are made of."""
    heads = {"size": "size", "batch_size": "batch", "seq_len": "length"}
    found = [(Column("system", "system", justify="left"), _words("system"))]
    found += [(Column(name, head, justify="left"), _words(name)) for name, head in heads.items()]
    for name, head in CONDITIONS.items():
        detail: Detail = "terminal" if name in _section(frame) else "data"
        found.append((Column(name, head, justify="left", detail=detail), _words(name)))
    data = ("workload", "backend", "form", "seed", "mem_limit_bytes", "status", "reason", "created_at", "samples")
    return found + [(Column(name, name, justify="left", detail="data"), _words(name)) for name in data]


def _measured_columns(frame: pd.DataFrame) -> list[tuple[Column, Maker]]:
    """Times, rates and memory, then what only a page has room for."""
    unit, size = memory_unit(frame["peak_memory_bytes"].dropna())
    found: list[tuple[Column, Maker]] = [
        (Column("ttft_ms", "TTFT\nms", "ms"), _ttft),
        (Column("tpot_ms", "TPOT\nms", "ms"), _tpot),
        (Column("tokens_per_s", "tok/s\nlast", "tokens/s", detail="page"), _number("tokens_per_s")),
        (Column("tokens_per_s_mean", "tok/s\nmean", "tokens/s"), _number("tokens_per_s_mean")),
        (Column("peak_memory_bytes", f"peak\n{unit}", "bytes"), _memory("peak_memory_bytes", size)),
    ]
    for part in ("weights", "state", "activations"):
        column = Column(f"{part}_bytes", f"{part}\n{unit}", "bytes", detail="page")
        found.append((column, _memory(column.name, size)))
    return found


def _ratio_columns(paper: Paper) -> list[tuple[Column, Maker]]:
    """The ratios against the Transformers of the same conditions, and the paper's beside them."""
    heads = {
        "speedup_vs_transformer": "vs\nbase",
        "speedup_vs_fastest": "vs\nbest",
        "bytes_ratio": "bytes\nallow",
        "paper_latency_ratio": "paper\nsays",
        "throughput_mean_vs_transformer": "tok/s mean\nvs base",
        "paper_throughput_ratio": "paper\nsays",
        "memory_vs_transformer": "peak\nvs base",
        "paper_memory_ratio": "paper\nsays",
    }
    terminal = list(heads)[:4]
    found = []
    for name, head in heads.items():
        quantity = next((quantity for quantity in QUANTITIES if name == f"paper_{quantity}_ratio"), None)
        detail: Detail = "terminal" if name in terminal else "page"
        maker = _paper_ratio(paper, quantity) if quantity else _ratio_of(name)
        found.append((Column(name, head, "ratio", detail=detail), maker))
    return found


def _data_columns() -> list[tuple[Column, Maker]]:
    """The metrics that no person asked to read, for csv and json."""
    shown = {column.name for column, _ in _measured_columns(pd.DataFrame({"peak_memory_bytes": []}))}
    rest = [name for name in METRICS if name not in shown]
    names = ["ttft_status", "ttft_reason", "fastest", *rest, "memory_vs_fastest", "throughput_mean_vs_fastest"]
    return [(Column(name, name, detail="data"), _words(name)) for name in names]


def _words(name: str) -> Maker:
    return lambda row: Entry(row[name], ABSENT if row[name] is None else str(row[name]))


def _number(name: str) -> Maker:
    return lambda row: Entry(row[name], significant(row[name]))


def _memory(name: str, size: int) -> Maker:
    return lambda row: Entry(row[name], significant(row[name] / size, 4 if row[name] >= 1000 * size else 3)
                             if row[name] is not None else ABSENT)  # fmt: skip


def _ratio_of(name: str) -> Maker:
    return lambda row: Entry(row[name], ratio(row[name]))


def _ttft(row: Row) -> Entry:
    if row["ttft_ms"] is not None:
        return Entry(row["ttft_ms"], significant(row["ttft_ms"]))
    status = row["ttft_status"] or (row["status"] if row["tpot_ms"] is not None else None)
    return Entry(None, status if status not in (None, "ok") else ABSENT, status not in (None, "ok", "skipped"))


def _tpot(row: Row) -> Entry:
    if row["tpot_ms"] is None:
        return no_number(row)
    return Entry(row["tpot_ms"], with_interval(row["tpot_ms"], row["tpot_ms_low"], row["tpot_ms_high"]))


def _paper_ratio(paper: Paper, quantity: Quantity) -> Maker:
    """The paper's ratio in RetNet's rows, where it has one for that length and batch; ~ marks one read off a figure."""

    def make(row: Row) -> Entry:
        found = paper.ratio(quantity, row["seq_len"], row["batch_size"]) if row["system"] == CHALLENGER else None
        if found is None:
            return Entry(None, ABSENT)
        return Entry(round(found.value, 3), f"{found.value:g}" if found.how == "read" else f"~{found.value:.1f}")

    return make


# ---- the headline -------------------------------------------------------------------------------------------------

_QUANTITIES: dict[Quantity, tuple[str, str, str | None]] = {
    "memory": ("peak memory", "peak_memory_bytes", None),
    "throughput": ("throughput, averaged", "tokens_per_s_mean", "bytes_ratio_mean"),
    "latency": ("latency, last position", "tpot_ms", "bytes_ratio"),
}
_BYTES = Column("bytes_ratio", "bytes\nallow", "ratio")
_PAPER_HOW = Column("paper_how", "how the paper's ratio was obtained", detail="data")


def _headline_row(retnet: Row, bases: Sequence[Row | None], quantity: Quantity, paper: Paper) -> tuple[Entry, ...]:
    words, metric, allowed = _QUANTITIES[quantity]
    claim = paper.claims[quantity]
    return (
        Entry(quantity, words),
        *(_advantage(retnet, base, metric) for base in bases),
        Entry(retnet[allowed], _times(retnet[allowed])) if allowed else _raw(None),
        Entry(claim.ratio.value, f"{claim.ratio.value:g}×"),
        _raw(claim.ratio.how),
    )


def _advantage(retnet: Row, base: Row | None, metric: str) -> Entry:
    """How many times better RetNet is, above 1 where it wins; the status of whichever side failed."""
    if base is None:
        return Entry(None, "not measured")
    for row in (retnet, base):
        if not row[metric]:
            return no_number(row)
    value = retnet[metric] / base[metric] if metric.startswith("tokens") else base[metric] / retnet[metric]
    return Entry(value, _times(value))


def _times(value: float | None) -> str:
    return ABSENT if value is None else f"{ratio(value)}×"


def _raw(value: str | float | None) -> Entry:
    return Entry(value, ABSENT if value is None else str(value))


# ---- footnotes ----------------------------------------------------------------------------------------------------

_BYTES_NOTE = (
    "bytes allow: bytes that a decode step of the fastest Transformer must move / those of this system, "
    "the speed-up that memory bandwidth alone allows"
)


def _definitions(paper: Paper) -> tuple[str, ...]:
    return (
        "TTFT: prefill of the length; TPOT: median decode step at the last position ± its 95 % interval; tok/s: whole "
        "batch, mean over positions 1 to length; peak: memory of decode at the length, weights + KV cache or recurrent "
        "state + activations",
        f"advantage in TPOT (where said, tok/s mean or peak): vs base = over {BASELINE}, vs best = over the fastest "
        "Transformer of the section",
        _BYTES_NOTE,
        f"paper says: its ratio at this length and batch, ~ when read off a figure ({paper.setting.words})",
    )


def _claims(paper: Paper) -> str:
    """The paper's headline in words, each ratio with its conditions."""
    return "; ".join(
        f"{quantity} {claim.ratio.value}× ({claim.conditions})" for quantity, claim in paper.claims.items()
    )


def _failures(body: Sequence[Row]) -> tuple[str, ...]:
    """A line for each status and reason, naming the cells that share it."""
    cells: dict[str, list[str]] = {}
    for row in body:
        if row["status"] != "ok":
            cells.setdefault(f"{row['status']}: {shortened(row['reason'])}", []).append(_cell(row))
        elif row["ttft_status"] not in (None, "ok"):
            reason = f"TTFT {row['ttft_status']}: {shortened(row['ttft_reason'] or 'no reason given')}"
            cells.setdefault(reason, []).append(_cell(row))
    return tuple(f"{reason} - {'; '.join(names)}" for reason, names in cells.items())


def _plain_steps(body: Sequence[Row]) -> tuple[str, ...]:
    """The rows whose steps are torch's operators beside others in native code, which are not alike in that."""
    measured = [row for row in body if row["tpot_ms"] is not None]
    plain = dict.fromkeys(_named(row) for row in measured if not row["backend"].startswith(NATIVE))
    if not plain or len(plain) == len({_named(row) for row in measured}):
        return ()
    return (f"decoded by torch's operators, the others in native code: {', '.join(plain)}",)


def _quantized(body: Sequence[Row]) -> tuple[str, ...]:
    """What quantizing does to each system: the largest error of its logits, and its speed where both were measured."""
    matched = ("machine", "device", "dtype", "threads", "size", "system", "batch_size", "seq_len")
    plain = {tuple(row[name] for name in matched): row["tpot_ms"] for row in body if row["quantize"] == "none"}
    words: dict[str, list[str]] = {}
    for row in body:
        if row["quantize"] != "none" and row["logit_error"] is not None:
            said = words.setdefault(row["system"], [f"error {row['logit_error']:.2%}"])
            before = plain.get(tuple(row[name] for name in matched))
            if before and row["tpot_ms"]:
                said.append(f"{ratio(before / row['tpot_ms'])}x as fast at {_where(row)}")
    if not words:
        return ()
    systems = "; ".join(f"{system} {', '.join(said)}" for system, said in words.items())
    return (f"int8 weights: error of the logits (rms, relative) against the same weights as they are: {systems}",)


def _conditions(records: Sequence[Record]) -> tuple[str, ...]:
    if not records:
        return ("no records",)
    return (f"measured on {measured_words(records)}", *disturbance_words(records))


def _named(row: Row) -> str:
    return str(row["system"]) + ("" if row["quantize"] == "none" else f" {row['quantize']}")


def _cell(row: Row) -> str:
    return f"{row['system']} {_where(row)}"


def _where(row: Row) -> str:
    return f"{row['size']}, batch {row['batch_size']}, length {row['seq_len']}"


def no_number(row: Row) -> Entry:
    """In the place of a number that a row lacks: its status."""
    status = row["status"]
    return Entry(None, ABSENT if status == "ok" else str(status), status not in ("ok", "skipped"))


def _section(frame: pd.DataFrame) -> list[str]:
    """The columns that make a section: size, batch and length, and each other condition that differs between rows."""
    differing = [name for name in CONDITIONS if frame[name].nunique() > 1]
    return ["size", "batch_size", "seq_len", *differing]


def _in_order(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Sort key: lengths and batches by size, other conditions by first appearance, so that sizes stay as asked for."""
    return column if column.name in ("seq_len", "batch_size") else pd.Series(pd.factorize(column)[0], column.index)
