"""Rotary position embedding: rotates pairs of channels of q and k by an angle proportional to the position."""

# B batch, H heads, T positions, K key dim

import torch
from torch import Tensor

from models.config import Config

STYLES = ("none", "interleaved", "half-split")  # in the order that native code has


def inverse_frequencies(config: Config, d_head: int, device: torch.device) -> Tensor:
    """(K/2,) angle per position of each pair, float64: base^-x with x over [0, 1] or, exclusive, [0, 1)."""
    pairs = d_head // 2
    last = max(pairs - 1, 1) if config.rope_spacing == "inclusive" else pairs
    exponents = torch.arange(pairs, dtype=torch.float64, device=device) / last
    return config.rope_base**-exponents


def rotation(frequencies: Tensor, start: int | Tensor, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin (T, K/2) of positions start .. start + length - 1; a start on the device is an int64 tensor (1,).

    Angles are float64: a bf16 position collapses 8192 positions to 897, a float32 angle is off by 1e-2 at 100,000.
    """
    positions = torch.arange(length, dtype=torch.float64, device=frequencies.device).add_(start)
    angles = positions[:, None] * frequencies  # (T, K/2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, style: str, scale: float = 1.0) -> Tensor:
    """x (B, H, T, K), of any strides, times ``scale`` and rotated by cos and sin (T, K/2) -> contiguous, same dtype.

    ``interleaved`` pairs channels (2j, 2j + 1), ``half-split`` pairs (j, j + K/2), ``none`` rotates nothing. A pair is
    a complex number in the dtype of cos: three passes over memory, the last of which also puts the heads first. A
    compiler, which knows no complex numbers, makes one pass of the four real products.
    """
    if style == "none":
        return (x if scale == 1.0 else x * scale).contiguous()
    axis, sizes = (-1, (-1, 2)) if style == "interleaved" else (-2, (2, -1))  # axis: that of the two of a pair
    channels = x.to(cos.dtype).view(*x.shape[:-1], *sizes)  # (B, H, T, K/2, 2) or (B, H, T, 2, K/2)
    cos, sin = cos * scale, sin * scale
    if torch.compiler.is_compiling():
        first, second = channels.unbind(axis)  # (B, H, T, K/2) each
        turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=axis)
    else:
        pairs = torch.view_as_complex(channels) if axis == -1 else torch.complex(*channels.unbind(axis))
        turned = torch.view_as_real(pairs * torch.complex(cos, sin))  # (B, H, T, K/2, 2)
        turned = turned if axis == -1 else turned.mT
    return turned.flatten(-2).to(x.dtype, memory_format=torch.contiguous_format).contiguous()  # (B, H, T, K)
