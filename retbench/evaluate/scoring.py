"""Loglikelihoods of continuations by the contract of a language model, prefixes read once and their state reused."""

# B families, R rows, T positions, S scored positions, D model dim, V vocabulary

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from models.language_model import LanguageModel, State
from retbench.evaluate.prefixes import Batch, Family, Row, batches, common_prefix, families

BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
LOGITS_AT_ONCE = 256  # positions


@dataclass(frozen=True)
class Score:
    """Of one continuation: its loglikelihood in nats, whether greedy decoding gives it, tokens cut from the left."""

    loglikelihood: float
    greedy: bool
    truncated: int


@dataclass
class Work:
    """Tokens that were read, padding included, and those that scoring each request alone reads, without padding."""

    read_tokens: int = 0
    plain_tokens: int = 0


@dataclass(frozen=True)
class Scorer:
    """A model with the length that it reads at most; longer contexts are cut from the left."""

    model: LanguageModel
    max_length: int
    reuse: bool = True  # of prefixes; without it, every request is read from its first token on
    work: Work = field(default_factory=Work)

    def score(
        self,
        requests: Sequence[tuple[Sequence[int], Sequence[int]]],
        progress: Callable[[int], None] = lambda scored: None,
    ) -> list[Score]:
        """Scores of (context, continuation) token ids, both with at least one; told how many are done at each batch.

        Raises ValueError for a continuation longer than ``max_length`` or without context.
        """
        rows = [self._row(index, *request) for index, request in enumerate(requests)]
        shared = common_prefix(rows) if self.reuse else 0
        found = families(rows, shared) if self.reuse else [_alone(row) for row in rows]
        state = self._prefix(rows[0].tokens[:shared]) if shared else None
        sums: dict[int, tuple[float, bool]] = {}
        limit = BATCH_TOKENS[self.model.embedding.weight.device.type]
        for batch in batches(found, limit):
            for row, scored in zip(batch.rows, self._score(batch, state), strict=True):
                sums[row.index] = scored
            progress(len(sums))
        self.work.plain_tokens += sum(len(row.tokens) for row in rows)
        cut = [
            len(context) + len(end) - 1 - len(row.tokens) for (context, end), row in zip(requests, rows, strict=True)
        ]
        return [Score(*sums[index], cut[index]) for index in range(len(rows))]

    def _row(self, index: int, context: Sequence[int], continuation: Sequence[int]) -> Row:
        if not context or not continuation:
            raise ValueError("a request needs at least one token of context and one of continuation")
        if len(continuation) > self.max_length:
            raise ValueError(
                f"a continuation of {len(continuation)} tokens is longer than --max-length {self.max_length}"
            )
        tokens = (*context, *continuation)[-self.max_length - 1 :]
        return Row(index, tokens[:-1], tuple(continuation))

    def _prefix(self, tokens: Sequence[int]) -> State:
        self.work.read_tokens += len(tokens)
        return self.model.prefill(self._tensor([tokens]))[1]

    def _score(self, batch: Batch, shared: State | None) -> list[tuple[float, bool]]:
        """The sum of the log probabilities of each row's targets, and whether each target is the likeliest token."""
        rows, state = batch.rows, self._read_prefixes(batch, shared)
        suffixes = [row.tokens[batch.split :] for row in rows]
        hidden, _ = self.model.read_hidden(self._tensor(suffixes), state)  # (R, T, D)
        self.work.read_tokens += hidden.shape[0] * hidden.shape[1]
        places = [
            (at, len(suffix) - len(row.targets) + k)
            for at, (row, suffix) in enumerate(zip(rows, suffixes, strict=True))
            for k in range(len(row.targets))
        ]
        picked = hidden[tuple(self._tensor(places).T)]  # (S, D)
        targets = self._tensor([[target for row in rows for target in row.targets]])[0]  # (S,)
        pieces = -(-len(places) // LOGITS_AT_ONCE)
        cut = zip(picked.chunk(pieces), targets.chunk(pieces), strict=True)
        scored = [self._score_positions(*piece) for piece in cut]
        values, greedy = (torch.cat(parts).tolist() for parts in zip(*scored, strict=True))
        ends = [0, *accumulate(len(row.targets) for row in rows)]
        return [(sum(values[start:end]), all(greedy[start:end])) for start, end in pairwise(ends)]

    def _read_prefixes(self, batch: Batch, shared: State | None) -> State | None:
        """The state of every row at the split, None where that is the start."""
        if batch.split == 0:
            return None
        start = shared.position if shared else 0
        prefixes = [family.rows[0].tokens[start : batch.split] for family in batch.families]
        if shared:
            state = shared.picked(self._tensor([[0] * len(prefixes)])[0])
        else:
            state = self.model.init_state(len(prefixes), max(family.longest for family in batch.families))
        if batch.split > start:
            _, state = self.model.read_hidden(self._tensor(prefixes), state)
            self.work.read_tokens += len(prefixes) * len(prefixes[0])
        owners = [at for at, family in enumerate(batch.families) for _ in family.rows]
        return state if len(owners) == len(prefixes) else state.picked(self._tensor([owners])[0])

    @torch.no_grad()
    def _score_positions(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """hidden (S, D), targets (S,) -> log probabilities (S,) float64, whether no token is likelier (S,)"""
        logits = self.model.head(hidden)  # (S, V)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = logits - logits.amax(-1, keepdim=True)  # then float32 is enough, and four times as fast
        values = logits.gather(-1, targets[:, None]).squeeze(-1).double()
        return values - logits.exp_().sum(-1).double().log(), values == 0

    def _tensor(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """(R, T) int64, zeros behind the shorter ones: what follows a position does not change it."""
        longest = max(map(len, ids))
        padded = [[*row, *([0] * (longest - len(row)))] for row in ids]
        return torch.tensor(padded, device=self.model.embedding.weight.device)


def _alone(row: Row) -> Family:
    return Family((row,), 0)
