"""Blocks whose activations are computed again: the same gradients, less memory."""

import pytest
import torch

from models import build
from models.catalogue import paper_systems
from retbench.measure.split import KindsOfBytes
from tests.models.helpers import VOCAB_SIZE, gradient_error, gradients, random_model, random_tokens


@pytest.mark.parametrize("system", paper_systems())
def test_checkpointed_blocks_give_the_same_gradients(system: str) -> None:
    model, tokens = random_model(system), random_tokens(2, 20)
    expected = gradients(model, tokens)

    model.checkpointing = True

    assert gradient_error(gradients(model, tokens), expected) < 1e-12


@pytest.mark.parametrize("system", ["retnet", "transformer", "h3"])
def test_checkpointed_blocks_keep_less_than_half_of_the_activations(system: str) -> None:
    model, tokens = build(system, "tiny", vocab_size=VOCAB_SIZE, n_layers=8), random_tokens(1, 256)
    peaks = []
    for checkpointing in (False, True):
        model.checkpointing = checkpointing
        with KindsOfBytes([*model.parameters(), tokens]) as live:
            hidden = model(tokens)
            kept = live.live - hidden.nbytes
            hidden.sum().backward()
        del hidden
        model.zero_grad()
        peaks.append((kept, live.peak))

    (kept, peak), (kept_less, lower_peak) = peaks
    assert kept_less < kept / 2
    assert lower_peak < peak


def test_without_gradients_nothing_is_computed_again() -> None:
    model, tokens = build("retnet", "tiny", vocab_size=VOCAB_SIZE), random_tokens(1, 8)
    with torch.no_grad():
        expected = model(tokens)
        model.checkpointing = True

        assert torch.equal(model(tokens), expected)
