"""What the tests of the models share: random models, ways to read tokens, errors at unit scale, the oracles."""

# B batch, T positions, V vocabulary

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from models import build
from models.language_model import LanguageModel, LayerState, State
from models.retnet import Form, RetentionState, RetNet

VOCAB_SIZE = 61
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # of logits of unit scale
FORMS: tuple[Form, ...] = ("parallel", "chunkwise", "recurrent")
ORACLES = Path(__file__).parents[2].parent / "shared" / "oracles"

# Repeatable and quiet: the same examples in every run, no example database, no time limit on a busy machine.
repeatable = settings(derandomize=True, deadline=None, database=None, max_examples=25)

# A text that is prefilled in pieces and then read token by token: (batch size, piece lengths, steps).
Reading = tuple[int, list[int], int]
readings = st.tuples(st.integers(1, 3), st.lists(st.integers(1, 24), min_size=1, max_size=4), st.integers(0, 6))


def random_model(system: str, **options: object) -> LanguageModel:
    """A tiny float64 model whose every weight matters: matrices of unit gain, all else moved from where it starts."""
    model = build(system, "tiny", **{"vocab_size": VOCAB_SIZE, **options}).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.ndim == 2:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)
            else:
                parameter.add_(0.2 * noise)
    return model


@cache
def shared_model(system: str, dtype: torch.dtype) -> LanguageModel:
    """A tiny model of default options, built once: random in float64, as initialised in float32.

    Weights of unit gain are ill-conditioned in float32: before there is context, q.k may be near 0 and the norm of
    each head turns its rounding into a change of sign.
    """
    return random_model(system) if dtype == torch.float64 else build(system, "tiny", vocab_size=VOCAB_SIZE)


def random_tokens(batch_size: int, length: int, seed: int = 0, vocab_size: int = VOCAB_SIZE) -> Tensor:
    """(B, T) int64"""
    return torch.randint(vocab_size, (batch_size, length), generator=torch.Generator().manual_seed(seed))


def read(model: LanguageModel, tokens: Tensor, pieces: Sequence[int], state: State | None = None) -> Tensor:
    """Prefills the pieces one after the other and steps through the rest -> the logits (B, N, V) after each."""
    logits, start = [], 0
    for length in pieces:
        last, state = model.prefill(tokens[:, start : start + length], state)
        logits.append(last)
        start += length
    for token in tokens[:, start:].unbind(1):
        assert state is not None, "steps need a state: give one or a piece"
        last, state = model.step(token, state)
        logits.append(last)
    return torch.stack(logits, dim=1)


def mix(model: LanguageModel, x: Tensor, pieces: Sequence[int], max_seq_len: int = 1) -> tuple[Tensor, LayerState]:
    """x (B, T, D) through the mixer of the first layer: the pieces by ``forward``, the rest by ``step``; its state."""
    mixer = model.blocks[0].mixer
    state, outputs, start = mixer.init_state(len(x), max_seq_len), list[Tensor](), 0
    with torch.no_grad():
        for length in pieces:
            outputs.append(mixer(x[:, start : start + length], model.positions(start, length), state))
            start += length
        for n in range(start, x.shape[1]):
            outputs.append(mixer.step(x[:, n], model.positions(n, 1), state)[:, None])
    return torch.cat(outputs, dim=1), state


def ends(pieces: Sequence[int], length: int) -> list[int]:
    """The positions whose logits ``read`` returns."""
    total = sum(pieces)
    return [sum(pieces[: n + 1]) - 1 for n in range(len(pieces))] + list(range(total, length))


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference after scaling ``expected`` to unit standard deviation."""
    return ((actual.double() - expected.double()).abs().max() / expected.double().std()).item()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The norm of the difference, relative to that of ``expected``."""
    difference: float = torch.linalg.vector_norm(actual.double() - expected.double()).item()
    size: float = torch.linalg.vector_norm(expected.double()).item()
    return difference / size


def gradients(model: LanguageModel, tokens: Tensor) -> dict[str, Tensor]:
    """The gradient of every parameter for a random weighting of all logits."""
    logits = model(tokens)
    weight = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    model.zero_grad()
    (logits * weight.to(logits)).mean().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == dict(model.named_parameters()).keys()
    return found


def gradient_error(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference over the parameters, each scaled to a largest gradient of 1."""
    assert actual.keys() == expected.keys()
    return max(((actual[name] - wanted).abs().max() / wanted.abs().max()).item() for name, wanted in expected.items())


@contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Within it torch has so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_form(model: LanguageModel, form: Form, chunk_size: int = 256) -> RetNet:
    """The same RetNet, set to compute in ``form``."""
    retnet = cast(RetNet, model)
    retnet.form, retnet.chunk_size = form, chunk_size
    return retnet


def memories(model: RetNet, tokens: Tensor) -> list[Tensor]:
    """The recurrent state of each layer after the tokens."""
    return [cast(RetentionState, layer).memory for layer in model.prefill(tokens)[1].layers]


def oracle(name: str) -> dict[str, Any]:
    """What a reference project's own code computed; skips the test where the oracles are not at hand."""
    path = ORACLES / name
    if not path.is_file():
        pytest.skip(f"no oracle {name}: the folder shared/oracles is not beside the project")
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded
