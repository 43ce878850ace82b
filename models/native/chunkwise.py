"""Chunkwise retention and its gradients as native calls in bf16 by tiles, with ``models.retention`` as reference.

Rotation and decay are applied on the way, and the backward pass computes scores and states again: what is kept for the
gradient are the projections themselves.
"""

# B batch, H heads, T positions, K key dim, V value dim

import ctypes
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from models import retention
from models.native.call import call, pointer, pointer_array
from models.rotary import STYLES

MULTIPLE = 32  # of key and value dim


class RetentionShape(ctypes.Structure):
    """struct RetentionShape of chunkwise.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "length", "n_heads", "d_k", "d_v", "chunk_size", "rotary")),
        ("scale", ctypes.c_double),
    )


# struct RetentionTensors has q, k, v, cos, sin, log_gamma, state and then these
RESULTS = ("out", "last", "grad_out", "grad_last", "grad_q", "grad_k", "grad_v", "grad_state")


def refusal(d_k: int, d_v: int) -> str | None:
    """Why heads of these dims are none that it knows, None where they are."""
    if d_k % MULTIPLE or d_v % MULTIPLE:
        return f"native retention needs a key and a value dim that {MULTIPLE} divides, not {d_k} and {d_v}"
    return None


def chunkwise(
    *qkv: Tensor, rotation: tuple[Tensor, Tensor, str], log_gamma: Tensor, state: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """``rotary.rotate`` of q and k, k times K^-1/2, and ``retention.chunkwise``, in another layout.

    q, k (B, T, H, K), v (B, T, H, V) bfloat16; rotation: cos and sin (T, K/2) float32 and its style; log_gamma (H,)
    float64, state (B, H, K, V) float32 -> o (B, T, H, V) and the new state.
    """
    cos, sin, style = rotation
    inputs = (*(x.contiguous() for x in (*qkv, cos, sin)), log_gamma, state.contiguous())
    how = (STYLES.index(style), min(chunk_size, cos.shape[0]))
    return cast(tuple[Tensor, Tensor], _Chunkwise.apply(*inputs, *how))  # type: ignore[no-untyped-call]


class _Chunkwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, log_gamma: Tensor, state: Tensor, *how: int
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(q, k, v, cos, sin, log_gamma, state)
        ctx.how = how
        ctx.set_materialize_grads(False)
        out, last, _ = _forward(q, k, v, cos, sin, log_gamma, state, *how)
        return out, last

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, grad_last: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        grad_out = torch.zeros_like(tensors[2]) if grad_out is None else grad_out.contiguous()
        grad_last = None if grad_last is None else grad_last.contiguous()
        grad_q, grad_k, grad_v, grad_state, _ = _backward(*tensors, grad_out, grad_last, *ctx.how)
        return grad_q, grad_k, grad_v, None, None, None, grad_state, None, None


# Operators of their own, of which a trace sees one call. All that they use is in what they return, scratch memory
# included, so that such a trace counts every byte.


@torch.library.custom_op("retbench::retention_forward", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    log_gamma: Tensor,
    state: Tensor,
    rotary: int,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """o (B, T, H, V), the last state (B, H, K, V), scratch memory."""
    out, last, scratch = _forward_memory(q, k, v, cos, sin, log_gamma, state, rotary, chunk_size)
    pointers = _pointers((q, k, v, cos, sin, log_gamma, state), out=out, last=last)
    call("retbench_retention", _shape(q, v, rotary, chunk_size), pointers, scratch)
    return out, last, scratch


@_forward.register_fake
def _forward_memory(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What ``_forward`` returns, not filled."""
    q, _, v, _, _, _, state, *how = arguments
    scratch = v.new_empty(call("retbench_retention_bytes", _shape(q, v, *how)), dtype=torch.uint8)
    return torch.empty_like(v), torch.empty_like(state), scratch


@torch.library.custom_op("retbench::retention_backward", mutates_args=())
def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    log_gamma: Tensor,
    state: Tensor,
    grad_out: Tensor,
    grad_last: Tensor | None,
    rotary: int,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k (B, T, H, K), v (B, T, H, V) and the first state (B, H, K, V), scratch memory."""
    results = _backward_memory(q, k, v, cos, sin, log_gamma, state, grad_out, grad_last, rotary, chunk_size)
    grad_q, grad_k, grad_v, grad_state, scratch = results
    inputs = (q, k, v, cos, sin, log_gamma, state)
    gradients = {"grad_q": grad_q, "grad_k": grad_k, "grad_v": grad_v, "grad_state": grad_state}
    pointers = _pointers(inputs, grad_out=grad_out, grad_last=grad_last, **gradients)
    call("retbench_retention_backward", _shape(q, v, rotary, chunk_size), pointers, scratch)
    return grad_q, grad_k, grad_v, grad_state, scratch


@_backward.register_fake
def _backward_memory(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What ``_backward`` returns, not filled."""
    q, k, v, _, _, _, state, _, _, *how = arguments
    scratch = v.new_empty(call("retbench_retention_backward_bytes", _shape(q, v, *how)), dtype=torch.uint8)
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), torch.empty_like(state), scratch


@register_flop_formula(torch.ops.retbench.retention_forward)
def _forward_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *others: Any, **_: Any) -> int:
    """Of arguments of such shapes, for torch's counters."""
    return sum(_flops(q, v, others[-1]))


@register_flop_formula(torch.ops.retbench.retention_backward)
def _backward_flops(q: Sequence[int], k: Sequence[int], v: Sequence[int], *others: Any, **_: Any) -> int:
    """Of pairs six products for the forward pass's two, of states five: scores and states are computed again."""
    pairs, states = _flops(q, v, others[-1])
    return 3 * pairs + 5 * states // 2


def _flops(q: Sequence[int], v: Sequence[int], chunk_size: int) -> tuple[int, int]:
    batch_size, length, n_heads, d_k = q
    pairs, states = retention.chunkwise_flops(n_heads, length, d_k, v[-1], chunk_size)
    return batch_size * pairs, batch_size * states


def _shape(q: Tensor, v: Tensor, rotary: int, chunk_size: int) -> RetentionShape:
    return RetentionShape(*q.shape[:3], q.shape[3], v.shape[3], chunk_size, rotary, q.shape[3] ** -0.5)


def _pointers(inputs: Sequence[Tensor], **others: Tensor | None) -> "ctypes.Array[ctypes.c_void_p]":
    return pointer_array(map(pointer, (*inputs, *map(others.get, RESULTS))))
