"""What the tests of the harness share: processes and their end, torch on one thread, a clock and children to order."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from retbench import isolate, timing
from retbench.isolate import Outcome


def is_running(pid: int) -> bool:
    """Whether the process exists and is more than an entry that nobody has collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for_end(pid: int) -> None:
    """Returns when the process has ended; a test that waits in vain is ended by pytest."""
    while is_running(pid):
        time.sleep(0.01)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread and the default dtype as it was: the products are small, and a worker sets both for its process."""
    import torch

    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


@dataclass
class Clock:
    """Stands in for the time module of ``timing``: moves when told to, its CPU clock at half the speed."""

    now_ns: int = 0
    synchronized_at: list[int] = field(default_factory=list)

    def perf_counter_ns(self) -> int:
        return self.now_ns

    def process_time_ns(self) -> int:
        return self.now_ns // 2

    def monotonic(self) -> float:
        return self.now_ns / 1e9

    def pass_100_ms(self) -> None:
        self.now_ns += 10**8

    def synchronize(self) -> None:
        """A device's part: notes when it was called."""
        self.synchronized_at.append(self.now_ns)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stand_in = Clock()
    monkeypatch.setattr(timing, "time", stand_in)
    return stand_in


PREDICTION = {
    "parameters": 1000,
    "weights_bytes": 4000,
    "state_bytes": 200,
    "step_bytes": 4100,
    "step_allocated_bytes": 800,
    "step_moved_bytes": 6000,
    "step_flops": 2000,
    "peak_memory_bytes": 5000,
    "prefill_peak_memory_bytes": 9000,
    "prefill_allocated_bytes": 20_000,
}
MEASURED: dict[str, Any] = {
    "metrics": {
        "tpot_ms": 2.0,
        "tpot_ms_low": 1.9,
        "tpot_ms_high": 2.1,
        "ttft_ms": 10.0,
        "ttft_ms_low": 9.0,
        "ttft_ms_high": 11.0,
        "ttft_status": "ok",
        "tokens_per_s": 500.0,
        "tokens_per_s_mean": 520.0,
        "tpot_slope_ms_per_1k_tokens": 0.1,
        "tpot_slope_ms_per_1k_tokens_low": -0.1,
        "tpot_slope_ms_per_1k_tokens_high": 0.2,
        "peak_memory_bytes": 5000,
        "weights_bytes": 4000,
        "state_bytes": 200,
        "activations_bytes": 800,
        "step_bytes": 4100,
    },
    "contexts": [{"context": 1, "tpot_ms": 1.8}, {"context": 64, "tpot_ms": 2.0}],
    "samples": {"step_ns": [2_000_000] * 3, "cpu_ns": [2_000_000] * 3},
    "warmup": {"discarded": 4, "first_ns": 3_000_000},
    "cell": {"backend": "torch", "form": "recurrent"},
}


@dataclass
class Children:
    """Answers requests as children would, and keeps the cells that it was asked to measure."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)  # by system, where it is not ok
    measured: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)

    def run(self, command: Sequence[str], request: dict[str, Any], timeout_s: float, *_: object) -> Outcome:
        self.requests.append(request)
        if request["task"] == "predict":
            messages = [{"predicted": PREDICTION, "problem": None} for _ in request["cells"]]
            return Outcome("ok", None, messages)
        self.measured.append(request["cell"])
        return self.outcomes.get(request["cell"]["system"], Outcome("ok", None, [MEASURED]))


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    """Replaces the processes of a sweep: no torch, no waiting."""
    stand_in = Children()
    monkeypatch.setattr(isolate, "run_child", stand_in.run)
    return stand_in
