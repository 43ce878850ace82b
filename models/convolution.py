"""Long causal convolutions by FFT, in float32 at least: FFTs on CPU reject bf16 and fp16."""

# T positions of the input, L of the kernel

from collections.abc import Callable

import torch
from torch import Tensor


def convolution(kernel: Tensor, length: int, keep: int) -> Callable[[Tensor], Tensor]:
    """A function x (..., T) -> the last ``keep`` of the positions y_t = sum_l kernel_l x_(t-l), (..., keep).

    kernel (..., L) broadcasts against x, whose T is ``length``; computes in the kernel's dtype. Positions before x
    count as zeros. A kernel longer than x is allowed.
    """
    size = fft_size(max(length, kernel.shape[-1] + keep - 1))  # what wraps around falls on positions that are dropped
    spectrum = torch.fft.rfft(kernel, n=size)  # (..., size / 2 + 1)

    def convolve(x: Tensor) -> Tensor:
        product = torch.fft.rfft(x.to(kernel.dtype), n=size) * spectrum
        y: Tensor = torch.fft.irfft(product, n=size)[..., length - keep : length]
        return y

    return convolve


def fft_size(length: int) -> int:
    """The next even length that is 4, 5, 6, 7 or 8 times a power of two: FFTs of it are fast."""
    step = max(2, 1 << max(length.bit_length() - 3, 0))
    return -(-length // step) * step
