"""Records as a pandas DataFrame, one row a record, with the ratios against the Transformers of the same conditions."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from retbench.record import Record
from retbench.spec import Cell

CHALLENGER = "retnet"
BASELINE = "transformer"  # the paper's
TRANSFORMERS = (BASELINE, "llama")  # what the names of Transformers begin with, those of peers included

SETTING = ["machine", "device", "dtype", "threads", "quantize", "compile", "size"]
GROUP = [*SETTING, "batch_size", "seq_len"]  # only rows that agree in these are compared with each other

METRICS = (
    ["ttft_ms", "ttft_ms_low", "ttft_ms_high", "tpot_ms", "tpot_ms_low", "tpot_ms_high", "tpot_ms_p90", "tpot_ms_p99"]
    + ["tokens_per_s", "tokens_per_s_mean"]
    + [f"tpot_slope_ms_per_1k_tokens{end}" for end in ("", "_low", "_high")]
    + ["peak_memory_bytes", "weights_bytes", "state_bytes", "activations_bytes", "step_bytes"]
    + ["predicted_peak_memory_bytes", "residual_bytes", "prefill_peak_memory_bytes", "prefill_residual_bytes"]
    + ["vm_hwm_bytes"]
    + ["cuda_allocated_bytes", "cuda_reserved_bytes", "nvml_used_bytes", "parameters", "energy_mj_per_token"]
    + ["logit_error"]
)
WORDS = ["ttft_status", "ttft_reason"]
RECORD = ["status", "reason", "created_at", "machine", "samples", "step_bytes_mean"]
COLUMNS = list(dict.fromkeys([*Cell.__dataclass_fields__, *RECORD, *METRICS, *WORDS]))


def to_frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row a record, in order: cell fields, status, metrics (NaN where absent) and these ratios.

    ``speedup_vs_transformer``, ``speedup_vs_fastest``: TPOT of the baseline / TPOT; the fastest is the Transformer of
    the smallest TPOT in the row's group, named in ``fastest``. ``bytes_ratio``: bytes that a decode step of that
    fastest Transformer moves / bytes of this row, the speed-up that memory bandwidth alone allows;
    ``bytes_ratio_mean`` is the same averaged over positions. ``memory_vs_*``: peak memory of the baseline / peak
    memory. ``throughput_mean_vs_*``: tokens/s averaged over positions / that of the baseline. NaN without a baseline.
    """
    frame = pd.DataFrame([_row(record) for record in records], columns=COLUMNS)
    numbers = [*METRICS, "step_bytes_mean"]
    frame[numbers] = frame[numbers].astype("float64")
    known = frame.drop_duplicates([*GROUP, "system"], keep="last")
    naive = _matched(frame, known[known["system"] == BASELINE])
    transformers = known[known["system"].astype("str").str.startswith(TRANSFORMERS) & known["tpot_ms"].notna()]
    fastest = _matched(frame, transformers.sort_values("tpot_ms", kind="stable").drop_duplicates(GROUP))
    frame["fastest"] = fastest["system"]
    for name, base in (("transformer", naive), ("fastest", fastest)):
        frame[f"speedup_vs_{name}"] = base["tpot_ms"] / frame["tpot_ms"]
        frame[f"memory_vs_{name}"] = base["peak_memory_bytes"] / frame["peak_memory_bytes"]
        frame[f"throughput_mean_vs_{name}"] = frame["tokens_per_s_mean"] / base["tokens_per_s_mean"]
    frame["bytes_ratio"] = fastest["step_bytes"] / frame["step_bytes"]
    frame["bytes_ratio_mean"] = fastest["step_bytes_mean"] / frame["step_bytes_mean"]
    ratios = [name for name in frame.columns if "_vs_" in name or name.startswith("bytes_ratio")]
    frame[ratios] = frame[ratios].replace([np.inf, -np.inf], np.nan)
    return frame


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as dictionaries with None for whatever is absent; counts of bytes and parameters are int."""
    return [{str(name): _plain(str(name), value) for name, value in row.items()} for row in frame.to_dict("records")]


def main_setting(records: Sequence[Record]) -> list[Record]:
    """Those of the one setting (machine, device, dtype, threads, weights, size) that holds the headline cell."""
    return _agreeing(records, SETTING)


def headline_group(records: Sequence[Record]) -> list[Record]:
    """The last of each system at the largest length, and there the largest batch, that the challenger has."""
    return list({record.cell.system: record for record in _agreeing(records, GROUP)}.values())


def _agreeing(records: Sequence[Record], names: Sequence[str]) -> list[Record]:
    """Those that agree in ``names`` with the largest cell measured, of the challenger if it was, the last of equals."""
    measured = [record for record in records if record.metrics.get("tpot_ms") is not None]
    pools = ([record for record in measured if record.cell.system == CHALLENGER], measured, records)
    pool = next((pool for pool in pools if pool), [])
    wanted = [_facts(one, names) for one in sorted(pool, key=_extent)[-1:]]
    return [record for record in records if _facts(record, names) in wanted]


def _extent(record: Record) -> tuple[int, int, float]:
    return record.cell.seq_len, record.cell.batch_size, record.metrics.get("weights_bytes") or 0


def _facts(record: Record, names: Sequence[str]) -> list[object]:
    """Fields of the cell, and the machine."""
    return [record.machine if name == "machine" else getattr(record.cell, name) for name in names]


def _row(record: Record) -> dict[str, Any]:
    """Cell fields, status and metrics of a record; unknown metrics are left to the record itself."""
    predicted = {"predicted_peak_memory_bytes": record.predicted.get("peak_memory_bytes")}
    metrics = {name: record.metrics.get(name) for name in (*METRICS, *WORDS)}
    return {
        **metrics,
        **{name: value for name, value in predicted.items() if metrics[name] is None},
        **vars(record.cell),
        "status": record.status,
        "reason": record.reason,
        "created_at": record.created_at,
        "machine": record.machine,
        "samples": len(record.samples.get("step_ns", [])),
        "step_bytes_mean": mean_over_positions(record, "step_bytes"),
    }


def mean_over_positions(record: Record, name: str) -> float:
    """Mean over positions 1..seq_len of a number known at the contexts, by the trapezoidal rule; NaN where unknown."""
    known = [(point["context"], point[name]) for point in record.contexts if point.get(name) is not None]
    if len(known) < 2 or len(known) < len(record.contexts):
        return math.nan
    depths, values = (np.array(column, dtype=np.float64) for column in zip(*known, strict=True))
    return float(np.sum((values[1:] + values[:-1]) / 2 * np.diff(depths)) / (depths[-1] - depths[0]))


def _matched(frame: pd.DataFrame, baselines: pd.DataFrame) -> pd.DataFrame:
    """For each row of ``frame``, in its order, the baseline of its group (at most one), NaN where there is none."""
    matched = frame[GROUP].merge(baselines, how="left", on=GROUP)
    return matched.set_index(frame.index)


def _plain(name: str, value: Any) -> Any:
    if value is None or value is pd.NA or value != value:  # NaN alone differs from itself
        return None
    value = value.item() if isinstance(value, np.generic) else value
    return int(value) if name.endswith("_bytes") or name == "parameters" else value
