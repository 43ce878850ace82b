"""Linear layers whose float32 products oneDNN computes where it is faster than torch's default on this processor.

torch's default, MKL, uses less than AVX-512 on some processors that have it, which halves its speed.
"""

# N rows, I input channels, O output channels

import time
from collections.abc import Callable
from functools import cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import probe

LEAST_ROWS = 64  # below, putting the weights in oneDNN's order takes longer than it saves
PROBED = (256, 1024, 1024)  # N, I, O
ROUNDS = 5
LEAST_GAIN = 1.2  # oneDNN is as fast as MKL, within 15 %, or 1.5 to 2.2 times as fast


class Linear(nn.Linear):
    """nn.Linear; products of float32 on a CPU take the faster library, in training too."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) -> (..., O)"""
        # A DTensor or a fake tensor is for torch's own operators.
        wanted = (
            type(x) is Tensor
            and x.dtype == self.weight.dtype == torch.float32
            and x.device.type == "cpu"
            and self.bias is None
        )
        if not wanted or x.numel() < LEAST_ROWS * self.in_features:
            return super().forward(x)
        if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        if onednn_refusal(torch.get_num_threads()) is not None:
            return super().forward(x)
        rows: Tensor = _Product.apply(x.reshape(-1, self.in_features), self.weight)  # type: ignore[no-untyped-call]
        return rows.view(*x.shape[:-1], self.out_features)


class _Product(torch.autograd.Function):
    """x (N, I), weight (O, I) -> x W^T (N, O)"""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn(x, weight)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = cast(tuple[Tensor, Tensor], ctx.saved_tensors)  # type: ignore[attr-defined]
        of_x, of_weight = cast(tuple[bool, bool], ctx.needs_input_grad)  # type: ignore[attr-defined]
        (out,) = gradients  # (N, O)
        return onednn(out, weight.t()) if of_x else None, onednn(out.t(), x.t()) if of_weight else None


def onednn(x: Tensor, weight: Tensor) -> Tensor:
    """x (N, I), weight (O, I), of any strides -> x W^T (N, O), without gradients; a private operator of torch."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], None)
    return out


def decide_onednn(threads: int, refusal: str | None) -> None:
    """From now on ``onednn_refusal(threads)`` is ``refusal``: a timing may decide otherwise in every process."""
    _decided[threads] = refusal
    onednn_refusal.cache_clear()


_decided: dict[int, str | None] = {}


@cache
def onednn_refusal(threads: int) -> str | None:
    """Why ``threads`` threads leave float32 products to torch's default, None where oneDNN's are right and faster."""
    if threads in _decided:
        return _decided[threads]
    n, i, o = PROBED
    generator = torch.Generator("cpu").manual_seed(0)
    with torch.inference_mode():
        x, weight = (torch.randn(s, i, generator=generator, device="cpu", dtype=torch.float32) for s in (n, o))
        x_t, weight_t = (y.t().contiguous().t() for y in (x, weight))  # strided as in the products of a gradient
        plain, exact = F.linear(x, weight), F.linear(x.double(), weight.double())
        reason = probe.refusal(lambda: [onednn(x, weight), onednn(x_t, weight_t)], [plain] * 2, [exact] * 2)
        if reason is not None:
            return reason
        gain = _least_s(lambda: F.linear(x, weight)) / _least_s(lambda: onednn(x, weight))
    return None if gain >= LEAST_GAIN else f"its float32 products are {gain:.1f} times as fast as torch's default"


def _least_s(run: Callable[[], object]) -> float:
    times_s = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        run()
        times_s.append(time.perf_counter() - begin)
    return min(times_s)
