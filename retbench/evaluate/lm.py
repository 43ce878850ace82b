"""Our models as lm-eval sees them: its ``TemplateLM`` over the contract of a language model."""

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from retbench.evaluate.scoring import Score, Scorer
from retbench.generate import generate
from retbench.tokenizer import Tokenizer

NEWLINE = ord("\n")  # what begins a text where the tokenizer has neither BOS nor EOS
MAX_GENERATED = 256  # tokens, where a task does not say

Progress = Callable[[int, int], None]  # requests done, requests


class ContractLM(TemplateLM):  # type: ignore[misc, unused-ignore]
    """Scores and generates. ``scores`` holds those of all requests so far: what was cut of them, for the record."""

    def __init__(self, scorer: Scorer, tokenizer: Tokenizer, progress: Progress = lambda done, total: None) -> None:
        super().__init__()
        self.scorer = scorer
        self.encoder = tokenizer  # lm-eval takes an attribute called tokenizer for one of transformers
        self.progress = progress
        self.scores: list[Score] = []

    @property
    def eot_token_id(self) -> int:
        return NEWLINE if self.encoder.eos is None else self.encoder.eos

    @property
    def prefix_token_id(self) -> int:
        return self.eot_token_id if self.encoder.bos is None else self.encoder.bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
        return self.encoder.encode(string, special=add_special_tokens is not False)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: object
    ) -> list[tuple[float, bool]]:
        found = self._score([(context, continuation) for _, context, continuation in requests])
        return [(score.loglikelihood, score.greedy) for score in found]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts: every token once, in windows of the longest length that do not overlap."""
        windows, owners = list[tuple[list[int], list[int]]](), list[int]()
        for at, request in enumerate(requests):
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.scorer.max_length,
                context_len=1,
            ):
                windows.append(make_disjoint_window(window))
                owners.append(at)
        sums = [0.0] * len(requests)
        for owner, score in zip(owners, self._score(windows), strict=True):
            sums[owner] += score.loglikelihood
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        texts = []
        for request in requests:
            texts.append(self._continue(*request.args))
            self.progress(len(texts), len(requests))
        return texts

    def _continue(self, context: str, options: dict[str, Any]) -> str:
        """The text up to the first of the stop strings, EOS or the largest number of tokens."""
        most = int(options.get("max_gen_toks", MAX_GENERATED))
        temperature = float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        room = self.scorer.max_length - most
        if room < 1:
            raise ValueError(f"{most} tokens to generate leave no room for a context in {self.scorer.max_length}")
        prompt = self.tok_encode(context)[-room:] or [self.prefix_token_id]
        ids: list[int] = []
        for token in generate(self.scorer.model, prompt, temperature):
            if token == self.encoder.eos:
                break
            ids.append(token)
            text = self.encoder.decode(ids)
            if len(ids) == most or any(stop in text for stop in stops):
                break
        text = self.encoder.decode(ids)
        return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]

    def _score(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Score]:
        found = self.scorer.score(requests, lambda done: self.progress(done, len(requests)))
        self.scores += found
        return found
