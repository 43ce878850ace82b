"""The order of training: every sequence once an epoch, by seed and step alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench.errors import UsageError
from retbench.learning.batches import Batches, shuffled
from tests.models.helpers import repeatable


@given(st.integers(1, 200), st.text(max_size=4))
@repeatable
def test_shuffled_is_a_permutation(count: int, key: str) -> None:
    assert sorted(shuffled(index, count, key) for index in range(count)) == [*range(count)]


def test_shuffling_needs_no_memory_and_breaks_the_order() -> None:
    count = 10**12
    moved = [shuffled(index, count, "0/0") for index in range(1000)]

    assert abs(np.corrcoef(np.arange(1000), moved)[0, 1]) < 0.1
    assert 0.4 < np.mean(moved) / count < 0.6


@given(st.integers(2, 9), st.integers(1, 7), st.integers(20, 90))
@repeatable
def test_an_epoch_predicts_every_token_once_but_the_first_and_a_rest(seq_len: int, batch_size: int, total: int) -> None:
    batches = Batches(np.arange(total, dtype=np.uint16), seq_len, 1, seed=3)
    targets = np.concatenate([batches.at(step)[:, 1:].ravel() for step in range(batches.count)])

    assert sorted(targets) == [*range(1, 1 + batches.count * seq_len)]
    assert total - 1 - len(targets) < seq_len


def test_a_step_is_the_same_whoever_asks_and_epochs_and_seeds_differ() -> None:
    ids = np.arange(1000, dtype=np.uint16)
    whole = Batches(ids, 9, 4, seed=0)
    single = Batches(ids, 9, 1, seed=0)

    assert np.array_equal(whole.at(5), np.concatenate([single.at(step) for step in range(20, 24)]))
    assert whole.at(0).shape == (4, 10)
    assert [single.start(n) for n in range(111)] != [single.start(n) for n in range(111, 222)]
    assert not np.array_equal(whole.at(0), Batches(ids, 9, 4, seed=1).at(0))


@given(st.integers(2, 9), st.integers(1, 7), st.integers(20, 90), st.integers(1, 20), st.none() | st.integers(1, 9))
@repeatable
def test_what_was_seen_is_what_the_steps_read(
    seq_len: int, batch_size: int, total: int, steps: int, distinct: int | None
) -> None:
    batches = Batches(np.arange(total, dtype=np.uint16), seq_len, batch_size, 3, distinct)
    inputs = np.concatenate([batches.at(step)[:, :-1].ravel() for step in range(steps)])

    assert [*batches.seen(steps, most=total)] == sorted(set(inputs))


def test_of_many_tokens_that_were_seen_those_of_the_first_sequences_are_taken() -> None:
    batches = Batches(np.arange(10_001, dtype=np.uint16), 10, 4, seed=0)
    first = np.concatenate([batches.at(step)[:, :-1].ravel() for step in range(2)])[:70]

    assert [*batches.seen(1000, most=79)] == sorted(first)
    assert len(batches.seen(1000, most=1)) == 10


def test_distinct_sequences_are_read_again_in_another_order_and_come_from_everywhere() -> None:
    batches = Batches(np.arange(1001, dtype=np.uint16), 10, 1, seed=0, distinct=20)
    epochs = [[batches.start(number) for number in range(at, at + 20)] for at in (0, 20)]

    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]
    assert len(set(epochs[0])) == 20
    assert max(epochs[0]) > 700
    assert Batches(batches.ids, 10, 1, 0, 500).start(7) == Batches(batches.ids, 10, 1, 0).start(7)


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(UsageError, match="has 9 tokens: a sequence needs 10"):
        Batches(np.arange(9, dtype=np.uint16), 9, 1, seed=0)
