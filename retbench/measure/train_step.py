"""Training: whole optimizer steps timed warm, the optimizer's share of them, and their exact memory by kind."""

# A micro-batches, B batch, T positions

from collections.abc import Sequence
from statistics import median

from torch import Tensor

from models import build
from models.language_model import LanguageModel
from models.parallel import local
from retbench.measure import PRECISION, Part, Parts, Task
from retbench.measure.optimizer import MasterAdamW
from retbench.measure.ranks import agreed
from retbench.measure.split import Kind, split_step
from retbench.spec import Training
from retbench.statistics import Interval, median_interval
from retbench.timing import Deadline, Sample, rate, sample, warm_up

LEARNING_RATE = 6e-4  # the paper's at 1.3B; no time and no byte depends on it
WARM_UP_SHARE = 0.4  # at most, of the time that memory leaves
LEAST_STEPS, ENOUGH_STEPS, MOST_STEPS = 3, 5, 64  # timed: whatever the time, for an interval, however noisy
OWN = {"allocated_bytes"}  # counters of a pass that others in the same process do not change


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


class Steps:
    """Steps on a model, timed one by one. The first, which makes the moments, is in no time and in no memory."""

    def __init__(self, model: LanguageModel, task: Task) -> None:
        self.task = task
        self.training = task.cell.training or Training()
        self.trainer = Trainer(model, self.training)
        self.losses: list[Tensor] = []
        self.timed: list[tuple[Sample, Sample]] = []  # forward and backward, then the optimizer
        self.discarded = 1
        self.first = sample(lambda: self.losses.append(self.trainer.step(self._tokens())), task.device)

    def memory(self, alone: bool = True) -> Part:
        """The peak of a step as the device counts it, and what it is made of.

        ``rest_bytes`` is what the device counts and no tensor accounts for: what operators use inside, rounding.
        ``alone``: whether the process holds no other model. Else what counts the whole process is left out.
        """
        kinds: dict[Kind, int] = {}

        def step(tokens: Tensor) -> None:
            if self.task.cell.compile:  # compiled code does not show what is inside
                self.trainer.step(tokens)
            else:
                kinds.update(split_step(self.trainer, tokens).peak_kinds())

        peak = self.task.device.peak_memory(self._tokens, step)
        always = {
            "weights_bytes": self.trainer.model.weights_bytes(),
            "optimizer_bytes": sum(local(tensor).nbytes for tensor in self.trainer.optimizer.tensors()),
        }
        counters = peak.counters if alone else {name: peak.counters[name] for name in OWN & peak.counters.keys()}
        return {
            "metrics": {
                "peak_memory_bytes": sum(always.values()) + peak.tensor_bytes,
                **always,
                **{f"{kind}_bytes": nbytes for kind, nbytes in kinds.items()},
                "rest_bytes": peak.tensor_bytes - sum(kinds.values()),
                "parameters": sum(parameter.numel() for parameter in self.trainer.model.parameters()),
                **counters,
            }
        }

    def warm(self, deadline: Deadline) -> None:
        """Makes steps until their time has settled or the deadline passes."""
        warm = warm_up(lambda: self.trainer.step(self._tokens()), self.task.device, deadline, agreed)
        self.discarded += len(warm)

    def visit(self) -> None:
        """Times one step, the device idle between backward and the optimizer."""
        tokens = self._tokens()
        backward = sample(lambda: self.losses.append(self.trainer.backward(tokens)), self.task.device)
        self.timed.append((backward, sample(self.trainer.update, self.task.device)))

    def finished(self) -> bool:
        """Whether there are steps enough: precise ones, or as many as there are at the most or by the deadline."""
        if len(self.timed) < LEAST_STEPS:
            return False
        precise = len(self.timed) >= ENOUGH_STEPS and self._step_ms().relative_half_width <= PRECISION
        return precise or len(self.timed) >= MOST_STEPS or self.task.deadline.left_s <= 0

    def part(self) -> Part:
        cell, step, training = self.task.cell, self._step_ms(), self.training
        tokens = training.data_parallel * training.grad_accumulation * cell.batch_size * cell.seq_len
        wall_ns = [backward.wall_ns + update.wall_ns for backward, update in self.timed]
        optimizer_ns = [update.wall_ns for _, update in self.timed]
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
                "cpu_ns": [backward.cpu_ns + update.cpu_ns for backward, update in self.timed],
            },
            "warmup": {"discarded": self.discarded, "first_ns": self.first.wall_ns},
            "notes": {"first_loss": self.losses[0].item(), "last_loss": self.losses[-1].item()},
        }

    def _step_ms(self) -> Interval:
        return median_interval([[(backward.wall_ns + update.wall_ns) / 1e6 for backward, update in self.timed]])

    def _tokens(self) -> Tensor:
        """(A, B, T + 1), random, different for every step."""
        cell = self.task.cell
        shape = (self.training.grad_accumulation, cell.batch_size, cell.seq_len + 1)
        return self.task.tokens(self.trainer.model.config.vocab_size, *shape)


def measure(model: LanguageModel, task: Task) -> Parts:
    """Yields how it computes, the exact memory, then the times."""
    yield _computes(model)
    steps = Steps(model, task)
    yield steps.memory()
    steps.warm(task.deadline.fraction(WARM_UP_SHARE))
    while not agreed(steps.finished()):
        steps.visit()
    yield steps.part()


def measure_in_turn(tasks: Sequence[tuple[int, Task]]) -> Parts:
    """The same of cells of one setting with one deadline: a round times a step of each. Parts have its place as ``at``.

    A cell that fails before the rounds begin is left out of them; its error is raised when the others are done.
    """
    courses, failed = dict[int, Steps](), list[Exception]()
    for at, task in tasks:
        try:
            courses[at], parts = _begun(task)
        except Exception as error:  # noqa: BLE001 - measured alone, where it becomes its status
            failed.append(error.with_traceback(None))  # whose frames hold a model
        else:
            for part in parts:
                yield {"notes": {}, **part, "at": at}
    deadline = tasks[0][1].deadline
    for steps in courses.values():
        steps.warm(deadline.fraction(WARM_UP_SHARE / len(courses)))
    order, rounds = list(courses.values()), 0
    while not all(steps.finished() for steps in order):
        for steps in order:
            steps.visit()
        order.reverse()  # so that a machine that slows down within rounds favours nobody
        rounds += 1
    for at, steps in courses.items():
        part = steps.part()
        yield {**part, "at": at, "notes": {**part["notes"], "rounds": rounds}}
    if failed:
        raise failed[0]


def _begun(task: Task) -> tuple[Steps, list[Part]]:
    """A model of its own, since steps change it, with its first step made: how it computes, and its exact memory."""
    cell = task.cell
    model = build(cell.system, cell.size, seed=cell.seed, **cell.overrides)
    steps = Steps(model, task)
    return steps, [{**_computes(model), "notes": model.notes}, steps.memory(alone=False)]


def _computes(model: LanguageModel) -> Part:
    return {"cell": {"backend": model.backend, "form": model.training_form}}
