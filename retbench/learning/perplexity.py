"""Perplexity of a model over documents: by carrying its state, or in windows that slide to a full context."""

# T tokens of a document after what precedes it, W windows, C context

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.language_model import LanguageModel
from retbench.learning.token_files import Ids

PIECE = 512  # tokens that are read together where the state is carried
TOGETHER = 4096  # tokens of windows that are read together

Losses = Callable[[Ids], Iterator[tuple[int, Tensor]]]  # ids (T + 1,) -> places and losses of tokens 1 .. T, in pieces


@dataclass(frozen=True)
class Counted:
    """A sum of losses in nats over so many tokens."""

    nats: float = 0.0
    tokens: int = 0

    def __add__(self, other: "Counted") -> "Counted":
        return Counted(self.nats + other.nats, self.tokens + other.tokens)

    @property
    def loss(self) -> float:
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)


@dataclass(frozen=True)
class Score:
    """The losses of documents, every token with the same weight."""

    documents: tuple[Counted, ...]  # each, so that systems can be compared in pairs
    positions: dict[int, Counted]  # by the first place of a bucket: 0, 128, 256, 512 ...
    n_bytes: int  # of the texts in UTF-8

    @property
    def total(self) -> Counted:
        return sum(self.documents, Counted())

    @property
    def bits_per_byte(self) -> float:
        """Comparable over tokenizers: the end of each text is paid for too."""
        return self.total.nats / math.log(2) / self.n_bytes


def score(
    documents: Iterable[tuple[Ids, int]],
    losses: Losses,
    eos: int | None,
    bos: int | None,
    most_tokens: int | None = None,
) -> Score:
    """Scores whole documents until there are ``most_tokens``; each is read as if an end of text preceded it.

    One that begins with ``bos`` is read as it is: that token is no text and is not scored. Without an end of text in
    the vocabulary the first token of a document is not scored.
    """
    scores: list[Counted] = []
    positions: dict[int, Counted] = {}
    total_bytes = 0
    for ids, n_bytes in documents:
        document = Counted()
        for place, piece in losses(_preceded(ids, eos, bos)):
            for first, counted in _by_position(place, piece):
                positions[first] = positions.get(first, Counted()) + counted
                document += counted
        scores.append(document)
        total_bytes += n_bytes
        if most_tokens is not None and sum(each.tokens for each in scores) >= most_tokens:
            break
    return Score(tuple(scores), dict(sorted(positions.items())), total_bytes)


def _preceded(ids: Ids, eos: int | None, bos: int | None) -> Ids:
    """ids (T,) after one token that is read but not scored, where there is one for it."""
    begun = bos is not None and len(ids) > 0 and ids[0] == bos
    return ids if begun or eos is None else np.concatenate((np.array([eos], ids.dtype), ids))


def losses_of(model: LanguageModel, context: int) -> Losses:
    """Carries a state of constant size over documents of any length; slides over ``context`` where it would grow."""
    return partial(carried, model) if keeps_its_size(model) else partial(sliding, model, context=context)


def keeps_its_size(model: LanguageModel) -> bool:
    """Whether the decode state takes the same memory after any number of tokens."""
    return model.init_state(1, 1).nbytes == model.init_state(1, 2).nbytes and model.decode_form != "kv-cache"


def carried(model: LanguageModel, ids: Ids) -> Iterator[tuple[int, Tensor]]:
    """Every token of ``ids`` (T + 1,) after the first given all before it, in the memory of one piece."""
    state = None
    for first in range(0, len(ids) - 1, PIECE):
        tokens = _tensor(model, ids[first : first + PIECE + 1])  # (P + 1,)
        logits, state = model.read(tokens[None, :-1], state)
        yield first, _losses(logits, tokens[None, 1:])[0]


@torch.no_grad()
def sliding(model: LanguageModel, ids: Ids, context: int, stride: int | None = None) -> Iterator[tuple[int, Tensor]]:
    """Every token given the ``context - stride`` before it at least, where there are so many, ``context`` at most.

    The stride is half the context where none is given.
    """
    stride = stride or max(1, context // 2)
    if not 1 <= stride <= context:
        raise ValueError(f"a stride of {stride} does not fit a context of {context}: at least 1, at most the context")
    total = len(ids) - 1
    if total < 1:
        return
    span = min(context, total)
    starts = [*range(0, total - span, stride), total - span]  # the last window ends with the text
    done = 0
    for at in range(0, len(starts), max(1, TOGETHER // span)):
        windows = starts[at : at + max(1, TOGETHER // span)]
        tokens = torch.stack([_tensor(model, ids[start : start + span + 1]) for start in windows])  # (W, C + 1)
        for start, losses in zip(windows, _losses(model(tokens[:, :-1]), tokens[:, 1:]), strict=True):
            yield done, losses[done - start :]
            done = start + span


@torch.no_grad()
def at_contexts(
    model: LanguageModel, documents: Iterable[tuple[Ids, int]], contexts: tuple[int, ...], last: int
) -> dict[int, Counted]:
    """The last ``last`` tokens of every whole stretch of max(contexts) tokens, given each number of tokens (Table 8).

    The same tokens are scored at every context; ``last`` is at most the smallest of them.
    """
    if last > min(contexts):
        raise ValueError(f"the last {last} tokens need a context of as many; the smallest is {min(contexts)}")
    longest = max(contexts)
    found = dict.fromkeys(contexts, Counted())
    for ids, _ in documents:
        for end in range(longest, len(ids), longest):
            for context in contexts:
                tokens = _tensor(model, ids[end - context : end + 1])[None]  # (1, C + 1)
                losses = _losses(model(tokens[:, :-1]), tokens[:, 1:])[0, -last:]
                found[context] += Counted(losses.sum().item(), last)
    return found


def _tensor(model: LanguageModel, ids: Ids) -> Tensor:
    return torch.from_numpy(ids.astype(np.int64)).to(model.embedding.weight.device)


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    """logits (W, T, V), targets (W, T) -> (W, T), float32 at least, on the CPU in float64."""
    exact = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(exact.mT, targets, reduction="none").double().cpu()


def _by_position(place: int, losses: Tensor) -> Iterator[tuple[int, Counted]]:
    """The losses (T,) of tokens from ``place`` on, by bucket."""
    while len(losses):
        first = 0 if place < 128 else 1 << (place.bit_length() - 1)
        count = min(len(losses), (2 * first or 128) - place)
        yield first, Counted(losses[:count].sum().item(), count)
        place, losses = place + count, losses[count:]
