"""N-grams over token ids: what a language model must beat before its loss means anything."""

# N training tokens, T + 1 tokens of a document, V vocabulary

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from retbench.learning.run import MOST_COUNTED
from retbench.learning.token_files import Ids

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """The n-grams of one length: each as (its first n - 1 tokens' place among the shorter ones) V + last token."""

    keys: Integers  # sorted
    counts: Integers  # of each key
    totals: Integers  # of each context
    distinct: Integers  # tokens seen after each context


@dataclass(frozen=True)
class NGrams:
    """Every length up to the order, interpolated after Witten and Bell: the rest goes to the shorter context."""

    vocab_size: int
    levels: tuple[Counts, ...]

    def losses(self, ids: Ids) -> Iterator[tuple[int, Tensor]]:
        """The losses of tokens 1 .. T of ``ids`` (T + 1,), as ``perplexity.score`` takes them."""
        if len(ids) > 1:
            yield 0, torch.from_numpy(-np.log(self.probabilities(ids)[1:]))

    def probabilities(self, ids: Ids) -> npt.NDArray[np.float64]:
        """(T + 1,): of each token after those before it."""
        tokens = ids.astype(np.int64)
        found = np.full(len(tokens), 1 / self.vocab_size)
        contexts = np.zeros_like(tokens)  # place of what precedes each token, -1 where it was never seen
        for level in self.levels:
            keys = np.where(contexts >= 0, contexts * self.vocab_size + tokens, -1)
            places = np.minimum(np.searchsorted(level.keys, keys), len(level.keys) - 1)
            seen = level.keys[places] == keys
            totals, distinct = (
                np.where(contexts >= 0, of_context[contexts], 0) for of_context in (level.totals, level.distinct)
            )
            mixed = (np.where(seen, level.counts[places], 0) + distinct * found) / np.maximum(totals + distinct, 1)
            found = np.where(totals > 0, mixed, found)
            contexts = np.append(-1, np.where(seen, places, -1)[:-1])
        return found


def count(ids: Ids, vocab_size: int, order: int) -> NGrams:
    """Counts the n-grams of lengths 1 to ``order`` in the first MOST_COUNTED of ids (N,), ends of texts among them."""
    tokens = ids[:MOST_COUNTED].astype(np.int64)
    contexts, n_contexts = np.zeros_like(tokens), 1
    levels = []
    for _ in range(min(order, len(tokens))):
        keys, places, counts = np.unique(contexts * vocab_size + tokens, return_inverse=True, return_counts=True)
        of_context = keys // vocab_size
        totals = np.bincount(of_context, weights=counts, minlength=n_contexts).astype(np.int64)
        levels.append(Counts(keys, counts, totals, np.bincount(of_context, minlength=n_contexts)))
        contexts, n_contexts, tokens = places[:-1], len(keys), tokens[1:]
    return NGrams(vocab_size, tuple(levels))
