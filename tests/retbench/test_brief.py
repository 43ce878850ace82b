"""What a process of the gate sends: few calls, exact counts; mistakes that tests of outputs miss change the counts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models import build, retention
from models.language_model import LanguageModel
from models.transformer import KVCache
from retbench import worker
from retbench.devices.cpu import DEVICE as CPU
from retbench.gate import judge_count
from retbench.measure import Task, brief
from retbench.measure.reference import VERSION, make_reference
from retbench.spec import Cell
from retbench.timing import Deadline

pytestmark = pytest.mark.usefixtures("one_thread")

Change = Callable[[LanguageModel, pytest.MonkeyPatch], object]


def cell(system: str = "retnet", workload: str = "decode") -> Cell:
    return Cell(system, "tiny", workload, seq_len=24, batch_size=2, dtype="fp32", device="cpu", threads=1)


def counts(of: Cell, change: Change = lambda model, patch: None) -> dict[str, int]:
    """The counted metrics of a cell, of a model that was changed first."""
    with torch.inference_mode(of.workload != "train_step"), pytest.MonkeyPatch.context() as patch:
        model = build(of.system, of.size, vocab_size=64)
        change(model, patch)
        found: dict[str, int] = brief.count(model, Task(of, CPU, Deadline(0.0), {}))["metrics"]
    return found


def regressions(of: Cell, change: Change) -> set[str]:
    """The counted metrics that see a change."""
    base, head = counts(of), counts(of, change)
    return {
        name for name in base if name in head and judge_count([base[name]], [head[name]], False).verdict == "regressed"
    }


@pytest.mark.parametrize("workload", ["decode", "prefill", "train_step"])
@pytest.mark.parametrize("system", ["retnet", "transformer"])
def test_counts_are_the_same_in_every_run(system: str, workload: str) -> None:
    assert counts(cell(system, workload)) == counts(cell(system, workload))


def test_counts_are_what_the_config_says() -> None:
    model, found = build("retnet", "tiny", vocab_size=64), counts(cell())

    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["weights_bytes"] == 4 * found["parameters"]
    assert found["state_bytes"] == model.init_state(2, 24).nbytes
    assert found["peak_memory_bytes"] > found["weights_bytes"] + found["state_bytes"]
    assert found["flops"] > 2 * 2 * 12 * 128**2  # two sequences, one layer


@pytest.mark.parametrize("workload", ["decode", "prefill", "train_step"])
def test_a_process_sends_calls_and_the_reference_workload(workload: str) -> None:
    of = cell(workload=workload)
    with torch.inference_mode(workload != "train_step"):
        part = brief.time_calls(build("retnet", "tiny", vocab_size=64), Task(of, CPU, Deadline(0.0), {}))

    samples = part["samples"]
    assert len(samples["reference_ns"]) == brief.ROUNDS
    assert brief.ROUNDS <= len(samples["work_ns"]) <= brief.ROUNDS * brief.MOST_CALLS
    assert all(ns > 0 for ns in samples["work_ns"] + samples["reference_ns"])


@pytest.mark.parametrize(
    ("workload", "flops"), [("decode", 0), ("prefill", 4 * 2 * 384**3), ("train_step", 4 * 2 * 384**3)]
)
def test_the_reference_never_changes_and_that_of_a_decode_step_only_reads(workload: str, flops: int) -> None:
    reference = make_reference(workload)
    with FlopCounterMode(display=False) as counter:
        reference()

    assert counter.get_total_flops() == flops
    assert VERSION == 1


def state_of_float64(model: LanguageModel, patch: pytest.MonkeyPatch) -> None:
    """One tensor of the state, that of the first layer."""
    mixer = model.blocks[0].mixer
    make = mixer.init_state

    def init_state(batch_size: int, max_seq_len: int) -> Any:
        state: Any = make(batch_size, max_seq_len)
        state.memory = state.memory.double()
        return state

    mixer.init_state = init_state  # type: ignore[method-assign]


def copied_cache(model: LanguageModel, patch: pytest.MonkeyPatch) -> None:
    """Attention over a copy of the cache."""
    append = KVCache.append

    def copying(self: KVCache, k: Tensor, v: Tensor, start: int | Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for tensor in append(self, k, v, start))

    patch.setattr(KVCache, "append", copying)


def lost_update_in_place(model: LanguageModel, patch: pytest.MonkeyPatch) -> None:
    """The new state computed beside the old one and copied over it: the same values, the same peak in some layers."""

    def step(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, state: Tensor) -> Tensor:
        new = state * gamma[:, None, None] + k[..., None] * v[:, :, None]  # (B, H, K, V)
        state.copy_(new)
        return (q[:, :, None] @ new).squeeze(2)

    patch.setattr(retention, "recurrent_step_", step)


@pytest.mark.parametrize(
    ("system", "workload", "change", "seen"),
    [
        ("retnet", "decode", state_of_float64, {"state_bytes", "torch_peak_memory_bytes"}),
        ("retnet", "prefill", state_of_float64, {"state_bytes", "peak_memory_bytes"}),
        ("transformer", "decode", copied_cache, {"torch_allocated_bytes", "torch_peak_memory_bytes"}),
        ("transformer", "prefill", copied_cache, {"allocated_bytes"}),
        ("retnet", "decode", lost_update_in_place, {"torch_allocated_bytes", "torch_peak_memory_bytes"}),
    ],
)
def test_a_mistake_that_no_output_shows_is_caught(system: str, workload: str, change: Change, seen: set[str]) -> None:
    native = {name.removeprefix("torch_") for name in seen}  # where there is no compiler, torch's step is the only one

    found = regressions(cell(system, workload), change)

    assert seen <= found or native <= found


@pytest.mark.parametrize("part", ["timed", "counted"])
def test_the_worker_sends_one_part_of_a_brief(part: str) -> None:
    messages = list(worker._TASKS["brief"]({"cell": cell().__dict__, "part": part}))

    kinds = [set(message) for message in messages]
    expected = {"timed": {"samples", "notes", "warmup"}, "counted": {"metrics"}}
    assert kinds == [{"cell"}, expected[part], {"interference"}]
    assert messages[-1]["interference"].keys() == {"load_average", "stolen_share", "involuntary_context_switches"}
