"""Scores from shared prefixes equal those of each request alone, for every kind of state and any order of requests."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import build
from models.language_model import LanguageModel
from retbench.evaluate.scoring import Score, Scorer
from tests.models.helpers import VOCAB_SIZE, random_model, repeatable, shared_model

SYSTEMS = ("retnet", "transformer", "transformer-flash", "linear-transformer", "lstm", "rwkv", "h3", "hyena")
Request = tuple[list[int], list[int]]

tokens = st.integers(0, 5)  # few different ones, so that prefixes meet by chance too
pieces = st.lists(tokens, min_size=1, max_size=12)


@st.composite
def documents(draw: st.DrawFn) -> list[Request]:
    """Requests as tasks make them: a few shots that all may share, documents, choices of each of them."""
    shots = draw(st.lists(tokens, max_size=20))
    found: list[Request] = []
    for _ in range(draw(st.integers(1, 4))):
        context = [*shots, *draw(st.lists(tokens, min_size=1, max_size=20))]
        found += [(context, choice) for choice in draw(st.lists(pieces, min_size=1, max_size=4))]
    end = draw(pieces)
    return [*found, *((context, end) for context in draw(st.lists(pieces, max_size=3)))]


def alone(model: LanguageModel, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """By one forward pass, without prefixes, padding or batches."""
    whole = torch.tensor([[*context, *continuation]])
    targets = whole[0, len(context) :]
    with torch.no_grad():
        logits = model(whole[:, :-1])[0, len(context) - 1 :].double()
    values = logits.log_softmax(-1).gather(-1, targets[:, None])
    return values.sum().item(), bool((logits.argmax(-1) == targets).all())


@pytest.mark.parametrize("system", SYSTEMS)
@given(requests=documents(), seed=st.integers(0, 9))
@settings(repeatable, max_examples=6)
def test_scores_from_shared_prefixes_equal_those_of_each_request_alone(
    system: str, requests: list[Request], seed: int
) -> None:
    model = shared_model(system, torch.float64)
    random.Random(seed).shuffle(requests)
    scores = Scorer(model, max_length=64).score(requests)
    expected = [alone(model, *request) for request in requests]

    assert [score.loglikelihood for score in scores] == pytest.approx([value for value, _ in expected], abs=1e-8)
    assert [score.greedy for score in scores] == [greedy for _, greedy in expected]


@pytest.mark.parametrize("system", SYSTEMS)
def test_in_float32_scores_agree_to_1e_5_whatever_their_order(system: str) -> None:
    model = shared_model(system, torch.float32)
    generator = random.Random(0)
    requests = [
        (context, [generator.randrange(VOCAB_SIZE) for _ in range(generator.randint(1, 9))])
        for context in ([generator.randrange(VOCAB_SIZE) for _ in range(40 + 3 * n)] for n in range(5))
        for _ in range(4)
    ]
    scores = Scorer(model, max_length=64).score(requests)
    reverse = Scorer(model, max_length=64).score(requests[::-1])[::-1]
    expected = [alone(model, *request)[0] for request in requests]

    assert [score.loglikelihood for score in scores] == pytest.approx(expected, abs=1e-5)
    assert reverse == scores


@pytest.mark.parametrize("system", ["retnet", "transformer"])
def test_without_reuse_the_scores_are_the_same(system: str) -> None:
    model = random_model(system)
    requests = [([n, 2, 3], [4, 5][: n % 2 + 1]) for n in range(6)]
    expected = [score.loglikelihood for score in Scorer(model, 64).score(requests)]
    plain = [score.loglikelihood for score in Scorer(model, 64, reuse=False).score(requests)]

    assert plain == pytest.approx(expected, abs=1e-9)


def test_a_long_context_is_cut_from_the_left_and_says_so() -> None:
    model = random_model("retnet")
    context, continuation = [n % VOCAB_SIZE for n in range(30)], [7, 8]
    (score,) = Scorer(model, max_length=12).score([(context, continuation)])

    assert score.truncated == 30 + 1 - 12
    assert (score.loglikelihood, score.greedy) == pytest.approx(alone(model, context[-11:], continuation))


@pytest.mark.parametrize(("context", "continuation"), [([], [1]), ([1], []), ([1], [2] * 9)])
def test_what_cannot_be_scored_is_an_error(context: list[int], continuation: list[int]) -> None:
    with pytest.raises(ValueError, match=r"at least one token|longer than --max-length 8"):
        Scorer(build("retnet", "tiny", vocab_size=16), max_length=8).score([(context, continuation)])


@pytest.mark.parametrize("few_shot_prefix_is_fixed", [False, True])
def test_four_shots_and_four_choices_read_a_third_of_the_tokens_at_most(few_shot_prefix_is_fixed: bool) -> None:
    generator = random.Random(0)

    def some(count: int) -> list[int]:
        return [generator.randrange(VOCAB_SIZE) for _ in range(count)]

    fixed = some(160)
    contexts = [(fixed if few_shot_prefix_is_fixed else some(160)) + some(generator.randint(20, 40)) for _ in range(12)]
    requests = [(context, some(generator.randint(4, 12))) for context in contexts for _ in range(4)]
    scorer = Scorer(build("retnet", "tiny", vocab_size=VOCAB_SIZE), max_length=512)
    done: list[int] = []
    scorer.score(requests, done.append)

    assert scorer.work.plain_tokens == sum(len(context) + len(choice) - 1 for context, choice in requests)
    assert scorer.work.plain_tokens / scorer.work.read_tokens > (6 if few_shot_prefix_is_fixed else 3)
    assert done[-1] == len(requests)


def test_a_score_says_what_greedy_decoding_would_give() -> None:
    model = random_model("retnet")
    logits, _ = model.prefill(torch.tensor([[1, 2, 3]]))
    best, worst = int(logits.argmax()), int(logits.argmin())
    scores: list[Score] = Scorer(model, 64).score([([1, 2, 3], [best]), ([1, 2, 3], [worst])])

    assert [score.greedy for score in scores] == [True, False]
    assert scores[0].loglikelihood > scores[1].loglikelihood
