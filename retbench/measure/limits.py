"""What this machine can do at best: bytes read and operations made per second, by the fastest way at hand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from retbench.devices import Device
from retbench.timing import Deadline, sample, warm_up

ROW = 4096  # float32 values of a row of the matrix that is read
TRIALS = 3


@dataclass(frozen=True)
class Limit:
    """Something to run again and again, and the bytes that it reads or the floating point operations that it makes."""

    name: str
    run: Callable[[], object]
    amount: int


def readers(nbytes: int) -> list[Limit]:
    """Ways to read about ``nbytes`` once, nothing written: the best of them is the read bandwidth."""
    floats = torch.ones(max(nbytes // 4 // ROW, 1), ROW, dtype=torch.float32)  # (rows, ROW)
    ones = torch.ones(ROW, dtype=torch.float32)
    flat = floats.view(-1)
    first, second = flat.chunk(2)
    return [
        Limit("torch.mv fp32", lambda: torch.mv(floats, ones), floats.nbytes),
        Limit("torch.dot fp32", lambda: torch.dot(first, second), floats.nbytes),
        Limit("torch.amax fp32", lambda: flat.amax(), floats.nbytes),
        Limit("torch.amax uint8", lambda: flat.view(torch.uint8).amax(), floats.nbytes),
        Limit("torch.sum fp32", lambda: flat.sum(), floats.nbytes),
        Limit("torch.sum bf16", lambda: flat.view(torch.bfloat16).sum(), floats.nbytes),
    ]


def products(rows: int, d_model: int, dtype: torch.dtype) -> list[Limit]:
    """Ways to multiply (rows, D) by a weight (4 D, D) as an FFN does; ``packed`` where torch has oneDNN's layout."""
    x = torch.randn(rows, d_model).to(dtype)  # (N, D)
    weight = torch.randn(4 * d_model, d_model).to(dtype)  # (4 D, D)
    flops = 2 * x.numel() * weight.shape[0]
    transposed = weight.T.contiguous()  # (D, 4 D)
    found = [
        Limit("torch.mm", lambda: torch.mm(x, transposed), flops),
        Limit("F.linear", lambda: F.linear(x, weight), flops),
    ]
    packed = _packed(weight, rows)
    if packed is not None:
        found.append(Limit("packed", lambda: packed(x), flops))
    return found


def fastest(limits: Sequence[Limit], device: Device) -> Limit:
    """The one that took the least time in a few trials, warmed up."""

    def best_ns(limit: Limit) -> int:
        warm_up(limit.run, device, Deadline(0.2))
        return min(sample(limit.run, device).wall_ns for _ in range(TRIALS))

    return min(limits, key=best_ns)


def _packed(weight: Tensor, rows: int) -> Callable[[Tensor], Tensor] | None:
    """F.linear with the weight in oneDNN's own layout, by private operators of torch; None where they do not work."""
    try:
        pack, multiply = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
        reordered = pack(weight, rows)
        multiply(weight.new_zeros(1, weight.shape[1]), reordered, None, "none", [], "")
    except (AttributeError, RuntimeError):
        return None
    return lambda x: multiply(x, reordered, None, "none", [], "")
