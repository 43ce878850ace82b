"""The group norm and the swish gate of retention as native calls in bf16: one pass over memory each way."""

# N rows, V value dim of a head

import ctypes
from typing import Any, cast

import torch
from torch import Tensor

from models.native.call import call


class NormShape(ctypes.Structure):
    """struct NormShape of gated_norm.cpp, field by field."""

    _fields_ = (*((name, ctypes.c_int64) for name in ("rows", "width", "centred")), ("eps", ctypes.c_double))


def gated_norm(out: Tensor, gate: Tensor, centred: bool, eps: float) -> Tensor:
    """norm(out) * silu(gate), both (..., V) bfloat16: layer norm where ``centred``, else RMS norm, without weights."""
    return cast(Tensor, _GatedNorm.apply(out.contiguous(), gate.contiguous(), centred, eps))  # type: ignore[no-untyped-call]


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, gate: Tensor, centred: bool, eps: float) -> Tensor:
        ctx.save_for_backward(out, gate)
        ctx.how = (centred, eps)
        return cast(Tensor, _forward(out, gate, centred, eps))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *_backward(*ctx.saved_tensors, gradients[0].contiguous(), *ctx.how), None, None


@torch.library.custom_op("retbench::gated_norm", mutates_args=())
def _forward(out: Tensor, gate: Tensor, centred: bool, eps: float) -> Tensor:
    result = torch.empty_like(out)
    call("retbench_gated_norm", _shape(out, centred, eps), out, gate, result)
    return result


@_forward.register_fake
def _forward_memory(out: Tensor, gate: Tensor, centred: bool, eps: float) -> Tensor:
    return torch.empty_like(out)


@torch.library.custom_op("retbench::gated_norm_backward", mutates_args=())
def _backward(out: Tensor, gate: Tensor, grad: Tensor, centred: bool, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients of ``out`` and ``gate`` from that of the result."""
    results = torch.empty_like(out), torch.empty_like(gate)
    call("retbench_gated_norm_backward", _shape(out, centred, eps), out, gate, grad, *results)
    return results


@_backward.register_fake
def _backward_memory(out: Tensor, gate: Tensor, grad: Tensor, centred: bool, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(out), torch.empty_like(gate)


def _shape(out: Tensor, centred: bool, eps: float) -> NormShape:
    width = out.shape[-1]
    return NormShape(out.numel() // width, width, centred, eps)
