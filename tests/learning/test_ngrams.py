"""N-grams: probabilities that sum to one, equal to counting by hand, better the more context they have."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench.learning.corpus import Corpus
from retbench.learning.ngrams import count
from retbench.learning.perplexity import score
from retbench.learning.run import ORDERS
from retbench.learning.token_files import Ids, tokenize
from retbench.learning.vocabulary import find_vocabulary
from tests.models.helpers import repeatable

VOCAB_SIZE = 5
tokens = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=30)


def by_hand(train: list[int], history: list[int], token: int, order: int) -> float:
    """The same recursion over n-grams counted one by one."""
    found = 1 / VOCAB_SIZE
    for length in range(min(order, len(history) + 1)):
        context = tuple(history[len(history) - length :])
        after = Counter(
            train[at + length] for at in range(len(train) - length) if tuple(train[at : at + length]) == context
        )
        if after:
            found = (after[token] + len(after) * found) / (after.total() + len(after))
    return found


def array(ids: list[int]) -> Ids:
    return np.array(ids, np.uint16)


@given(tokens, tokens, st.integers(1, 5))
@repeatable
def test_probabilities_are_those_counted_by_hand(train: list[int], text: list[int], order: int) -> None:
    expected = [by_hand(train, text[:at], token, order) for at, token in enumerate(text)]

    assert count(array(train), VOCAB_SIZE, order).probabilities(array(text)).tolist() == pytest.approx(expected)


@given(tokens, tokens)
@repeatable
def test_probabilities_of_all_tokens_sum_to_one(train: list[int], history: list[int]) -> None:
    ngrams = count(array(train), VOCAB_SIZE, 5)
    each = [ngrams.probabilities(array([*history, token]))[-1] for token in range(VOCAB_SIZE)]

    assert sum(each) == pytest.approx(1)
    assert min(each) > 0


def test_more_context_predicts_held_out_text_better(corpus: Corpus, tmp_path: object) -> None:
    found = tokenize(corpus, find_vocabulary("bytes", corpus, tmp_path), tmp_path)  # type: ignore[arg-type]
    losses = [math.log(256)]
    for order in ORDERS.values():
        ngrams = count(found.train.ids, 256, order)
        losses.append(score(found.held_out.documents(), ngrams.losses, eos=0, bos=None).total.loss)

    assert losses[1] < losses[0] - 2
    assert losses[2] < losses[1] - 1
