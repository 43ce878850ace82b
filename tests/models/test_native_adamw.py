"""AdamW in one native pass: as exact as torch's fused one for any shape and thread count; the rest torch does."""

from collections.abc import Iterable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models.native.adamw import is_native
from models.native.library import UnavailableError, library, plain_code
from retbench.measure.optimizer import MasterAdamW
from tests.models.helpers import on_threads, repeatable

STEPS = 4
RATE = 3e-3
ROUNDING = 2**-7  # of bf16, relative: the last bit


@pytest.fixture(autouse=True)
def needs_the_library() -> None:
    loaded = library()
    if isinstance(loaded, UnavailableError):
        pytest.skip(str(loaded))


def weights(shapes: Iterable[tuple[int, ...]], dtype: torch.dtype = torch.bfloat16) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def train(parameters: list[nn.Parameter]) -> MasterAdamW:
    """Some steps with random gradients of very different sizes."""
    optimizer, generator = MasterAdamW(parameters, RATE), torch.Generator().manual_seed(1)
    for scale in (1.0, 1e-4, 30.0, 0.0)[:STEPS]:
        for parameter in parameters:
            parameter.grad = (torch.randn(parameter.shape, generator=generator) * scale).to(parameter.dtype)
        optimizer.step()
        assert all(parameter.grad is None for parameter in parameters)
    return optimizer


def compare(found: MasterAdamW, expected: MasterAdamW) -> None:
    one, two = found.state(), expected.state()
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-7)


@repeatable
@given(
    shapes=st.lists(st.lists(st.integers(1, 200), min_size=1, max_size=2).map(tuple), min_size=1, max_size=3),
    threads=st.integers(1, 3),
)
def test_any_shape_on_any_number_of_threads_is_updated_as_by_torch(shapes: list[tuple[int, ...]], threads: int) -> None:
    ours, theirs = weights(shapes), weights(shapes)
    with on_threads(threads):
        found = train(ours)
    with plain_code():
        expected = train(theirs)

    compare(found, expected)
    for own, master, other in zip(ours, found.tensors(), theirs, strict=False):
        assert torch.equal(own, master.detach().to(torch.bfloat16))  # rounded as torch rounds
        torch.testing.assert_close(own, other, rtol=ROUNDING, atol=0)


def test_many_pieces_are_each_updated_once() -> None:
    ours, theirs = weights([(3, 50_001)]), weights([(3, 50_001)])
    with on_threads(2):
        found = train(ours)
    with plain_code():
        compare(found, train(theirs))


def test_only_plain_contiguous_bf16_with_a_gradient_is_native() -> None:
    (weight,) = weights([(4, 6)])
    assert not is_native(weight)
    weight.grad = torch.ones_like(weight)
    assert is_native(weight)
    with plain_code():
        assert not is_native(weight)

    turned = nn.Parameter(torch.ones(4, 6, dtype=torch.bfloat16).T)
    turned.grad = torch.ones_like(turned)
    assert not is_native(turned)
    (wide,) = weights([(4, 6)], torch.float32)
    wide.grad = torch.ones_like(wide)
    assert not is_native(wide)


def test_gradients_that_were_collected_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(collect: bool) -> Tensor:
        (weight,) = weights([(40, 3)])
        optimizer = MasterAdamW([weight], RATE)
        weight.grad = torch.full_like(weight, 0.25)
        if collect:
            optimizer.collect_gradients()
            monkeypatch.setattr(optimizer, "_update_natively", None)
            weight.grad = torch.full_like(weight, 0.25)
        else:
            weight.grad += 0.25
        optimizer.step()
        return optimizer.tensors()[0].detach()

    torch.testing.assert_close(twice(collect=True), twice(collect=False), rtol=1e-6, atol=0)
