"""Texts made side by side equal those of each request alone, for every kind of state."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.language_model import LanguageModel
from retbench.evaluate.generation import Request, generate_texts
from retbench.generate import generate
from tests.models.helpers import VOCAB_SIZE, random_model, repeatable, shared_model

SYSTEMS = ("retnet", "transformer", "transformer-flash", "linear-transformer", "lstm", "rwkv", "h3", "hyena")


class Letters:
    """A letter a token; the last one ends a text."""

    vocab_size = VOCAB_SIZE
    eos = VOCAB_SIZE - 1
    bos = None

    def encode(self, text: str, special: bool = True) -> list[int]:
        return [ord(letter) - ord("A") for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(ord("A") + token) for token in ids)


prompts = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=14).map(tuple)
stops = st.lists(st.integers(0, VOCAB_SIZE - 2).map(lambda token: Letters().decode([token])), max_size=12).map(tuple)
temperatures = st.sampled_from([0.0, 0.0, 1.0])
some_requests = st.lists(st.builds(Request, prompts, st.integers(1, 10), stops, temperatures), max_size=8)


def alone(model: LanguageModel, request: Request) -> str:
    """Token by token, by what ``retbench generate`` uses."""
    ids: list[int] = []
    for token in itertools.islice(generate(model, list(request.prompt), request.temperature), request.most):
        text = Letters().decode([*ids, token])
        places = [text.find(stop) for stop in request.stops if stop in text]
        if token == Letters.eos:
            break
        if places:
            return text[: min(places)]
        ids.append(token)
    return Letters().decode(ids)


@pytest.mark.parametrize("system", SYSTEMS)
@given(requests=some_requests)
@settings(repeatable, max_examples=6)
def test_texts_made_side_by_side_equal_those_of_each_request_alone(system: str, requests: list[Request]) -> None:
    model = shared_model(system, torch.float64)

    assert generate_texts(model, Letters(), requests) == [alone(model, request) for request in requests]


def test_prompts_of_like_length_share_their_steps_and_unlike_ones_do_not() -> None:
    model = random_model("retnet")
    steps: list[int] = []

    def count(module: object, arguments: tuple[torch.Tensor, ...]) -> None:
        steps.append(len(arguments[0]))

    requests = [Request(tuple(range(length)), most=6) for length in (40, 40, 42, 10)]
    handle = model.embedding.register_forward_pre_hook(count)
    model.decode_backend = "torch"
    told: list[int] = []
    texts = generate_texts(model, Letters(), requests, told.append)
    handle.remove()

    assert texts == [alone(model, request) for request in requests]
    assert steps.count(1) <= 1 + 5 + 2  # the short prompt, and the one that began to speak two steps after the others
    assert max(steps) == 3
    assert told == [1, 2, 3, 4]
