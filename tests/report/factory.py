"""Synthetic records for the tests of the report: a roofline-like model of the systems, no clock involved."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from retbench.record import Record, Status
from retbench.spec import Cell

SYSTEMS = ("retnet", "transformer", "transformer-flash", "transformer-concat-cache")
WEIGHTS = 170_000_000
CACHE_PER_TOKEN = 36_864
RECURRENT_STATE = 14_155_776
SLOWDOWN = {"transformer": 2.0, "transformer-flash": 1.6, "transformer-concat-cache": 14.0}
ENVIRONMENT = {
    "machine": "lab-2c", "cpu": "Intel(R) Xeon(R) Processor @ 2.60GHz", "cores": 2, "gpu": None, "python": "3.11.9",
    "torch": "2.13.0+cpu", "commit": "0123456789abcdef0123", "dirty": True,
}  # fmt: skip


def cell(system: str = "retnet", seq_len: int = 8192, batch_size: int = 8, **other: Any) -> Cell:
    known = Cell(system, "small", "decode", seq_len, batch_size, "bf16", "cpu", 2, backend="packed", form="recurrent")
    return replace(known, **other)


def record(
    of: Cell | None = None, status: Status = "ok", metrics: dict[str, Any] | None = None, **other: Any
) -> Record:
    """A record with exactly these metrics."""
    reason = None if status == "ok" else other.pop("reason", f"{status} for a reason")
    given = {"experiment": "inference", "key": "0", "created_at": "2026-01-01T00:00:00Z", "environment": ENVIRONMENT}
    return Record(cell=of or cell(), status=status, reason=reason, metrics=metrics or {}, **{**given, **other})


def measured(of: Cell) -> Record:
    """A full record with plausible numbers and contexts."""
    contexts = [_context(of, depth) for depth in sorted({1, of.seq_len // 4, of.seq_len // 2, of.seq_len})]
    last = contexts[-1]
    mean = sum(point["tpot_ms"] for point in contexts[1:]) / 3
    slope = (last["tpot_ms"] - contexts[0]["tpot_ms"]) / of.seq_len * 1024
    metrics = {
        "ttft_ms": 0.9 * of.seq_len * of.batch_size, "ttft_status": "ok", "ttft_reason": None,
        "tpot_ms": last["tpot_ms"], "tpot_ms_low": last["tpot_ms_low"], "tpot_ms_high": last["tpot_ms_high"],
        "tokens_per_s": 1000 * of.batch_size / last["tpot_ms"], "tokens_per_s_mean": 1000 * of.batch_size / mean,
        "tpot_slope_ms_per_1k_tokens": slope, "tpot_slope_ms_per_1k_tokens_low": slope - 0.02,
        "tpot_slope_ms_per_1k_tokens_high": slope + 0.03, "peak_memory_bytes": last["peak_memory_bytes"],
        "weights_bytes": WEIGHTS, "state_bytes": last["state_bytes"], "activations_bytes": 3_000_000,
        "step_bytes": last["step_bytes"], "predicted_peak_memory_bytes": last["peak_memory_bytes"],
    }  # fmt: skip
    return record(of, metrics=metrics, contexts=contexts, samples={"step_ns": [int(last["tpot_ms"] * 1e6)] * 40})


def sweep(
    systems: Sequence[str] = SYSTEMS, lengths: Sequence[int] = (8192,), batches: Sequence[int] = (1, 8)
) -> list[Record]:
    """A record for every combination."""
    return [measured(cell(system, length, batch)) for length in lengths for batch in batches for system in systems]


def failed(of: Cell, status: Status, reason: str) -> Record:
    return record(of, status, reason=reason, predicted={"peak_memory_bytes": 9_000_000_000})


def _context(of: Cell, depth: int) -> dict[str, Any]:
    recurrent = of.system == "retnet" or not of.system.startswith("transformer")
    state = of.batch_size * (RECURRENT_STATE if recurrent else CACHE_PER_TOKEN * depth)
    moved = WEIGHTS + state * (2 if recurrent else SLOWDOWN.get(of.system, 2.0))
    tpot = 2.0 + moved / 12e6
    return {
        "context": depth, "tpot_ms": tpot, "tpot_ms_low": tpot * 0.985, "tpot_ms_high": tpot * 1.02,
        "peak_memory_bytes": WEIGHTS + state + 3_000_000, "state_bytes": state, "step_bytes": WEIGHTS + state,
        "step_ns": [int(tpot * 1e6)] * 10, "cpu_ns": [int(tpot * 1e6)] * 10,
    }  # fmt: skip
