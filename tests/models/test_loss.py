"""The chunked loss equals the plain one in value and gradients, for any chunk, and never holds all logits."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models.loss import chunked_loss, plain_loss
from retbench.measure.split import KindsOfBytes
from tests.models.helpers import VOCAB_SIZE, random_model, random_tokens, repeatable

D_MODEL = 12
Loss = Callable[[Tensor, nn.Module, Tensor], Tensor]


def made(positions: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, nn.Linear, Tensor]:
    """hidden (N, D) that asks for a gradient, a head, targets (N,): values that every dtype can hold."""
    generator = torch.Generator().manual_seed(positions)
    hidden, weight = (torch.randn(n, D_MODEL, generator=generator).bfloat16() for n in (positions, VOCAB_SIZE))
    head = nn.Linear(D_MODEL, VOCAB_SIZE, bias=False, dtype=dtype)
    head.weight.data.copy_(weight)
    hidden = hidden.to(dtype)
    return hidden.requires_grad_(), head, random_tokens(1, positions)[0]


def loss_and_gradients(loss: Loss, positions: int, scale: float, dtype: torch.dtype) -> list[Tensor]:
    hidden, head, targets = made(positions, dtype)
    value = loss(hidden, head, targets)
    (scale * value).backward()
    assert hidden.grad is not None
    assert head.weight.grad is not None
    return [value.detach(), hidden.grad, head.weight.grad]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@repeatable
@given(positions=st.integers(1, 40), chunk=st.integers(1, 50), scale=st.sampled_from([1.0, 0.25, -3.0]))
def test_the_chunked_loss_and_its_gradients_are_the_plain_ones(
    dtype: torch.dtype, positions: int, chunk: int, scale: float
) -> None:
    expected = loss_and_gradients(plain_loss, positions, scale, dtype)
    actual = loss_and_gradients(
        lambda hidden, head, targets: chunked_loss(hidden, head, targets, chunk), positions, scale, dtype
    )

    for one, wanted in zip(actual, expected, strict=True):
        assert (one - wanted).abs().max() <= 1e-6 * max(1.0, wanted.abs().max().item())


def test_bf16_gradients_of_many_chunks_are_as_near_to_the_exact_ones_as_those_of_the_plain_loss() -> None:
    exact = loss_and_gradients(plain_loss, 256, 1.0, torch.float64)[2]

    def error(loss: Loss) -> float:
        return ((loss_and_gradients(loss, 256, 1.0, torch.bfloat16)[2] - exact).norm() / exact.norm()).item()

    plain, in_chunks = error(plain_loss), error(lambda hidden, head, targets: chunked_loss(hidden, head, targets, 4))

    assert in_chunks < 1.2 * plain < 0.05


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_has_the_same_gradients_with_either_loss(tied: bool) -> None:
    tokens = random_tokens(2, 18)
    found = []
    for chunked in (False, True):
        model = random_model("retnet", tied_embeddings=tied)
        loss = model.loss(tokens, chunked=chunked)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])

    assert len(found[0]) == len(found[1]) == 1 + len(list(model.parameters()))
    for actual, wanted in zip(*found, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-12)


def test_the_loss_is_the_cross_entropy_of_the_next_token() -> None:
    model, tokens = random_model("transformer"), random_tokens(2, 9)

    log_likely = model(tokens[:, :-1]).log_softmax(-1).gather(-1, tokens[:, 1:, None])  # (B, T, 1)
    assert model.loss(tokens).item() == pytest.approx(-log_likely.mean().item(), rel=1e-12)


def test_the_logits_of_all_positions_are_never_there_together() -> None:
    def peak(loss: Loss, positions: int) -> int:
        hidden, head, targets = made(positions)
        with KindsOfBytes([hidden, head.weight, targets]) as live:
            loss(hidden, head, targets).backward()
        return live.peak

    def in_chunks(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
        return chunked_loss(hidden, head, targets, 16)

    a_logit, a_gradient = 4 * VOCAB_SIZE, 4 * D_MODEL  # bytes a position
    assert peak(plain_loss, 512) - peak(plain_loss, 256) >= 256 * 2 * a_logit
    assert peak(in_chunks, 512) - peak(in_chunks, 256) == 256 * a_gradient


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_chunked_loss_is_the_plain_one(mode: Callable[[], AbstractContextManager[None]]) -> None:
    hidden, head, targets = made(21)
    with mode():
        actual, wanted = chunked_loss(hidden, head, targets, 4), plain_loss(hidden, head, targets)

    assert actual.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_a_chunk_without_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one position, not 0"):
        chunked_loss(*made(3), chunk=0)
