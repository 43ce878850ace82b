"""What the tests of retbench share."""

from retbench.record import Record
from retbench.spec import Cell

EXAMPLE = Record(
    experiment="inference",
    cell=Cell("retnet", "small", "decode", seq_len=8192, batch_size=1, dtype="bf16", device="cpu", threads=2),
    status="ok",
    reason=None,
    key="0",
    created_at="2025-01-01T00:00:00Z",
    environment={"fingerprint": "f", "torch": "2.13.0"},
    metrics={"tpot_ms": 1.5, "peak_memory_bytes": 4096},
    samples={"step_ns": [1, 2, 3]},
)
