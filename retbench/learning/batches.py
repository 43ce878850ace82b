"""Sequences of a training step: which ones depends on the seed and the step alone, so that all systems see the same."""

# B sequences of a step, T positions

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retbench.errors import UsageError
from retbench.learning.token_files import Ids

ROUNDS = 4  # of the Feistel network


@dataclass(frozen=True)
class Batches:
    """Documents, packed one after the other and cut into sequences that share border tokens, shuffled every epoch.

    With ``distinct``, an epoch has so many of these sequences at most, drawn from all by the seed.
    """

    ids: Ids  # (N,)
    seq_len: int
    batch_size: int  # sequences of a step, all micro-batches together
    seed: int
    distinct: int | None = None  # sequences

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"the training split has {len(self.ids)} tokens: a sequence needs {self.seq_len + 1}")

    @property
    def count(self) -> int:
        """Sequences that there are."""
        return (len(self.ids) - 1) // self.seq_len

    @property
    def epoch(self) -> int:
        """Sequences of an epoch."""
        return min(self.count, self.distinct or self.count)

    def at(self, step: int) -> npt.NDArray[np.int64]:
        """The tokens (B, T + 1) of a step, from 0 on."""
        first = step * self.batch_size
        starts = [self.start(number) for number in range(first, first + self.batch_size)]
        return np.stack([self.ids[start : start + self.seq_len + 1].astype(np.int64) for start in starts])

    def seen(self, steps: int, most: int) -> Ids:
        """The tokens (N,) that the first steps read as inputs, each once, in the order of the corpus.

        They are held in memory: of more than ``most``, those of the sequences that are read first.
        """
        count = min(steps * self.batch_size, self.epoch, max(1, most // self.seq_len))
        starts = {self.start(number) for number in range(count)}
        return np.concatenate([self.ids[start : start + self.seq_len] for start in sorted(starts)])

    def start(self, number: int) -> int:
        """Where sequence ``number`` of the whole run begins."""
        epoch, index = divmod(number, self.epoch)
        place = shuffled(index, self.epoch, f"{self.seed}/{epoch}")
        if self.epoch < self.count:
            place = shuffled(place, self.count, f"{self.seed}/drawn")
        return place * self.seq_len


def shuffled(index: int, count: int, key: str) -> int:
    """Element ``index`` of a permutation of 0 .. count - 1 that is never held in memory (a Feistel network)."""
    bits = max(1, ((count - 1).bit_length() + 1) // 2)  # of a half
    mask = (1 << bits) - 1
    while True:
        left, right = index >> bits, index & mask
        for number in range(ROUNDS):
            digest = hashlib.blake2b(f"{key}/{number}/{right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(digest) & mask)
        index = left << bits | right
        if index < count:  # else outside: its successors come back inside
            return index
