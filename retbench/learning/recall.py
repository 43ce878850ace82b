"""Multi-query associative recall: a model reads keys with their values and is asked for the value of each.

The task is that of Arora et al. 2023, "Zoology" (arXiv 2312.04927), with a smaller vocabulary and without the fillers
between its queries. Everything is generated from seeds.
"""

# B sequences, P pairs, V vocabulary

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models import build
from models.language_model import LanguageModel
from retbench.devices import find_device
from retbench.learning.loop import CLIP, DivergedError
from retbench.learning.run import rate_at
from retbench.learning.telling import Send, Teller, curve
from retbench.measure import TORCH_DTYPES
from retbench.measure.optimizer import MasterAdamW
from retbench.spec import Cell, Recall
from retbench.timing import Stopwatch, rate

TEST_SEED = 2**31  # beside all training seeds: every model is asked the same
TEST_QUERIES, TOGETHER = 2**13, 2**10  # of each number of pairs; of a forward pass
CURRICULUM = 0.6  # of the steps: after it all numbers of pairs are read


def sequences(pairs: int, count: int, vocab_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``pairs`` keys, each with its value, then all the keys in another order -> tokens (B, 3P), answers (B, P).

    Keys are distinct ids of the lower half of the vocabulary, values distinct ones of the upper half. No value follows
    a query and no key is asked for twice, so that no answer helps with another: who knows the values but not whose they
    are is right once in P times. Raises ValueError for more pairs than there are keys.
    """
    half = vocab_size // 2
    if not 1 <= pairs <= half:
        raise ValueError(f"a vocabulary of {vocab_size} has {half} keys, and as many values: not {pairs} pairs")

    def order(places: int) -> Tensor:
        return torch.rand(count, places, generator=generator, device="cpu").argsort(1)[:, :pairs]  # (B, P)

    keys, values, asked = order(half), half + order(half), order(pairs)
    told = torch.stack((keys, values), dim=2).flatten(1)  # (B, 2P)
    return torch.cat((told, keys.gather(1, asked)), dim=1), values.gather(1, asked)


def query_logits(model: LanguageModel, tokens: Tensor) -> Tensor:
    """tokens (B, 3P) -> the logits of the queries (B, P, V)."""
    return model(tokens)[:, -(tokens.shape[1] // 3) :]  # type: ignore[no-any-return]


def accuracy(model: LanguageModel, pairs: int) -> float:
    """The share of the queries of held-out sequences that the model answers."""
    vocab_size, device = model.config.vocab_size, model.embedding.weight.device
    generator = torch.Generator("cpu").manual_seed(TEST_SEED + pairs)
    right = []
    with torch.no_grad():
        for _ in range(TEST_QUERIES // TOGETHER):
            tokens, answers = sequences(pairs, -(-TOGETHER // pairs), vocab_size, generator)
            found = query_logits(model, tokens.to(device)).argmax(-1)  # (B, P)
            right.append((found.cpu() == answers).float().mean())
    return torch.stack(right).mean().item()


def learning_rate_at(step: int, setting: Recall) -> float:
    """Rises over the warm-up, then falls to nothing as a line."""
    warm_up = int(setting.warm_up_share * setting.steps)
    return rate_at(step, setting.learning_rate, warm_up, setting.steps, "linear")


def pairs_at(step: int, setting: Recall) -> int:
    """The pairs of the sequences of a step: all numbers so far in turn, the larger ones joining one after the other.

    To bind a value to the key before it is learnt from few pairs: attention that read up to 64 from the start still
    guessed after 1.5M tokens.
    """
    share = step / setting.steps / CURRICULUM
    known = setting.pairs[: 1 + int(share * len(setting.pairs))]
    return known[step % len(known)]


def recall(request: dict[str, Any], send: Send) -> Iterator[dict[str, Any]]:
    """``made`` tells how far the training is (by ``send``); at last ``metrics`` and ``notes`` of the record."""
    cell = Cell.from_dict(request["cell"])
    if cell.recall is None:
        raise ValueError(f"{cell.label} is not to be trained on recall")
    torch.set_num_threads(cell.threads)
    torch.set_default_dtype(TORCH_DTYPES[cell.dtype])
    with torch.device(cell.device):
        model = build(cell.system, cell.size, seed=cell.seed, **cell.overrides)
        losses, train_s = _train(model, cell, cell.recall, send)
        model.eval()
        found = {pairs: accuracy(model, pairs) for pairs in cell.recall.pairs}
        state = model.init_state(1, cell.seq_len)
    tokens = cell.recall.steps * cell.recall.step_tokens
    points = curve(losses, cell.recall.step_tokens)
    yield {
        "metrics": {
            **{f"accuracy_at_{pairs}": share for pairs, share in found.items()},
            "train_loss": points[-1][1],
            "steps": len(losses),
            "tokens": tokens,
            "train_s": train_s,
            "train_tokens_per_s": rate(tokens, train_s),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "state_bytes": state.nbytes,
        },
        "notes": {"curve": points, "test_queries": TEST_QUERIES},
    }


def _train(model: LanguageModel, cell: Cell, setting: Recall, send: Send) -> tuple[list[float], float]:
    """The losses of all steps and the seconds that they took."""
    stopwatch = Stopwatch(find_device(cell.device))
    losses, told = [], Teller(setting.steps, send)
    for loss in _losses(model, cell, setting):
        losses.append(loss)
        stopwatch.lap()
        told(len(losses), loss, stopwatch.laps_s[-1])
    return losses, sum(stopwatch.laps_s)


def _losses(model: LanguageModel, cell: Cell, setting: Recall) -> Iterator[float]:
    """Trains: the loss of every step, whose sequences depend on the seed alone."""
    generator = torch.Generator("cpu").manual_seed(cell.seed)
    optimizer = MasterAdamW(model.parameters(), setting.learning_rate)
    for step in range(setting.steps):
        pairs = pairs_at(step, setting)
        count = max(1, setting.step_tokens // (3 * pairs))
        tokens, answers = sequences(pairs, count, model.config.vocab_size, generator)
        logits = query_logits(model, tokens.to(cell.device)).flatten(0, 1)  # (BP, V)
        loss = F.cross_entropy(logits.float(), answers.to(cell.device).flatten())
        if not math.isfinite(loss.item()):
            raise DivergedError(f"step {step + 1}: the loss is {loss.item()}")
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.clip(CLIP)
        optimizer.learning_rate = learning_rate_at(step, setting)
        optimizer.step()
        yield loss.item()
