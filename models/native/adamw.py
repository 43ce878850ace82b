"""AdamW on float32 master weights whose gradient and rounded copy are bf16, as one native pass over memory."""

import ctypes

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from models.native.call import call
from models.native.library import UnavailableError, library

PLAIN = (Tensor, torch.nn.Parameter, FakeTensor)  # what has its numbers where its pointer says


class AdamWShape(ctypes.Structure):
    """struct AdamWShape of adamw.cpp, field by field."""

    _fields_ = (
        ("count", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("learning_rate", "beta_1", "beta_2", "epsilon", "weight_decay", "step")),
    )


def is_native(weight: Tensor) -> bool:
    """Whether a weight and its gradient can be updated by ``adamw_``."""
    both = (weight, weight.grad)
    known = all(x is not None and type(x) in PLAIN and x.dtype == torch.bfloat16 and x.is_contiguous() for x in both)
    return known and weight.device.type == "cpu" and not isinstance(library(), UnavailableError)


@torch.library.custom_op("retbench::adamw_", mutates_args=("weight", "master", "exp_avg", "exp_avg_sq", "step"))
def adamw_(
    gradient: Tensor,
    weight: Tensor,
    master: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    learning_rate: float,
    beta_1: float,
    beta_2: float,
    epsilon: float,
    weight_decay: float,
) -> None:
    """Makes step ``step + 1`` (a scalar): gradient and weight bfloat16, master and moments float32, all contiguous."""
    step += 1
    shape = AdamWShape(weight.numel(), learning_rate, beta_1, beta_2, epsilon, weight_decay, step.item())
    call("retbench_adamw", shape, gradient, weight, master, exp_avg, exp_avg_sq)


@adamw_.register_fake
def _nothing(*_: object) -> None:
    """Nothing is allocated."""
