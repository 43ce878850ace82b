"""What a training run asks of the optimizer beside steps: clipping, its rate, and its state both ways."""

import pytest
import torch
from torch import nn

from retbench.measure.optimizer import MasterAdamW


def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(size, generator=generator).to(dtype)) for size in (3, 4)]


def give_gradients(weights: list[nn.Parameter], scale: float) -> None:
    for weight in weights:
        weight.grad = torch.full_like(weight, scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_scaled_down_to_a_norm_and_never_up(dtype: torch.dtype) -> None:
    weights = parameters(dtype)
    optimizer = MasterAdamW(weights, 0.1)
    give_gradients(weights, 4.0)
    norm = optimizer.clip(2.0)
    clipped = torch.cat(optimizer.gradients())
    again = optimizer.clip(3.0)

    assert norm.item() == pytest.approx(4 * 7**0.5)
    assert clipped.norm().item() == pytest.approx(2.0)
    assert again.item() == pytest.approx(2.0)
    assert torch.equal(torch.cat(optimizer.gradients()), clipped)


def test_the_learning_rate_is_that_of_the_next_step() -> None:
    weights = parameters(torch.float32)
    optimizer = MasterAdamW(weights, 0.1)
    optimizer.learning_rate = 0.0
    before = [weight.detach().clone() for weight in weights]
    give_gradients(weights, 1.0)
    optimizer.step()

    assert optimizer.learning_rate == 0
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_optimizer_goes_on_bitwise(dtype: torch.dtype) -> None:
    weights = parameters(dtype)
    first = MasterAdamW(weights, 0.1)
    for scale in (1.0, -2.0):
        give_gradients(weights, scale)
        first.step()
    copies = [nn.Parameter(weight.detach().clone()) for weight in weights]
    second = MasterAdamW(copies, 0.1)
    second.restore({name: tensor.clone() for name, tensor in first.state().items()})
    for optimizer, own in ((first, weights), (second, copies)):
        give_gradients(own, 0.5)
        optimizer.step()

    assert all(torch.equal(*pair) for pair in zip(weights, copies, strict=True))
    assert first.state().keys() == second.state().keys()
    assert all(torch.equal(tensor, second.state()[name]) for name, tensor in first.state().items())
