"""Our models as lm-eval sees them: its ``TemplateLM`` over the contract of a language model.

On several ranks lm-eval runs whole on each, which is cheap; the requests are shared out below it, so that each rank has
all results, and the examples before a document are those of one process.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from retbench.evaluate import shares
from retbench.evaluate.generation import Request, generate_texts
from retbench.evaluate.scoring import Score, Scorer
from retbench.tokenizer import Tokenizer

NEWLINE = ord("\n")  # what begins a text where the tokenizer has neither BOS nor EOS
MAX_GENERATED = 256  # tokens, where a task does not say

Progress = Callable[[int, int], None]  # requests done, requests, of this rank


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
        asked = [self._request(*request.args) for request in requests]

        def run(mine: list[Request]) -> list[str]:
            return generate_texts(self.scorer.model, self.encoder, mine, partial(self._tell, total=len(mine)))

        return shares.shared(asked, shares.by_length([one.longest for one in asked], shares.world()), run)

    def _request(self, context: str, options: dict[str, Any]) -> Request:
        """What lm-eval asks for, the context cut from the left so that there is room for what is generated."""
        known = normalize_gen_kwargs(options, MAX_GENERATED)
        most = known["max_gen_toks"]
        room = self.scorer.max_length - most
        if room < 1:
            raise ValueError(f"{most} tokens to generate leave no room for a context in {self.scorer.max_length}")
        prompt = self.tok_encode(context)[-room:] or [self.prefix_token_id]
        stops = tuple(stop for stop in known["until"] if stop)
        return Request(tuple(prompt), most, stops, known.get("temperature", 0.0))

    def _tell(self, done: int, total: int) -> None:
        self.progress(done, total)

    def _score(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Score]:
        def run(mine: list[tuple[Sequence[int], Sequence[int]]]) -> list[Score]:
            return self.scorer.score(mine, partial(self._tell, total=len(mine)))

        found = shares.shared(requests, shares.by_prefix(requests, shares.world()), run)
        self.scores += found
        return found
