"""Linear layers that leave a product to something faster than torch's default where this processor has it.

In float32 that is oneDNN: torch's default, MKL, uses less than AVX-512 on some processors that have it, which halves
its speed. In bfloat16 it is our own code for the gradient of the weights, whose operands libraries have to turn first.
"""

# N rows, I input channels, O output channels

import time
from collections.abc import Callable
from functools import cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from models import probe
from models.native import tiles
from models.native.library import is_switched_off
from models.native.weight_gradient import MULTIPLE, weight_gradient

ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # a private operator, which a build may lack
LEAST_ROWS = 64  # below, putting the weights in oneDNN's order takes longer than it saves
PROBED = (256, 1024, 1024)  # N, I, O
ROUNDS = 5
LEAST_GAIN = 1.2  # oneDNN is as fast as MKL, within 15 %, or 1.5 to 2.2 times as fast


class Linear(nn.Linear):
    """nn.Linear; products on a CPU take the faster code, in training too."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) -> (..., O)"""
        if type(x) not in (Tensor, FakeTensor) or self.bias is not None:  # a DTensor is for torch's own operators
            return super().forward(x)
        rows = x.reshape(-1, self.in_features)  # of a slice torch would make a batch, with copies of the weights
        product = self._faster_product(rows)
        out: Tensor = product.apply(rows, self.weight) if product else super().forward(rows)
        return out.view(*x.shape[:-1], self.out_features)

    def _faster_product(self, x: Tensor) -> "type[_Product] | type[_NativeGradient] | None":
        if torch.is_autocast_enabled("cpu") or is_switched_off():
            return None
        if _is_native(x, self.weight):
            return _NativeGradient if torch.is_grad_enabled() and self.weight.requires_grad else None
        is_float = x.dtype == self.weight.dtype == torch.float32 and x.device.type == "cpu"
        if not is_float or torch.compiler.is_compiling() or len(x) < LEAST_ROWS:
            return None
        return _Product if onednn_refusal(torch.get_num_threads()) is None else None


def _is_native(x: Tensor, weight: Tensor) -> bool:
    """Whether the gradient of ``weight`` (O, I) can be native for an input (N, I)."""
    is_bf16 = x.dtype == weight.dtype == torch.bfloat16 and x.device.type == "cpu"
    if not is_bf16 or len(x) < LEAST_ROWS or any(channels % MULTIPLE for channels in weight.shape):
        return False
    return bool(_has_tiles())  # a decorated function has no type


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _has_tiles() -> bool:
    """Of this process, once and for all: else a compiler would read through what builds the library."""
    return tiles.refusal() is None


class _NativeGradient(torch.autograd.Function):
    """x (N, I), weight (O, I) -> x W^T (N, O), by torch but for the gradient of the weights"""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = cast(tuple[Tensor, Tensor], ctx.saved_tensors)  # type: ignore[attr-defined]
        of_x, of_weight = cast(tuple[bool, bool], ctx.needs_input_grad)  # type: ignore[attr-defined]
        (out,) = gradients  # (N, O)
        of_weights = weight_gradient(out.contiguous(), x.contiguous())[0] if of_weight else None
        return out @ weight if of_x else None, of_weights


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
    """x (N, I), weight (O, I), of any strides -> x W^T (N, O), without gradients."""
    if ONEDNN is None:
        raise NotImplementedError("this build of torch has no such operator")
    out: Tensor = ONEDNN(x, weight, None, "none", [], None)
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
    with _disable_current_modes(), torch.inference_mode():  # a trace on fake tensors may be what asks
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
