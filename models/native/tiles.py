"""Whether native code by tiles stands in for plain code here: a probe of all of it, with gradients."""

# B batch, T positions, H heads, K key dim, V value dim

from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from models import probe, retention
from models.native.chunkwise import chunkwise
from models.native.gated_norm import gated_norm
from models.native.library import UnavailableError, library
from models.native.weight_gradient import weight_gradient
from models.rotary import rotate, rotation

Pass = Callable[..., Sequence[Tensor]]

LENGTH, CHUNK_SIZE = 70, 48  # a whole chunk and a shorter one, neither a multiple of a tile
HEADS, D_K, D_V = 2, 32, 64
EPS = 1e-6


def refusal() -> str | None:
    """Why products in bfloat16 on this CPU cannot be native, None where they can."""
    loaded = library()
    if isinstance(loaded, UnavailableError):
        return str(loaded)
    return (
        _probed()
        if loaded.retbench_has_tiles()
        else "native code for bfloat16 needs a processor with AVX512-BF16 or AMX"
    )


@cache
def _probed() -> str | None:
    """Why the results of this processor and compiler are not to be used, None where they are as exact as plain ones."""
    with _disable_current_modes(), torch.inference_mode(False), torch.enable_grad():  # whatever is traced meanwhile
        generator = torch.Generator("cpu").manual_seed(0)
        widths = (D_K, D_K, D_V, D_V)  # of q, k, v and the gate
        shapes = [*((1, LENGTH, HEADS, width) for width in widths), (1, HEADS, D_K, D_V)]
        inputs = [torch.randn(s, generator=generator, dtype=torch.float32, device="cpu").bfloat16() for s in shapes]
        plain, exact = _results(_plain, inputs, torch.bfloat16), _results(_plain, inputs, torch.float64)
        return probe.refusal(lambda: _results(_native, inputs, torch.bfloat16), plain, exact)


def _results(compute: Pass, inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """What ``compute`` makes of the inputs, and the gradients of those."""
    state_dtype = torch.promote_types(dtype, torch.float32)
    leaves = [x.to(dtype, copy=True).requires_grad_() for x in inputs[:-1]]
    leaves.append(inputs[-1].to(state_dtype, copy=True).requires_grad_())
    outputs = compute(*leaves)
    gradients = torch.autograd.grad(list(outputs), leaves, [torch.ones_like(output) for output in outputs])
    return [*outputs, *gradients, _weight_gradient(leaves[2], leaves[3], native=compute is _native)]


def _native(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, state: Tensor) -> Sequence[Tensor]:
    where, log_gamma = (*_rotation(torch.float32), "interleaved"), _log_gamma()
    out, last = chunkwise(q, k, v, rotation=where, log_gamma=log_gamma, state=state, chunk_size=CHUNK_SIZE)
    return gated_norm(out, gate, True, EPS), last


def _plain(q: Tensor, k: Tensor, v: Tensor, gate: Tensor, state: Tensor) -> Sequence[Tensor]:
    cos, sin = _rotation(state.dtype)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, T, K or V)
    q, k = rotate(q, cos, sin, "interleaved"), rotate(k, cos, sin, "interleaved", scale=D_K**-0.5)
    out, last = retention.chunkwise(q, k, v, _log_gamma(), state, CHUNK_SIZE)
    return F.layer_norm(out.transpose(1, 2), (D_V,), eps=EPS) * F.silu(gate), last


def _weight_gradient(x: Tensor, y: Tensor, native: bool) -> Tensor:
    """x^T y over all positions and heads."""
    x, y = (z.detach().reshape(-1, D_V) for z in (x, y))
    return weight_gradient(x, y)[0] if native else x.T @ y


def _rotation(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    frequencies = torch.linspace(1, 0.001, D_K // 2, dtype=torch.float64, device="cpu")
    return rotation(frequencies, 0, LENGTH, dtype)


def _log_gamma() -> Tensor:
    return retention.log_decays("linspace", HEADS, torch.device("cpu"))
