"""Perplexity: both ways of reading give the losses of the training form, whatever the length of the text."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from models import build
from models.catalogue import paper_systems
from models.language_model import LanguageModel
from retbench.devices.cpu import DEVICE
from retbench.learning import perplexity
from retbench.learning.perplexity import Counted, at_contexts, carried, keeps_its_size, losses_of, score, sliding
from retbench.learning.token_files import Ids
from tests.models.helpers import VOCAB_SIZE, random_model, repeatable, shared_model

pytestmark = pytest.mark.usefixtures("one_thread")

GROWING = {"transformer", "transformer-flash", "transformer-concat-cache", "hyena"}


def random_ids(length: int, seed: int = 0) -> Ids:
    return np.random.default_rng(seed).integers(VOCAB_SIZE, size=length).astype(np.uint16)


def of_training_form(model: LanguageModel, ids: Ids) -> torch.Tensor:
    tokens = torch.from_numpy(ids.astype(np.int64))
    with torch.no_grad():
        return F.cross_entropy(model(tokens[None, :-1])[0], tokens[1:], reduction="none")


@pytest.mark.parametrize("system", sorted(paper_systems()))
def test_a_state_is_carried_where_it_keeps_its_size(system: str) -> None:
    assert keeps_its_size(shared_model(system, torch.float32)) == (system not in GROWING)


@pytest.mark.parametrize("system", sorted(set(paper_systems()) - GROWING))
def test_carrying_the_state_gives_the_losses_of_the_training_form(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perplexity, "PIECE", 16)
    model, ids = random_model(system), random_ids(51)
    found = torch.cat([losses for _, losses in carried(model, ids)])

    assert [place for place, _ in carried(model, ids)] == [0, 16, 32, 48]
    torch.testing.assert_close(found, of_training_form(model, ids), rtol=0, atol=1e-9)


@given(st.integers(2, 40), st.integers(1, 12), st.data())
@settings(repeatable, max_examples=8)
def test_sliding_gives_each_token_its_context(length: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    model, ids = shared_model("transformer", torch.float64), random_ids(length, seed=length)
    pieces = list(sliding(model, ids, context, stride))
    found = torch.cat([losses for _, losses in pieces])
    windows = [0, *np.cumsum([len(losses) for _, losses in pieces])]

    assert [place for place, _ in pieces] == windows[:-1]
    assert len(found) == length - 1
    for place, end in pairwise(windows):
        start = max(0, end - context)
        expected = of_training_form(model, ids[start : end + 1])[place - start :]
        torch.testing.assert_close(found[place:end], expected, rtol=0, atol=1e-9)
        assert place == 0 or place - start >= min(context - stride, place)


def test_sliding_over_a_context_that_holds_all_is_the_training_form() -> None:
    model, ids = shared_model("transformer", torch.float64), random_ids(30)
    ((place, losses),) = sliding(model, ids, context=64)

    assert place == 0
    torch.testing.assert_close(losses, of_training_form(model, ids), rtol=0, atol=1e-9)


def test_every_token_counts_the_same_and_bytes_are_those_of_the_texts() -> None:
    model = shared_model("retnet", torch.float64)
    documents = [(random_ids(length, length), 3 * length) for length in (5, 300, 40)]
    found = score(documents, losses_of(model, 16), eos=0, bos=None)
    preceded = [np.concatenate((np.array([0], np.uint16), ids)) for ids, _ in documents]
    expected = [of_training_form(model, ids).sum().item() for ids in preceded]

    assert [document.tokens for document in found.documents] == [5, 300, 40]
    assert [document.nats for document in found.documents] == pytest.approx(expected)
    assert found.total.perplexity == pytest.approx(math.exp(sum(expected) / 345))
    assert found.bits_per_byte == pytest.approx(sum(expected) / math.log(2) / (3 * 345))
    assert {first: counted.tokens for first, counted in found.positions.items()} == {0: 173, 128: 128, 256: 44}
    assert sum(counted.nats for counted in found.positions.values()) == pytest.approx(found.total.nats)


def test_without_an_end_of_text_the_first_token_is_not_scored_and_enough_tokens_end_it() -> None:
    model = shared_model("retnet", torch.float64)
    found = score([(random_ids(8), 8)] * 5, losses_of(model, 16), eos=None, bos=None, most_tokens=10)

    assert [document.tokens for document in found.documents] == [7, 7]


@pytest.mark.parametrize(("eos", "bos"), [(0, 5), (5, 5), (None, 5)])
def test_a_document_that_begins_with_bos_is_read_as_it_is(eos: int | None, bos: int) -> None:
    model = shared_model("retnet", torch.float64)
    begun = np.concatenate((np.array([bos], np.uint16), random_ids(200)))
    found = score([(begun, 200)], losses_of(model, 16), eos, bos)

    assert found.documents[0].tokens == 200
    assert found.documents[0].nats == pytest.approx(of_training_form(model, begun).sum().item())
    assert {first: counted.tokens for first, counted in found.positions.items()} == {0: 128, 128: 72}


def test_a_tokenizer_that_has_bos_but_does_not_put_it_there_changes_nothing() -> None:
    model, bos = shared_model("retnet", torch.float64), VOCAB_SIZE - 1
    documents = [(random_ids(20) % bos, 20)]

    assert score(documents, losses_of(model, 16), 0, bos) == score(documents, losses_of(model, 16), 0, None)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary() -> None:
    model = build("retnet", "tiny", vocab_size=VOCAB_SIZE)
    torch.nn.init.zeros_(model.head.weight)  # type: ignore[arg-type]
    found = score([(random_ids(100), 100)], losses_of(model, 16), eos=0, bos=None)

    assert found.total.perplexity == pytest.approx(VOCAB_SIZE)


def test_32k_tokens_are_scored_in_the_memory_of_a_piece() -> None:
    model = shared_model("retnet", torch.float32)
    found = {}

    def peak(length: int) -> int:
        def run(ids: Ids) -> None:
            found[length] = score([(ids, length)], partial(carried, model), eos=0, bos=None)

        return DEVICE.peak_memory(lambda: random_ids(length), run).tensor_bytes

    peak(1024)  # makes what is kept
    short, long = peak(1024), peak(32768)

    assert long == short
    assert found[32768].total.tokens == 32768
    assert list(found[32768].positions) == [0, *(2**power for power in range(7, 15))]
    assert math.isfinite(found[32768].total.loss)


def test_the_same_last_tokens_are_scored_at_every_context() -> None:
    model = shared_model("transformer", torch.float64)
    ids = random_ids(70)
    found = at_contexts(model, [(ids, 70)], (8, 16, 32), last=4)
    expected = sum(of_training_form(model, ids[end - 8 : end + 1])[-4:].sum().item() for end in (32, 64))

    assert found[8].nats == pytest.approx(expected)
    assert {context: counted.tokens for context, counted in found.items()} == {8: 8, 16: 8, 32: 8}
    assert len({counted.nats for counted in found.values()}) == 3


def test_what_does_not_fit_is_refused() -> None:
    model = shared_model("transformer", torch.float32)

    with pytest.raises(ValueError, match="at most the context"):
        list(sliding(model, random_ids(20), 4, 5))
    with pytest.raises(ValueError, match="the smallest is 8"):
        at_contexts(model, [], (8, 16), last=9)


def test_counts_add_up() -> None:
    assert Counted(1.0, 2) + Counted(3.0, 4) == Counted(4.0, 6)
