"""Training: whole optimizer steps timed warm, the optimizer's share of them, and their exact memory by kind."""

# A micro-batches, B batch, T positions

from statistics import median

from torch import Tensor

from models.language_model import LanguageModel
from models.parallel import local
from retbench.measure import PRECISION, Part, Parts, Task
from retbench.measure.optimizer import MasterAdamW
from retbench.measure.ranks import agreed
from retbench.measure.split import Kind, split_step
from retbench.spec import Training
from retbench.statistics import Interval, median_interval
from retbench.timing import Sample, rate, sample, warm_up

LEARNING_RATE = 6e-4  # the paper's at 1.3B; no time and no byte depends on it
WARM_UP_SHARE = 0.4  # at most, of the time that memory leaves
LEAST_STEPS, ENOUGH_STEPS, MOST_STEPS = 3, 5, 64  # timed: whatever the time, for an interval, however noisy


class Trainer:
    """Makes optimizer steps on a model; nothing in a step depends on a value, so fake tensors pass through it too."""

    def __init__(self, model: LanguageModel, training: Training, learning_rate: float = LEARNING_RATE) -> None:
        self.model = model
        self.training = training
        self.optimizer = MasterAdamW(model.parameters(), learning_rate)
        model.checkpointing = training.checkpointing == "block"

    def backward(self, tokens: Tensor) -> Tensor:
        """tokens (A, B, T + 1) -> the mean loss, a scalar; its gradients are left for ``update``."""
        losses = []
        for micro_batch in tokens:
            self.optimizer.collect_gradients()  # of the micro-batch before
            loss = self.model.loss(micro_batch, chunked=self.training.loss == "chunked") / len(tokens)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return sum(losses[1:], losses[0])

    def update(self) -> None:
        """The optimizer's part of a step."""
        self.optimizer.step()

    def step(self, tokens: Tensor) -> Tensor:
        """tokens (A, B, T + 1) -> the loss before the step."""
        loss = self.backward(tokens)
        self.update()
        return loss


def measure(model: LanguageModel, task: Task) -> Parts:
    """Yields how it computes, the exact memory, then the times; the first step is in none of them."""
    training = task.cell.training or Training()
    yield {"cell": {"backend": model.backend, "form": model.training_form}}
    trainer = Trainer(model, training)
    losses: list[Tensor] = []
    first = sample(lambda: losses.append(trainer.step(_tokens(trainer, task))), task.device)  # makes moments
    yield _memory(trainer, task)
    warming = task.deadline.fraction(WARM_UP_SHARE)
    warm = warm_up(lambda: trainer.step(_tokens(trainer, task)), task.device, warming, agreed)
    steps: list[tuple[Sample, Sample]] = []
    while len(steps) < LEAST_STEPS or not agreed(_finished(steps, task)):
        steps.append(_timed_step(trainer, task, losses))
    yield {
        **_times(steps, task, training),
        "warmup": {"discarded": 1 + len(warm), "first_ns": first.wall_ns},
        "notes": {"first_loss": losses[0].item(), "last_loss": losses[-1].item()},
    }


def _tokens(trainer: Trainer, task: Task) -> Tensor:
    """(A, B, T + 1), random, different for every step."""
    cell = task.cell
    shape = (trainer.training.grad_accumulation, cell.batch_size, cell.seq_len + 1)
    return task.tokens(trainer.model.config.vocab_size, *shape)


def _memory(trainer: Trainer, task: Task) -> Part:
    """The peak of a step as the device counts it, and what it is made of.

    ``rest_bytes`` is what the device counts and no tensor accounts for: what operators use inside, rounding.
    """
    kinds: dict[Kind, int] = {}

    def step(tokens: Tensor) -> None:
        if task.cell.compile:  # compiled code does not show what is inside
            trainer.step(tokens)
        else:
            kinds.update(split_step(trainer, tokens).peak_kinds())

    peak = task.device.peak_memory(lambda: _tokens(trainer, task), step)
    always = {
        "weights_bytes": trainer.model.weights_bytes(),
        "optimizer_bytes": sum(local(tensor).nbytes for tensor in trainer.optimizer.tensors()),
    }
    return {
        "metrics": {
            "peak_memory_bytes": sum(always.values()) + peak.tensor_bytes,
            **always,
            **{f"{kind}_bytes": nbytes for kind, nbytes in kinds.items()},
            "rest_bytes": peak.tensor_bytes - sum(kinds.values()),
            "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
            **peak.counters,
        }
    }


def _timed_step(trainer: Trainer, task: Task, losses: list[Tensor]) -> tuple[Sample, Sample]:
    """Forward and backward, then the optimizer, the device idle between them; the loss joins ``losses``."""
    tokens = _tokens(trainer, task)
    backward = sample(lambda: losses.append(trainer.backward(tokens)), task.device)
    return backward, sample(trainer.update, task.device)


def _finished(steps: list[tuple[Sample, Sample]], task: Task) -> bool:
    precise = len(steps) >= ENOUGH_STEPS and _step_ms(steps).relative_half_width <= PRECISION
    return precise or len(steps) >= MOST_STEPS or task.deadline.left_s <= 0


def _step_ms(steps: list[tuple[Sample, Sample]]) -> Interval:
    return median_interval([[(backward.wall_ns + update.wall_ns) / 1e6 for backward, update in steps]])


def _times(steps: list[tuple[Sample, Sample]], task: Task, training: Training) -> Part:
    cell, step = task.cell, _step_ms(steps)
    tokens = training.data_parallel * training.grad_accumulation * cell.batch_size * cell.seq_len
    wall_ns = [backward.wall_ns + update.wall_ns for backward, update in steps]
    optimizer_ns = [update.wall_ns for _, update in steps]
    return {
        "metrics": {
            "step_ms": step.value,
            "step_ms_low": step.low,
            "step_ms_high": step.high,
            "tokens_per_s": rate(tokens, step.value / 1e3),
            "tokens_per_s_low": rate(tokens, step.high / 1e3),
            "tokens_per_s_high": rate(tokens, step.low / 1e3),
            "optimizer_ms": median(optimizer_ns) / 1e6,
            "optimizer_share": median(update / whole for update, whole in zip(optimizer_ns, wall_ns, strict=True)),
        },
        "samples": {
            "step_ns": wall_ns,
            "optimizer_ns": optimizer_ns,
            "cpu_ns": [backward.cpu_ns + update.cpu_ns for backward, update in steps],
        },
    }
