"""Optimizer steps: what they compute, what their memory is made of to the byte, what a record says of them."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from models import build
from models.catalogue import paper_systems
from retbench.devices import MemoryPeak
from retbench.devices.cpu import DEVICE as CPU
from retbench.measure import Part, Task, train_step
from retbench.measure.optimizer import MasterAdamW
from retbench.measure.split import split_step
from retbench.measure.train_step import ENOUGH_STEPS, LEAST_STEPS, Trainer, measure
from retbench.spec import Cell, Training
from retbench.timing import Deadline
from tests.models.helpers import random_model, random_tokens
from tests.retbench.conftest import Clock

pytestmark = pytest.mark.usefixtures("one_thread")

VOCAB_SIZE = 1000  # large enough for the loss to be the peak
CELL = Cell("retnet", "tiny", "train_step", 96, 2, "fp32", "cpu", 1, vocab_size=VOCAB_SIZE, training=Training())
MS = 10**6


def trainer_of(system: str, training: Training, dtype: torch.dtype = torch.float32) -> Trainer:
    torch.set_default_dtype(dtype)
    return Trainer(build(system, "tiny", vocab_size=VOCAB_SIZE), training)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("system", paper_systems())
def test_the_loss_falls_over_steps_on_one_batch(system: str, dtype: torch.dtype) -> None:
    trainer = trainer_of(system, Training(), dtype)
    tokens = random_tokens(2, 33, vocab_size=VOCAB_SIZE)[None]

    losses = [trainer.step(tokens).item() for _ in range(4)]

    assert losses[0] == pytest.approx(torch.tensor(VOCAB_SIZE).log().item(), abs=0.3)
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("loss", ["plain", "chunked"])
def test_two_micro_batches_make_the_step_of_one_of_twice_their_size(loss: Any) -> None:
    tokens = random_tokens(4, 25)
    whole = Trainer(random_model("retnet"), Training(loss=loss))
    parts = Trainer(random_model("retnet"), Training(loss=loss, grad_accumulation=2))

    losses = whole.step(tokens.view(1, 4, 25)), parts.step(tokens.view(2, 2, 25))

    torch.testing.assert_close(*losses, rtol=1e-12, atol=0.0)
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_bf16_micro_batches_add_up_in_float32() -> None:
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = MasterAdamW([weight], learning_rate=0.0)

    for value in (256.0, 1.0, 1.0, 1.0):  # in bf16, 256 + 1 is 256
        weight.grad = torch.tensor([value], dtype=torch.bfloat16)
        optimizer.collect_gradients()

    assert [gradient.item() for gradient in optimizer.gradients()] == [259.0]
    assert weight.grad is None


def test_updates_too_small_for_bf16_add_up_in_the_master_weights() -> None:
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = MasterAdamW([weight], learning_rate=1e-4)  # bf16 has nothing between 1 and 0.996
    seen = []

    for _ in range(60):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        seen.append(weight.item())

    assert seen[0] == 1.0
    assert seen[-1] == pytest.approx(1 - 60e-4, abs=2e-3)


@pytest.mark.parametrize(("dtype", "state_bytes"), [(torch.float32, 8), (torch.bfloat16, 12)])
def test_the_optimizer_keeps_two_moments_and_a_master_of_each_small_weight(
    dtype: torch.dtype, state_bytes: int
) -> None:
    trainer = trainer_of("transformer", Training(), dtype)
    trainer.step(random_tokens(1, 9)[None])
    parameters = list(trainer.model.parameters())

    kept = sum(tensor.nbytes for tensor in trainer.optimizer.tensors())

    assert kept == sum(state_bytes * p.numel() + 4 for p in parameters)  # 4: a count of steps
    assert all(p.grad is None for p in parameters)
    assert trainer.optimizer.gradients() == []


def test_parameters_that_stay_float32_in_a_bf16_model_are_their_own_masters() -> None:
    trainer = trainer_of("h3", Training(), torch.bfloat16)
    trainer.step(random_tokens(1, 9)[None])
    own = [p for p in trainer.model.parameters() if p.dtype == torch.float32]
    small = [p for p in trainer.model.parameters() if p.dtype == torch.bfloat16]

    kept = sum(tensor.nbytes for tensor in trainer.optimizer.tensors())

    assert own
    assert kept == sum(8 * p.numel() + 4 for p in own) + sum(12 * p.numel() + 4 for p in small)


TRAININGS = [Training(), Training("block", grad_accumulation=2), Training(loss="chunked")]
SCALARS = {"transformer": 64, "h3": 64}  # bytes inside operators while the loss is there
INSIDE = 0.05  # of a peak in the backward pass of a block, at most: norms and oneDNN have buffers of their own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", TRAININGS, ids=lambda one: one.words or "plain")
@pytest.mark.parametrize("system", ["retnet", "transformer", "transformer-flash", "rwkv", "h3", "hyena"])
def test_the_kinds_of_bytes_add_up_to_the_peak_that_the_profiler_sees(
    system: str, training: Training, dtype: torch.dtype
) -> None:
    trainer = trainer_of(system, training, dtype)
    shape = (training.grad_accumulation, 2, 97)
    trainer.step(torch.zeros(shape, dtype=torch.int64))

    kinds = split_step(trainer, torch.zeros(shape, dtype=torch.int64)).peak_kinds()
    peak = CPU.peak_memory(lambda: torch.zeros(shape, dtype=torch.int64), trainer.step)

    inside = INSIDE * peak.tensor_bytes if training.checkpointing == "block" else SCALARS.get(system, 0)
    assert 0 <= peak.tensor_bytes - sum(kinds.values()) <= inside


def test_the_kinds_are_those_that_arithmetic_gives() -> None:
    trainer, (batch_size, length) = trainer_of("transformer-flash", Training()), (2, 96)
    tokens = torch.zeros(1, batch_size, length + 1, dtype=torch.int64)
    trainer.step(tokens)

    kinds = split_step(trainer, tokens).peak_kinds()

    positions = batch_size * length
    scalars = 2 * 4  # the sum over positions and its gradient
    assert kinds["logits"] == 3 * 4 * positions * VOCAB_SIZE + scalars  # log-softmax, the gradients of both
    assert kinds["gradients"] == 0  # there is none yet when the loss is the peak


def test_gradients_are_counted_where_the_optimizer_is_the_peak() -> None:
    trainer = trainer_of("retnet", Training())
    tokens = torch.zeros(1, 1, 2, dtype=torch.int64)
    trainer.step(tokens)

    kinds = split_step(trainer, tokens).peak_kinds()

    every = sum(4 * p.numel() for p in trainer.model.parameters())
    assert 0 <= every - kinds["gradients"] <= 4 * VOCAB_SIZE * 128  # but one that is being made, at most the largest
    assert kinds["gradients"] > 100 * kinds["activations"]


def test_a_chunked_loss_holds_fewer_logits() -> None:
    found = []
    for training in (Training(), Training(loss="chunked")):
        trainer = trainer_of("retnet", training)
        tokens = torch.zeros(1, 1, 1537, dtype=torch.int64)  # three chunks
        trainer.step(tokens)
        found.append(split_step(trainer, tokens).peak_kinds()["logits"])

    assert found[1] < found[0] / 2


@pytest.mark.parametrize("training", TRAININGS[1:], ids=lambda one: one.words)
def test_a_step_on_fake_tensors_has_the_same_bytes(training: Training) -> None:
    found = []
    for mode in (FakeTensorMode(), torch.enable_grad()):
        with cast(Any, mode):
            trainer = trainer_of("retnet", training, torch.bfloat16)
            tokens = torch.zeros(training.grad_accumulation, 2, 97, dtype=torch.int64)
            trainer.step(tokens)
            found.append(split_step(trainer, tokens).peak_kinds())

    assert found[0] == found[1]


# ---- the record


def merged(parts: list[Part]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for part in parts:
        for name, fields in part.items():
            found.setdefault(name, {}).update(fields)
    return found


def measured(cell: Cell, seconds: float = 0.2) -> dict[str, dict[str, Any]]:
    model = build(cell.system, cell.size, **cell.overrides)
    return merged(list(measure(model, Task(cell, CPU, Deadline(seconds), {}))))


@pytest.mark.parametrize("training", [Training(), Training("block", 3, "chunked")])
def test_a_record_has_rates_samples_and_a_peak_that_is_the_sum_of_its_parts(training: Training) -> None:
    found = measured(replace(CELL, training=training, chunk_size=32))

    metrics, samples = found["metrics"], found["samples"]
    tokens = training.grad_accumulation * 2 * 96
    parts = ("weights", "gradients", "optimizer", "activations", "logits", "rest")
    assert metrics["peak_memory_bytes"] == sum(metrics[f"{part}_bytes"] for part in parts)
    assert metrics["tokens_per_s"] == pytest.approx(tokens / (metrics["step_ms"] / 1e3))
    assert metrics["tokens_per_s_low"] <= metrics["tokens_per_s"] <= metrics["tokens_per_s_high"]
    assert len(samples["step_ns"]) == len(samples["optimizer_ns"]) == len(samples["cpu_ns"]) >= LEAST_STEPS
    assert 0 < metrics["optimizer_share"] < 1
    assert found["cell"] == {"backend": "torch", "form": "chunkwise"}
    assert found["notes"]["last_loss"] > 0


class FakeTrainer(Trainer):
    """Takes 90 ms for forward and backward and 10 ms for the optimizer, a second more for each of the first three."""

    clock: Clock
    steps = 0

    def backward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        self.clock.now_ns += (90 + 1000 * (self.steps <= 3)) * MS
        return torch.tensor(float(self.steps))

    def update(self) -> None:
        self.clock.now_ns += 10 * MS


def test_steps_are_timed_warm_and_the_optimizer_has_its_share(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeTrainer, "clock", clock, raising=False)
    monkeypatch.setattr(train_step, "Trainer", FakeTrainer)
    device = cast(Any, clock)
    monkeypatch.setattr(clock, "peak_memory", lambda prepare, run: MemoryPeak(0, {}), raising=False)
    model = build("retnet", "tiny", vocab_size=VOCAB_SIZE)

    found = merged(list(measure(model, Task(CELL, device, Deadline(60.0), {}))))

    assert found["samples"]["step_ns"] == [100 * MS] * ENOUGH_STEPS
    assert found["metrics"]["optimizer_share"] == pytest.approx(0.1)
    assert found["metrics"]["tokens_per_s"] == pytest.approx(2 * 96 / 0.1)
    assert found["warmup"]["first_ns"] == 1100 * MS
    assert found["notes"]["first_loss"] == 1.0
    assert found["notes"]["last_loss"] == 1 + found["warmup"]["discarded"] + ENOUGH_STEPS - 1
