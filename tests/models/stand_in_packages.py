"""Stand-ins for what the models use of flash-attn and fla-core: documented signatures, layouts and demands."""

# B batch, T new positions, S all positions, H heads of queries, G of keys and values, K key dim, V value dim

import torch
from torch import Tensor

from models import retention


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor:
    """q (B, T, H, K), k and v (B, S, G, K) -> (B, T, H, K); the causal mask is aligned to the bottom right."""
    assert causal
    return _attention(q, k, v, torch.tensor(k.shape[1]).repeat(q.shape[0]), softmax_scale)


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: Tensor | int | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor:
    """q (B, T, H, K) after the first cache_seqlens (B,) of k_cache and v_cache (B, S, G, K); it has no gradient."""
    assert k is None
    assert v is None
    assert causal
    if cache_seqlens is None:
        cache_seqlens = torch.full((q.shape[0],), k_cache.shape[1], dtype=torch.int32)
    assert isinstance(cache_seqlens, Tensor)
    assert cache_seqlens.dtype == torch.int32
    assert cache_seqlens.shape == q.shape[:1]
    assert cache_seqlens.is_contiguous()
    return _attention(q, k_cache, v_cache, cache_seqlens, softmax_scale).detach()


def _attention(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, softmax_scale: float | None) -> Tensor:
    """The T queries are the last of the ``lengths`` (B,) positions that count."""
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
    assert q.shape[2] % k.shape[2] == 0
    k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for x in (k, v))  # (B, S, H, K)
    scores = torch.einsum("bthk,bshk->bhts", q, k) * (softmax_scale or q.shape[-1] ** -0.5)
    rows, columns = torch.arange(q.shape[1])[:, None], torch.arange(k.shape[1])
    last = rows + (lengths - q.shape[1])[:, None, None, None]  # (B, 1, T, 1)
    return torch.einsum("bhts,bshk->bthk", scores.where(columns <= last, -torch.inf).softmax(-1), v)


def chunk_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """q, k (B, T, H, K), v (B, T, H, V), g_gamma (H,), state (B, H, K, V) -> o (B, T, H, V) and the final state."""
    assert g is None
    assert g_gamma is not None
    assert initial_state is not None
    assert g_gamma.dtype == torch.float32 or q.dtype == torch.float64
    assert initial_state.is_contiguous()
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = (x.transpose(1, 2) for x in (q * scale, k, v))  # (B, H, T, K or V)
    out, state = retention.parallel(q, k, v, g_gamma.double(), initial_state)
    return out.transpose(1, 2), state if output_final_state else None


def fused_recurrent_simple_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor | None = None,
    g_gamma: Tensor | None = None,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    reverse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """As ``chunk_simple_gla``, computed position by position."""
    assert not reverse
    return chunk_simple_gla(q, k, v, g, g_gamma, scale, initial_state, output_final_state)
