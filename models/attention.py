"""Causal softmax attention as pure functions: one eager reference and the backends that must equal it."""

# B batch, H query heads, G key-value heads, T new positions, S all positions, K head dim

from functools import cache
from importlib import import_module
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from models import probe

PROBED = 100  # positions: no multiple of a block of any kernel


class Attention(Protocol):
    """q (B, H, T, K), k and v (B, G, S, K) where the T queries are the last of the S positions -> (B, H, T, K).

    ``filled`` (1,), of a step that is captured: only so many of the S positions count, and the one query is the last.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, filled: Tensor | None = None) -> Tensor: ...


def eager(q: Tensor, k: Tensor, v: Tensor, filled: Tensor | None = None) -> Tensor:
    """Builds the whole score matrix in float32: softmax(q k^T K^-1/2) v; shapes as in ``Attention``."""
    length, dim = q.shape[-2:]
    grouped = (q * dim**-0.5).reshape(q.shape[0], k.shape[1], -1, length, dim)  # (B, G, H/G, T, K)
    scores = grouped @ k[:, :, None].mT  # (B, G, H/G, T, S)
    scores = scores.to(torch.promote_types(q.dtype, torch.float32))
    if length > 1:
        scores.masked_fill_(~causal_mask(length, k.shape[2], q.device), -torch.inf)
    if filled is not None:
        scores.masked_fill_(~filled_mask(k.shape[2], filled), -torch.inf)
    out: Tensor = scores.softmax(-1).to(q.dtype) @ v[:, :, None]  # (B, G, H/G, T, K)
    return out.flatten(1, 2)


def sdpa(q: Tensor, k: Tensor, v: Tensor, filled: Tensor | None = None) -> Tensor:
    """torch's fused attention (FlashAttention on CPU and CUDA); shapes as in ``Attention``."""
    length, total = q.shape[2], k.shape[2]
    if filled is not None:  # the queries of a group see the same keys: they are taken for positions
        grouped_q = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])  # (B, G, H/G, K)
        out = F.scaled_dot_product_attention(grouped_q, k, v, attn_mask=filled_mask(total, filled))
        return out.view_as(q)
    grouped = q.shape[1] != k.shape[1]
    if length == total:
        return F.scaled_dot_product_attention(q, k, v, is_causal=length > 1, enable_gqa=grouped)
    mask = causal_mask(length, total, q.device) if length > 1 else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)


def flash_attn(q: Tensor, k: Tensor, v: Tensor, filled: Tensor | None = None) -> Tensor:
    """The flash-attn package (CUDA, extra ``cuda``); shapes as in ``Attention``, its own layout is (B, T, H, K)."""
    try:
        package = import_module("flash_attn")
    except ImportError as error:
        raise RuntimeError("attention 'flash-attn' needs the flash-attn package: pip install retbench[cuda]") from error
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, T or S, H or G, K)
    if q.shape[1] > 1 or q.requires_grad:
        out: Tensor = package.flash_attn_func(q, k, v, causal=True)
    else:  # a single query needs the kernel that splits the cache between blocks, which has no gradient
        lengths = None if filled is None else filled.to(torch.int32).repeat(q.shape[0])  # (B,)
        out = package.flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, causal=True)
    return out.transpose(1, 2)


def causal_mask(length: int, total: int, device: torch.device) -> Tensor:
    """(T, S) bool: the last T of S positions see themselves and what came before."""
    return torch.ones(length, total, dtype=torch.bool, device=device).tril(total - length)


def filled_mask(total: int, filled: Tensor) -> Tensor:
    """(1, S) bool: the first ``filled`` (1,) of S positions."""
    return (torch.arange(total, device=filled.device) < filled)[None]


@cache
def flash_attn_refusal(
    device: torch.device, dtype: torch.dtype, n_heads: int, n_kv_heads: int, d_head: int
) -> str | None:
    """Why flash-attn is not to be used for such heads, None when it agrees with ``sdpa`` on random input."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = [(n_heads, PROBED), (n_kv_heads, 2 * PROBED), (n_kv_heads, 2 * PROBED)]
    q, k, v = (torch.randn(2, *shape, d_head, generator=generator, device=device).to(dtype) for shape in shapes)
    filled = torch.tensor([PROBED], device=device)

    def outputs(attend: Attention, dtype: torch.dtype) -> list[Tensor]:
        """Of a prefill after a prefix, a step, and a step at a position on the device."""
        at_q, at_k, at_v = (x.to(dtype) for x in (q, k, v))
        step = at_q[:, :, -1:]
        return [attend(at_q, at_k, at_v), attend(step, at_k, at_v), attend(step, at_k, at_v, filled)]

    return probe.refusal(lambda: outputs(flash_attn, dtype), outputs(sdpa, dtype), outputs(eager, torch.float64))


def resolve(name: str, device: torch.device, dtype: torch.dtype, n_heads: int, n_kv_heads: int, d_head: int) -> str:
    """The backend that ``name`` stands for: ``flash`` is flash-attn on CUDA where its probe agrees, else sdpa."""
    if name != "flash":
        return name
    usable = device.type == "cuda" and flash_attn_refusal(device, dtype, n_heads, n_kv_heads, d_head) is None
    return "flash-attn" if usable else "sdpa"


BACKENDS: dict[str, Attention] = {"eager": eager, "sdpa": sdpa, "flash-attn": flash_attn}
