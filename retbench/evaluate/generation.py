"""Texts for many requests side by side, each as its request alone gives it. No row of a batch is padded.

All rows of a batch stand at one position. The prompts are read together up to the end of the shortest; from there on
rows with a longer one still read theirs, step by step, while the others speak.
"""

# R rows, T positions, V vocabulary

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.language_model import LanguageModel
from retbench.evaluate.prefixes import SLACK
from retbench.evaluate.scoring import BATCH_TOKENS
from retbench.generate import choose
from retbench.tokenizer import Tokenizer


@dataclass(frozen=True)
class Request:
    """Token ids to continue, and where to stop: before a stop string or EOS, or after so many tokens."""

    prompt: tuple[int, ...]
    most: int
    stops: tuple[str, ...] = ()
    temperature: float = 0.0

    @property
    def longest(self) -> int:
        return len(self.prompt) + self.most


class Row:
    """A request while its text grows. A sampled one draws from a generator of its own."""

    def __init__(self, index: int, request: Request, tokenizer: Tokenizer, device: torch.device) -> None:
        self.index = index
        self.request = request
        self.text = ""
        self.ended = False
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._generator = torch.Generator(device).manual_seed(0)

    def next(self, position: int, logits: Tensor) -> int:
        """The token at a position: the prompt's, or one chosen by logits (1, V), which may end the text."""
        if position < len(self.request.prompt):
            return self.request.prompt[position]
        token = int(choose(logits, self.request.temperature, 1.0, self._generator))
        self._take(token)
        return token

    def _take(self, token: int) -> None:
        if token == self._tokenizer.eos:
            self.ended = True
            return
        self._ids.append(token)
        self.text = self._tokenizer.decode(self._ids)
        found = [place for stop in self.request.stops if (place := self.text.find(stop)) >= 0]
        self.text = self.text[: min(found, default=len(self.text))]
        self.ended = bool(found) or len(self._ids) == self.request.most


def generate_texts(
    model: LanguageModel,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """The text of every request, told how many are done after each; prompts have at least one token."""
    device = model.embedding.weight.device
    rows = [Row(index, request, tokenizer, device) for index, request in enumerate(requests)]
    done = 0
    for batch in _batches(rows, BATCH_TOKENS[device.type]):
        for _ in _run(model, batch):
            done += 1
            progress(done)
    return [row.text for row in rows]


def _batches(rows: Sequence[Row], batch_tokens: int) -> Iterator[list[Row]]:
    """Rows with prompts of about the same length, the shortest first, with at most ``batch_tokens`` tokens, or one."""
    chosen: list[Row] = []
    for row in sorted(rows, key=lambda row: len(row.request.prompt)):
        together = [*chosen, row]
        tokens = len(together) * max(one.request.longest for one in together)
        shortest = len(together[0].request.prompt)
        if chosen and (tokens > batch_tokens or len(row.request.prompt) - shortest > max(4, shortest // SLACK)):
            yield chosen
            together = [row]
        chosen = together
    if chosen:
        yield chosen


def _run(model: LanguageModel, rows: list[Row]) -> Iterator[Row]:
    """Each row as it ends; those that go on are taken along without it."""
    device = model.embedding.weight.device
    position = len(rows[0].request.prompt)
    state = model.init_state(len(rows), max(row.request.longest for row in rows))
    prompts = torch.tensor([row.request.prompt[:position] for row in rows], device=device)  # (R, T)
    logits, state = model.prefill(prompts, state)  # (R, V)
    while True:
        tokens = [row.next(position, logits[at : at + 1]) for at, row in enumerate(rows)]
        yield from (row for row in rows if row.ended)
        going = [at for at, row in enumerate(rows) if not row.ended]
        if not going:
            return
        if len(going) < len(rows):
            rows, state = [rows[at] for at in going], state.picked(torch.tensor(going, device=device))
        logits, state = model.step(torch.tensor([tokens[at] for at in going], device=device), state)  # (R, V)
        position += 1
