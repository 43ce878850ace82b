"""Rotary position embedding: rotates pairs of channels of q and k by an angle proportional to the position."""

# B batch, H heads, T positions, K key dim

import torch
from torch import Tensor

from models.config import Config


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


def rotate(x: Tensor, cos: Tensor, sin: Tensor, style: str) -> Tensor:
    """x (B, H, T, K) rotated by cos and sin (T, K/2), in their dtype, returned in that of x.

    ``interleaved`` pairs channels (2j, 2j + 1), ``half-split`` pairs (j, j + K/2), ``none`` returns x.
    """
    if style == "none":
        return x
    if style == "interleaved":
        first, second = x.reshape(*x.shape[:-1], -1, 2).to(cos.dtype).unbind(-1)  # (B, H, T, K/2) each
        rotated = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
    else:
        first, second = x.to(cos.dtype).chunk(2, dim=-1)
        rotated = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-2)
    return rotated.flatten(-2).to(x.dtype)  # (B, H, T, K)
