"""Causal softmax attention as pure functions: one eager reference and the backends that must equal it."""

# B batch, H query heads, G key-value heads, T new positions, S all positions, K head dim

import importlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Builds the whole score matrix in float32: softmax(q k^T K^-1/2) v.

    q (B, H, T, K), k and v (B, G, S, K) where the T queries are the last of the S positions -> (B, H, T, K).
    """
    length, dim = q.shape[-2:]
    grouped = (q * dim**-0.5).reshape(q.shape[0], k.shape[1], -1, length, dim)  # (B, G, H/G, T, K)
    scores = grouped @ k[:, :, None].mT  # (B, G, H/G, T, S)
    scores = scores.to(torch.promote_types(q.dtype, torch.float32))
    if length > 1:
        scores.masked_fill_(~causal_mask(length, k.shape[2], q.device), -torch.inf)
    out: Tensor = scores.softmax(-1).to(q.dtype) @ v[:, :, None]  # (B, G, H/G, T, K)
    return out.flatten(1, 2)


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's fused attention (FlashAttention on CPU and CUDA); shapes as in ``eager``."""
    length, total = q.shape[2], k.shape[2]
    grouped = q.shape[1] != k.shape[1]
    if length == total:
        return F.scaled_dot_product_attention(q, k, v, is_causal=length > 1, enable_gqa=grouped)
    mask = causal_mask(length, total, q.device) if length > 1 else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)


def flash_attn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The flash-attn package (CUDA, extra ``cuda``); shapes as in ``eager``, its own layout is (B, T, H, K)."""
    try:
        package = importlib.import_module("flash_attn")
    except ImportError as error:
        raise RuntimeError("attention 'flash-attn' needs the flash-attn package: pip install retbench[cuda]") from error
    # A single query needs the kernel that splits the cache between blocks.
    attend = package.flash_attn_func if q.shape[2] > 1 else package.flash_attn_with_kvcache
    out: Tensor = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), causal=True)
    return out.transpose(1, 2)


def causal_mask(length: int, total: int, device: torch.device) -> Tensor:
    """(T, S) bool: the last T of S positions see themselves and what came before."""
    return torch.ones(length, total, dtype=torch.bool, device=device).tril(total - length)


BACKENDS: dict[str, Attention] = {"eager": eager, "sdpa": sdpa, "flash-attn": flash_attn}
