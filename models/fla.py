"""Retention by fla-core's Triton kernels (CUDA, extra ``cuda``), which take our decays; used where a probe agrees.

Its layout is (B, T, H, K); the plain forms of ``models.retention`` are the reference.
"""

# B batch, T positions, H heads, K key dim, V value dim

from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from models import probe, retention

PROBED = 100  # positions: more than a chunk of fla's, and no multiple of one


def chunkwise(q: Tensor, k: Tensor, v: Tensor, log_gamma: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """``retention.chunkwise``: q, k (B, H, T, K), v (B, H, T, V), log_gamma (H,), state (B, H, K, V)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, T, H, K or V)
    gamma = {"g_gamma": log_gamma.to(state.dtype), "scale": 1.0}
    out, final = _package().chunk_simple_gla(q, k, v, **gamma, initial_state=state, output_final_state=True)
    return out.transpose(1, 2), final


def recurrent_step_(q: Tensor, k: Tensor, v: Tensor, log_gamma: Tensor, state: Tensor) -> Tensor:
    """``retention.recurrent_step_``: q, k (B, H, K), v (B, H, V), log_gamma (H,), ``state`` updated in place."""
    q, k, v = (x[:, None].to(state.dtype) for x in (q, k, v))  # (B, 1, H, K or V)
    gamma = {"g_gamma": log_gamma.to(state.dtype), "scale": 1.0}
    out, final = _package().fused_recurrent_simple_gla(q, k, v, **gamma, initial_state=state, output_final_state=True)
    state.copy_(final)
    step: Tensor = out.squeeze(1)  # (B, H, V)
    return step


@cache
def refusal(device: torch.device, dtype: torch.dtype, schedule: str, n_heads: int, d_k: int, d_v: int) -> str | None:
    """Why fla-core is not to be used for such heads, None when it agrees with the plain forms on random input."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = [(n_heads, PROBED, d_k), (n_heads, PROBED, d_k), (n_heads, PROBED, d_v), (n_heads, d_k, d_v)]
    q, k, v, state = (torch.randn(2, *s, generator=generator, device=device, dtype=torch.float64) for s in shapes)
    log_gamma = retention.log_decays(schedule, n_heads, device)
    q, k, v = (x.to(dtype) for x in (q, k * d_k**-0.5, v))
    state = state.to(torch.promote_types(dtype, torch.float32))

    def fast() -> list[Tensor]:
        stepped = state.clone()
        step = recurrent_step_(q[:, :, 0], k[:, :, 0], v[:, :, 0], log_gamma, stepped)
        return [step, stepped, *chunkwise(q, k, v, log_gamma, state)]

    def plain(dtype: torch.dtype) -> list[Tensor]:
        at_q, at_k, at_v = (x.to(dtype) for x in (q, k, v))
        stepped = state.to(torch.promote_types(dtype, torch.float32), copy=True)
        whole = retention.chunkwise(at_q, at_k, at_v, log_gamma, stepped.clone(), PROBED)
        gamma = log_gamma.exp().to(stepped.dtype)
        step = retention.recurrent_step_(at_q[:, :, 0], at_k[:, :, 0], at_v[:, :, 0], gamma, stepped)
        return [step, stepped, *whole]

    return probe.refusal(fast, plain(dtype), plain(torch.float64))


def _package() -> Any:
    try:
        return import_module("fla.ops.simple_gla")
    except ImportError as error:
        raise RuntimeError("retention 'fla' needs the fla-core package: pip install retbench[cuda]") from error
