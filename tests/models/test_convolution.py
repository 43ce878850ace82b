"""Convolutions by FFT equal the sum that they stand for, and their lengths are fast ones."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.convolution import convolution, fft_size
from tests.models.helpers import error, repeatable


def direct(kernel: Tensor, x: Tensor) -> Tensor:
    """y_t = sum_l kernel_l x_(t-l), position by position."""
    return torch.stack(
        [
            sum((kernel[..., lag] * x[..., t - lag] for lag in range(min(t + 1, kernel.shape[-1]))), torch.zeros(()))
            for t in range(x.shape[-1])
        ],
        dim=-1,
    )


@given(length=st.integers(1, 40), taps=st.integers(1, 50), data=st.data())
@repeatable
def test_a_convolution_and_its_gradients_are_those_of_the_sum_at_the_positions_that_it_keeps(
    length: int, taps: int, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, length))
    generator = torch.Generator().manual_seed(length)
    kernel = torch.randn(3, 1, taps, generator=generator, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 2, length, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 2, keep, generator=generator, dtype=torch.float64)

    y = convolution(kernel, length, keep)(x)
    expected = direct(kernel, x)[..., -keep:]
    found, wanted = (torch.autograd.grad((out * weight).sum(), (x, kernel)) for out in (y, expected))

    assert y.shape == (3, 2, keep)
    assert (y - expected).abs().max() < 1e-12 * taps
    assert all((ours - theirs).abs().max() < 1e-12 * length for ours, theirs in zip(found, wanted, strict=True))


def test_half_precision_is_convolved_in_float32() -> None:
    x = torch.randn(2, 60, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    kernel = torch.randn(2, 60, generator=torch.Generator().manual_seed(2))

    y = convolution(kernel, 60, 60)(x)

    assert y.dtype == torch.float32
    assert error(y, direct(kernel.double(), x.double())) < 1e-5


@given(length=st.integers(1, 10**6))
@repeatable
def test_the_length_of_an_fft_is_even_fast_and_at_most_a_third_longer_than_needed(length: int) -> None:
    size = fft_size(length)

    assert length <= size <= max(length * 4 / 3, length + 1)
    assert size % 2 == 0
    assert size // (size & -size) in (1, 3, 5, 7)
