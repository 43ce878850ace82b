"""Associative recall: what is asked has one answer, what is measured is right, and a run depends on its seed alone."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.language_model import LanguageModel
from retbench.learning import recall
from retbench.learning.recall import accuracy, learning_rate_at, pairs_at, sequences
from retbench.spec import Cell, Recall
from tests.models.helpers import repeatable

pytestmark = pytest.mark.usefixtures("one_thread")

SETTING = Recall(pairs=(2, 4), tokens=6 * 48, step_tokens=48, learning_rate=3e-3, warm_up_share=0.1)
CELL = Cell("retnet", "nano", "recall", 12, 4, "fp32", "cpu", threads=1, vocab_size=16, recall=SETTING)


def read(cell: Cell) -> Mapping[str, Any]:
    """The part of the record that comes last."""
    (part,) = recall.recall({"cell": cell.to_dict()}, lambda message: None)
    return part


class LooksUp:
    """Stands in for a model: answers a query with the value of its key or, ``guessing``, with any value it has read."""

    def __init__(self, guessing: bool) -> None:
        self.guessing = guessing
        self.config = CELL
        self.embedding = torch.nn.Embedding(1, 1)

    def __call__(self, tokens: Tensor) -> Tensor:
        count, length = tokens.shape
        pairs = length // 3
        keys, values, asked = tokens[:, : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2], tokens[:, 2 * pairs :]
        places = (asked[:, :, None] == keys[:, None]).float().argmax(-1)  # (B, P)
        if self.guessing:
            places = torch.randint(pairs, places.shape, generator=torch.Generator().manual_seed(0))
        logits = torch.zeros(count, length, cast(int, CELL.vocab_size))
        logits[:, 2 * pairs :].scatter_(2, values.gather(1, places)[..., None], 1.0)
        return logits


@given(st.integers(1, 16), st.integers(0, 2**32))
@repeatable
def test_every_key_is_told_once_with_a_value_of_its_own_and_asked_for_once(pairs: int, seed: int) -> None:
    tokens, answers = sequences(pairs, 3, 32, torch.Generator().manual_seed(seed))
    again, _ = sequences(pairs, 3, 32, torch.Generator().manual_seed(seed))

    assert torch.equal(tokens, again)
    assert tokens.shape == (3, 3 * pairs)
    for row, wanted in zip(tokens.tolist(), answers.tolist(), strict=True):
        told = dict(zip(row[: 2 * pairs : 2], row[1 : 2 * pairs : 2], strict=True))
        asked = row[2 * pairs :]
        assert len(set(told.values())) == len(told) == pairs
        assert max(told) < 16 <= min(told.values())
        assert sorted(asked) == sorted(told)
        assert [told[key] for key in asked] == wanted


def test_more_pairs_than_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="has 16 keys, and as many values: not 17 pairs"):
        sequences(17, 1, 32, torch.Generator())


@pytest.mark.parametrize("pairs", [2, 4, 8])
def test_who_looks_up_is_always_right_and_who_guesses_once_in_so_many_pairs(pairs: int) -> None:
    found = [accuracy(cast(LanguageModel, LooksUp(guessing)), pairs) for guessing in (False, True)]

    assert found[0] == 1
    assert found[1] == pytest.approx(1 / pairs, abs=0.03)


def test_the_learning_rate_rises_and_falls_to_nothing() -> None:
    setting = replace(SETTING, tokens=20 * 48)
    rates = [learning_rate_at(step, setting) for step in range(21)]

    assert max(rates) == rates[2] == setting.learning_rate
    assert rates[:2] == pytest.approx([setting.learning_rate / 3, 2 * setting.learning_rate / 3])
    assert rates[20] == 0


@pytest.fixture
def few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "TEST_QUERIES", 64)
    monkeypatch.setattr(recall, "TOGETHER", 64)


@pytest.mark.usefixtures("few_queries")
def test_a_run_depends_on_its_seed_alone() -> None:
    first, again, other = (read(replace(CELL, seed=seed)) for seed in (0, 0, 1))

    assert first["notes"]["curve"] == again["notes"]["curve"] != other["notes"]["curve"]
    assert [first["metrics"][name] for name in ("steps", "tokens")] == [6, 288]
    assert {name for name in first["metrics"] if "accuracy" in name} == {"accuracy_at_2", "accuracy_at_4"}


@pytest.mark.usefixtures("few_queries")
def test_all_systems_read_the_same_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Tensor]] = {}
    logits = recall.query_logits

    def watched(model: LanguageModel, tokens: Tensor) -> Tensor:
        seen.setdefault(model.config.system, []).append(tokens)
        return logits(model, tokens)

    monkeypatch.setattr(recall, "query_logits", watched)
    for system in ("retnet", "transformer"):
        read(replace(CELL, system=system))

    assert len(seen["retnet"]) > 6
    assert all(torch.equal(*both) for both in zip(*seen.values(), strict=True))


def test_larger_numbers_of_pairs_join_one_after_the_other() -> None:
    setting = replace(SETTING, pairs=(2, 4, 8), tokens=100 * 48)
    seen = [pairs_at(step, setting) for step in range(100)]

    assert set(seen[:20]) == {2}
    assert set(seen[20:40]) == {2, 4}
    assert set(seen[40:]) == {2, 4, 8}


def test_a_loss_that_is_no_number_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        recall, "query_logits", lambda model, tokens: torch.full((8, 2, 16), torch.nan, requires_grad=True)
    )

    with pytest.raises(recall.DivergedError, match="step 1: the loss is nan"):
        read(CELL)
