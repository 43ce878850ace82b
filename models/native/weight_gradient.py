"""The gradient of a linear layer's weights as a native call in bf16 by tiles; the reference is torch's product."""

# N rows, I input channels, O output channels

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from models.native.call import call

MULTIPLE = 32  # of input and output channels


class ProductShape(ctypes.Structure):
    """struct ProductShape of weight_gradient.cpp, field by field."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("rows", "outputs", "inputs"))


@torch.library.custom_op("retbench::weight_gradient", mutates_args=())
def weight_gradient(grad_out: Tensor, input: Tensor) -> tuple[Tensor, Tensor]:
    """grad_out (N, O), input (N, I), contiguous -> the gradient of the weights (O, I), and scratch memory."""
    gradient, scratch = _memory(grad_out, input)
    call("retbench_weight_gradient", _shape(grad_out, input), grad_out, input, gradient, scratch)
    return gradient, scratch


@weight_gradient.register_fake
def _memory(grad_out: Tensor, input: Tensor) -> tuple[Tensor, Tensor]:
    """What ``weight_gradient`` returns, not filled."""
    shape = _shape(grad_out, input)
    nbytes = call("retbench_weight_gradient_bytes", shape)
    gradient = grad_out.new_empty(shape.outputs, shape.inputs)
    return gradient, grad_out.new_empty(nbytes, dtype=torch.uint8)


@register_flop_formula(torch.ops.retbench.weight_gradient)
def _flops(grad_out: Sequence[int], input: Sequence[int], **_: Any) -> int:
    """Of arguments of such shapes, for torch's counters."""
    rows, outputs = grad_out
    return 2 * rows * outputs * input[1]


def _shape(grad_out: Tensor, input: Tensor) -> ProductShape:
    return ProductShape(*grad_out.shape, input.shape[1])
