"""What is measured of a model whose times are known: a stand-in that moves a clock instead of computing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from models.language_model import LanguageModel
from retbench.devices import Device, MemoryPeak
from retbench.measure import Task, decode, prefill
from retbench.measure.decode import ROUNDS
from retbench.spec import Cell
from retbench.timing import Deadline
from tests.retbench.conftest import Clock

MS = 10**6  # ns
WEIGHTS, HEAD = 1000, 300  # bytes: all weights, and those of them that a step reads


@dataclass
class FakeState:
    """A cache of one byte a token."""

    capacity: int
    position: int = 0
    filled_to: list[int] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return self.capacity

    def fill_(self, position: int, seed: int = 0) -> None:
        self.position = position
        self.filled_to.append(position)

    def sized(self, max_seq_len: int) -> "FakeState":
        return FakeState(max_seq_len)

    def step_bytes(self) -> int:
        return self.position + 1


@dataclass
class FakeModel:
    """Takes ``step_ns(context)`` for a step and ``prefill_ns(length)`` for a prefill, and notes its inputs."""

    clock: Clock
    step_ns: Callable[[int], int]
    prefill_ns: Callable[[int], int]
    steps: list[tuple[int, Tensor]] = field(default_factory=list)  # context and tokens of each
    captured: list[int] = field(default_factory=list)  # position of each step that the device captured
    prompts: list[Tensor] = field(default_factory=list)

    config = SimpleNamespace(vocab_size=10**9)  # so many tokens that two random ones differ
    backend = "torch"

    def init_state(self, batch_size: int, max_seq_len: int) -> FakeState:
        return FakeState(max_seq_len)

    def step(self, token: Tensor, state: FakeState) -> None:
        state.position += 1
        assert state.position <= state.capacity
        self.steps.append((state.position, token))
        self.clock.now_ns += self.step_ns(state.position)

    def prefill(self, tokens: Tensor) -> None:
        self.prompts.append(tokens)
        self.clock.now_ns += self.prefill_ns(tokens.shape[1])

    def weights_bytes(self) -> int:
        return WEIGHTS

    def step_weights_bytes(self) -> int:
        return HEAD

    def parameters(self) -> Iterator[Tensor]:
        return iter([torch.empty(5, 7), torch.empty(3)])


@dataclass
class FakeDevice:
    """Tells 100 bytes beside the state, and 3 mJ for every step so far."""

    model: FakeModel
    free: int = 10**12
    energy: bool = True
    captured_ns: int | None = None  # of a step that the device captured, where it can

    def faster_steps(self, model: FakeModel, state: FakeState) -> dict[str, Callable[[Tensor], None]]:
        if self.captured_ns is None:
            return {}
        if self.captured_ns == 0:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

        def captured(token: Tensor) -> None:
            self.model.captured.append(state.position)
            self.model.clock.now_ns += self.captured_ns or 0

        return {"graph": captured}

    def synchronize(self) -> None:
        pass

    def free_bytes(self) -> int:
        return self.free

    def peak_memory(self, prepare: Callable[[], Any], run: Callable[[Any], Any]) -> MemoryPeak:
        prepared = prepare()
        run(prepared)
        return MemoryPeak(100 + (prepared.nbytes if prepared else 0), {"vm_hwm_bytes": 7777})

    def energy_mj(self) -> float | None:
        return 3.0 * len(self.model.steps) if self.energy else None


def flat(_: int) -> int:
    return 2 * MS


def growing(context: int) -> int:
    return MS + 1000 * context


@dataclass
class Bench:
    """One cell of a stand-in."""

    clock: Clock
    step_ns: Callable[[int], int] = flat
    prefill_ns: Callable[[int], int] = flat
    seq_len: int = 64
    batch_size: int = 2
    budget_s: float = 60.0
    predicted: dict[str, int] = field(default_factory=dict)
    free: int = 10**12
    energy: bool = True
    skip_prefill: str | None = None
    captured_ns: int | None = None

    def __post_init__(self) -> None:
        self.model = FakeModel(self.clock, self.step_ns, self.prefill_ns)
        cell = Cell("retnet", "tiny", "decode", self.seq_len, self.batch_size, "fp32", "cpu", threads=1)
        device = cast(Device, FakeDevice(self.model, self.free, self.energy, self.captured_ns))
        deadline = Deadline(self.budget_s)
        self.task = Task(cell, device, deadline, self.predicted, skip_prefill=self.skip_prefill)

    def run(self, measure: Callable[[LanguageModel, Task], Iterator[dict[str, Any]]] = decode.measure) -> Any:
        """All parts of the record as one, contexts joined."""
        merged: dict[str, Any] = {"contexts": {}}
        for part in measure(cast(LanguageModel, self.model), self.task):
            for name, value in part.items():
                if name == "contexts":
                    for entry in value:
                        merged[name].setdefault(entry["context"], {}).update(entry)
                else:
                    merged.setdefault(name, {}).update(value)
        return SimpleNamespace(**merged)


# ---- decode ----


def test_a_step_is_timed_at_each_depth_and_the_last_is_the_cells(clock: Clock) -> None:
    record = Bench(clock, growing).run()

    assert {context: entry["tpot_ms"] for context, entry in record.contexts.items()} == {
        context: pytest.approx(1 + context / 1000) for context in (1, 16, 32, 64)
    }
    assert record.metrics["tpot_ms"] == record.metrics["tpot_ms_low"] == record.metrics["tpot_ms_high"]
    assert record.metrics["tpot_ms"] == record.contexts[64]["tpot_ms"]
    assert list(record.contexts) == [1, 16, 32, 64]


@pytest.mark.parametrize(
    ("seq_len", "contexts"), [(1, [1]), (2, [1, 2]), (3, [1, 3]), (4, [1, 2, 4]), (8192, [1, 2048, 4096, 8192])]
)
def test_the_depths_are_quarters_of_the_length_and_the_first_position(
    seq_len: int, contexts: list[int], clock: Clock
) -> None:
    record = Bench(clock, seq_len=seq_len).run()

    assert list(record.contexts) == contexts


def test_throughput_is_of_the_whole_batch_at_the_last_position_and_averaged_over_all(clock: Clock) -> None:
    record = Bench(clock, growing, batch_size=3).run()

    total_s = sum(growing(position) for position in range(1, 65)) / 1e9
    assert record.metrics["tokens_per_s"] == pytest.approx(3 / (growing(64) / 1e9))
    assert record.metrics["tokens_per_s_mean"] == pytest.approx(3 * 64 / total_s)


def test_the_slope_is_none_for_a_flat_step_and_that_of_a_growing_one(clock: Clock) -> None:
    names = [f"tpot_slope_ms_per_1k_tokens{suffix}" for suffix in ("", "_low", "_high")]

    still, rising = Bench(clock, flat).run(), Bench(clock, growing).run()

    assert [still.metrics[name] for name in names] == pytest.approx([0, 0, 0], abs=1e-9)
    assert [rising.metrics[name] for name in names] == pytest.approx([1.024] * 3)  # 1000 ns a token
    assert names[0] not in Bench(clock, seq_len=1).run().metrics  # one depth has no slope


def test_raw_samples_are_kept_in_wall_and_cpu_nanoseconds(clock: Clock) -> None:
    record = Bench(clock, growing).run()

    assert set(record.samples["step_ns"]) == {growing(64)}
    assert set(record.samples["cpu_ns"]) == {growing(64) // 2}
    assert record.contexts[64]["step_ns"] == record.samples["step_ns"]
    assert set(record.contexts[16]["step_ns"]) == {growing(16)}
    assert len(record.contexts[16]["step_ns"]) == len(record.samples["step_ns"])


def test_each_step_of_a_depth_finds_one_token_less_in_the_cache_and_another_input(clock: Clock) -> None:
    bench = Bench(clock)
    bench.run()

    tokens = [token.tolist() for _, token in bench.model.steps]
    assert {context for context, _ in bench.model.steps} == {1, 16, 32, 64}
    assert all(len(token) == 2 for token in tokens)
    assert all(one != next_one for one, next_one in pairwise(tokens))


def test_a_steady_cell_ends_after_the_fewest_rounds_and_says_how_the_cache_was_filled(clock: Clock) -> None:
    record = Bench(clock).run()

    assert record.notes["rounds"] == ROUNDS
    assert "synthetic" in record.notes["state_fill"]
    assert len(record.samples["step_ns"]) == ROUNDS * 16


def test_a_noisy_cell_repeats_until_its_time_is_over(clock: Clock) -> None:
    durations = iter(np.random.default_rng(0).lognormal(np.log(2 * MS), 0.5, 10**6).astype(int).tolist())

    record = Bench(clock, lambda context: next(durations), budget_s=2.0).run()

    assert record.notes["rounds"] > ROUNDS
    assert record.metrics["tpot_ms_low"] < record.metrics["tpot_ms"] < record.metrics["tpot_ms_high"]
    assert clock.monotonic() < 3.0  # the stand-in's seconds


def test_without_time_every_depth_still_has_samples(clock: Clock) -> None:
    record = Bench(clock, lambda _: 2000 * MS, budget_s=0.0).run()

    assert record.notes["rounds"] == 1
    assert [len(entry["step_ns"]) for entry in record.contexts.values()] == [2, 2, 2, 2]
    assert record.metrics["tpot_ms"] == 2000.0


def test_percentiles_wait_for_their_samples(clock: Clock) -> None:
    few = Bench(clock, lambda _: 20 * MS, budget_s=1.0).run()
    noise = iter(np.random.default_rng(0).lognormal(np.log(MS), 0.5, 10**6).astype(int).tolist())
    more = Bench(clock, lambda context: next(noise), budget_s=1.5).run()

    assert len(few.samples["step_ns"]) < 64 <= len(more.samples["step_ns"]) < 662
    assert (few.metrics["tpot_ms_p90"], few.metrics["tpot_ms_p99"]) == (None, None)
    assert more.metrics["tpot_ms_p90"] == pytest.approx(np.percentile(more.samples["step_ns"], 90) / 1e6)
    assert more.metrics["tpot_ms_p99"] is None


def test_the_first_iterations_cost_is_kept(clock: Clock) -> None:
    durations = iter([50 * MS, 9 * MS])

    record = Bench(clock, lambda context: next(durations, 2 * MS)).run()

    assert record.warmup["first_ns"] == 50 * MS
    assert record.warmup["discarded"] == 5
    assert record.metrics["tpot_ms"] == 2.0


def test_a_step_that_the_device_captured_is_measured_where_it_is_faster(clock: Clock) -> None:
    bench = Bench(clock, captured_ns=MS)
    record = bench.run()

    assert {entry["tpot_ms"] for entry in record.contexts.values()} == {1.0}
    assert record.cell == {"backend": "torch+graph"}
    assert record.notes["warm_step_ms"] == {"plain": 2.0, "graph": 1.0}
    assert set(bench.model.captured) == {0, 15, 31, 63}


def test_a_step_that_the_device_captured_is_left_where_it_is_slower(clock: Clock) -> None:
    record = Bench(clock, captured_ns=3 * MS).run()

    assert {entry["tpot_ms"] for entry in record.contexts.values()} == {2.0}
    assert record.cell == {}
    assert record.notes["warm_step_ms"] == {"plain": 2.0, "graph": 3.0}


def test_a_step_that_cannot_be_captured_is_measured_plain_and_the_record_says_why(clock: Clock) -> None:
    record = Bench(clock, captured_ns=0).run()

    assert {entry["tpot_ms"] for entry in record.contexts.values()} == {2.0}
    assert record.cell == {}
    assert record.notes["plain_step"] == "operation not permitted when stream is capturing"
    assert "warm_step_ms" not in record.notes


def test_memory_is_weights_state_and_activations(clock: Clock) -> None:
    record = Bench(clock).run()

    parts = {name: record.metrics[f"{name}_bytes"] for name in ("weights", "state", "activations", "peak_memory")}
    assert parts == {"weights": WEIGHTS, "state": 64, "activations": 100, "peak_memory": WEIGHTS + 64 + 100}
    assert record.metrics["vm_hwm_bytes"] == 7777
    assert [(entry["state_bytes"], entry["peak_memory_bytes"]) for entry in record.contexts.values()] == [
        (context, WEIGHTS + context + 100) for context in (1, 16, 32, 64)
    ]


def test_the_bytes_that_a_step_moves_grow_with_what_the_cache_holds(clock: Clock) -> None:
    record = Bench(clock).run()

    assert record.metrics["step_bytes"] == HEAD + 64
    assert [entry["step_bytes"] for entry in record.contexts.values()] == [HEAD + c for c in (1, 16, 32, 64)]
    assert record.metrics["parameters"] == 38


def test_energy_is_told_for_each_token_where_the_device_tells_it(clock: Clock) -> None:
    read, unread = Bench(clock, batch_size=2).run(), Bench(clock, energy=False).run()

    assert read.metrics["energy_mj_per_token"] == 1.5  # 3 mJ a step of 2 tokens
    assert unread.metrics["energy_mj_per_token"] is None


# ---- prefill ----


def test_the_first_tokens_time_is_that_of_the_whole_prompt(clock: Clock) -> None:
    record = Bench(clock, prefill_ns=lambda length: length * MS, seq_len=64).run()

    assert (record.metrics["ttft_ms"], record.metrics["ttft_status"]) == (64.0, "ok")
    assert record.metrics["ttft_ms_low"] == record.metrics["ttft_ms_high"] == 64.0
    assert record.metrics["prefill_tokens_per_s"] == pytest.approx(2 * 64 / 0.064)
    assert set(record.samples["prefill_ns"]) == {64 * MS}
    assert record.warmup["prefill_first_ns"] == 64 * MS
    assert record.metrics["prefill_peak_memory_bytes"] == WEIGHTS + 100


@pytest.mark.parametrize("seq_len", [64, 2048])
def test_every_prompt_that_is_timed_is_new_and_of_the_whole_length(seq_len: int, clock: Clock) -> None:
    bench = Bench(clock, seq_len=seq_len)

    record = bench.run(prefill.measure)

    timed = [prompt for prompt in bench.model.prompts if prompt.shape == (2, seq_len)]
    texts = {tuple(prompt.flatten().tolist()) for prompt in timed}
    assert len(texts) >= len(record.samples["prefill_ns"]) >= 4
    assert all(prompt.min() >= 0 and prompt.max() < 10**9 for prompt in timed)


def test_a_long_prompts_time_is_foretold_from_its_prefixes(clock: Clock) -> None:
    def linear_and_quadratic(length: int) -> int:
        return length * 1000 + length**2

    bench = Bench(clock, prefill_ns=linear_and_quadratic, seq_len=8192)

    ahead = prefill.forecast(cast(LanguageModel, bench.model), bench.task)

    assert ahead.skipped is None
    assert ahead.expected_s == pytest.approx(linear_and_quadratic(8192) / 1e9)
    assert all(prompt.shape[1] <= 8192 // 4 for prompt in bench.model.prompts)


def test_a_prefill_that_would_take_too_long_is_skipped_in_words_and_decode_is_kept(clock: Clock) -> None:
    bench = Bench(clock, prefill_ns=lambda length: length * 100 * MS, seq_len=4096, budget_s=60.0)

    record = bench.run()

    assert (record.metrics["ttft_ms"], record.metrics["ttft_status"]) == (None, "skipped")
    assert "would take about" in record.metrics["ttft_reason"]
    assert "--budget" in record.metrics["ttft_reason"]
    assert record.metrics["tpot_ms"] == 2.0
    assert "prefill_ns" not in record.samples
    assert all(prompt.shape[1] < 4096 for prompt in bench.model.prompts)


def test_a_prefill_that_does_not_fit_is_skipped_with_its_bytes_and_never_tried(clock: Clock) -> None:
    predicted = {"prefill_peak_memory_bytes": 5 * 2**30, "weights_bytes": 2**30}
    bench = Bench(clock, predicted=predicted, free=2 * 2**30)

    record = bench.run()

    assert record.metrics["ttft_status"] == "skipped"
    assert record.metrics["ttft_reason"] == "needs 4.00 GiB beside the weights, 2.00 GiB are free"
    assert bench.model.prompts == []
    assert record.metrics["tpot_ms"] == 2.0


def test_a_prefill_that_the_plan_has_no_time_for_is_never_tried(clock: Clock) -> None:
    bench = Bench(clock, skip_prefill="would take about 1h")

    record = bench.run()

    assert (record.metrics["ttft_status"], record.metrics["ttft_reason"]) == ("skipped", "would take about 1h")
    assert bench.model.prompts == []


def test_decode_leaves_the_time_that_prefill_needs(clock: Clock) -> None:
    noise = iter(np.random.default_rng(0).lognormal(np.log(MS), 0.5, 10**6).astype(int).tolist())
    bench = Bench(clock, lambda context: next(noise), prefill_ns=lambda _: 200 * MS, budget_s=2.0)

    record = bench.run()

    assert record.metrics["ttft_status"] == "ok"
    assert clock.monotonic() < 2.5  # the stand-in's seconds


def test_a_noisy_prefill_leaves_the_time_that_its_memory_needs(clock: Clock) -> None:
    noise = iter(np.random.default_rng(0).lognormal(np.log(MS), 0.5, 10**6).astype(int).tolist())

    record = Bench(clock, prefill_ns=lambda _: next(noise), budget_s=0.2).run(prefill.measure)

    assert len(record.samples["prefill_ns"]) > 10
    assert record.metrics["prefill_peak_memory_bytes"] == WEIGHTS + 100


def test_two_samples_have_no_interval(clock: Clock) -> None:
    record = Bench(clock, prefill_ns=lambda _: 800 * MS, budget_s=4.5).run(prefill.measure)

    assert len(record.samples["prefill_ns"]) < 3
    assert record.metrics["ttft_ms"] == 800.0
    assert (record.metrics["ttft_ms_low"], record.metrics["ttft_ms_high"]) == (None, None)


def test_token_ids_are_random_repeatable_and_new_at_every_call(clock: Clock) -> None:
    one, other = Bench(clock).task, Bench(clock).task

    first, second = one.tokens(32000, 2, 50), one.tokens(32000, 2, 50)

    assert first.dtype == torch.int64
    assert first.shape == (2, 50)
    assert 0 <= first.min() < first.max() < 32000
    assert not torch.equal(first, second)
    assert torch.equal(first, other.tokens(32000, 2, 50))
