"""Whether training reads positions together: against single positions, one by one and side by side."""

# B batch, T positions, D model dim

from collections.abc import Callable

import torch

from models import build
from models.language_model import LanguageModel
from retbench.measure import Part, Task, forward_backward
from retbench.statistics import median_interval
from retbench.timing import Deadline, sample

LENGTH = 512  # positions of a training step
MIXER_LENGTH, MIXER_WIDTH = 256, 64  # narrow, so that arithmetic does not hide what waits
LEAST_ROUNDS, MOST_ROUNDS = 5, 15

Run = Callable[[], object]


def measure(model: LanguageModel, task: Task, deadline: Deadline) -> Part:
    """Metrics, each the median of ratios within rounds with its interval.

    ``parallel_speedup``: T training steps of one position / one of T positions, of the whole model.
    ``parallel_share``: T texts of one position side by side / one text of T positions, of a narrow mixer alone. Both
    make the same products, so that a mixer which reads positions together takes as long for the text, and less where T
    texts need T states; one in which every position waits for the one before takes longer.
    """
    length, mixer_length = min(LENGTH, task.cell.seq_len), min(MIXER_LENGTH, task.cell.seq_len)
    narrow = build(task.cell.system, "tiny", d_model=MIXER_WIDTH, n_layers=1, vocab_size=8)
    pairs = {
        "parallel_speedup": (length, _training(model, task, 1), _training(model, task, length)),
        "parallel_share": (1, _mixing(narrow, mixer_length, 1), _mixing(narrow, 1, mixer_length)),
    }
    ratios: dict[str, list[float]] = {name: [] for name in pairs}
    while len(ratios["parallel_share"]) <= (LEAST_ROUNDS if deadline.left_s <= 0 else MOST_ROUNDS):
        for name, (count, single, together) in pairs.items():
            ratios[name].append(count * sample(single, task.device).wall_ns / sample(together, task.device).wall_ns)
    metrics: dict[str, float] = {"parallel_length": length}
    for name, found in ratios.items():
        interval = median_interval([found[1:]])  # the first round warms up
        metrics |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return metrics


def _training(model: LanguageModel, task: Task, length: int) -> Run:
    """A training step over one text of ``length`` positions."""
    tokens = task.tokens(model.config.vocab_size, 1, length + 1)
    return lambda: forward_backward(model, tokens)


def _mixing(model: LanguageModel, texts: int, length: int) -> Run:
    """Forward and backward of the first layer's mixer over random (B, T, D); the gradients are dropped."""
    mixer, positions, weight = model.blocks[0].mixer, model.positions(0, length), model.embedding.weight
    shape = (texts, length, model.config.d_model)
    x, gradient = (torch.randn(shape, dtype=weight.dtype, device=weight.device) for _ in range(2))
    x.requires_grad_()

    def run() -> None:
        mixer(x, positions).backward(gradient)
        model.zero_grad(set_to_none=True)
        x.grad = None

    return run
