"""The WKV operator of RWKV version 4 (BlinkDL/RWKV-LM): a running average of values with learned weights.

Per channel, with a log decay w < 0 a position and a bonus u for the current one,

    y_t = (sum_(i<t) e^((t-1-i) w + k_i) v_i + e^(u + k_t) v_t) / (the same sums without v).

The two sums are held relative to e^exponent, the exponent the largest of their terms': no key, however large or small,
overflows, and no sum of weights vanishes. ``step`` is the recurrence and ``recurrent`` repeats it; ``chunkwise`` is the
training form.
"""

# B batch, T positions, C positions of a chunk, D channels

from typing import Any

import torch
from torch import Tensor

CHUNK_TOKENS = 512  # of the whole batch: their intermediate tensors stay near the processor
MIN_CHUNK_SIZE = 32  # shorter chunks cost more in calls than they save
NOTHING_READ = -1e30  # the exponent of empty sums: e^NOTHING_READ is 0, and differences from it stay finite

Sums = tuple[Tensor, Tensor]  # (2, B, D) of weighted values and of weights, and their exponent (B, D)


def empty_sums(batch_size: int, width: int, dtype: torch.dtype, device: torch.device) -> Sums:
    """What stands before the first position."""
    sums = torch.zeros(2, batch_size, width, dtype=dtype, device=device)
    return sums, torch.full((batch_size, width), NOTHING_READ, dtype=dtype, device=device)


def step(k: Tensor, v: Tensor, w: Tensor, u: Tensor, before: Sums) -> tuple[Tensor, Sums]:
    """One position. k, v (B, D), w, u (D,) in the dtype of the sums -> y (B, D) in the dtype of v, and the new sums."""
    sums, exponent = before
    k, values = k.to(sums.dtype), v.to(sums.dtype)
    old, new = _shares(k, u, sums[1], exponent)
    y = torch.addcmul(new * values, old, sums[0]).to(v.dtype)
    top = torch.maximum(exponent + w, k).detach()  # any top gives the same sums: it has no gradient
    kept, added = (exponent - top + w).exp(), (k - top).exp()
    return y, (sums * kept + torch.stack((added * values, added)), top)


def recurrent(k: Tensor, v: Tensor, w: Tensor, u: Tensor, before: Sums) -> tuple[Tensor, Sums]:
    """One position after the other; k, v (B, T, D) -> y (B, T, D), otherwise as ``step``."""
    outputs = []
    for k_t, v_t in zip(k.unbind(1), v.unbind(1), strict=True):
        y, before = step(k_t, v_t, w, u, before)
        outputs.append(y)
    return torch.stack(outputs, dim=1), before


def chunkwise(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, before: Sums, chunk_size: int | None = None
) -> tuple[Tensor, Sums]:
    """Chunk after chunk, the positions of one all at once; shapes as in ``recurrent``, any length, any keys.

    A chunk takes O(C) work by scans over pairs, pairs of pairs and so on. Gradients flow to k, v, w and u, not to
    ``before``.
    """
    if chunk_size is None:
        chunk_size = max(MIN_CHUNK_SIZE, CHUNK_TOKENS // k.shape[0])
    y, sums, exponent = _Chunkwise.apply(k, v, w, u, *before, chunk_size)  # type: ignore[no-untyped-call]
    return y, (sums, exponent)


class _Chunkwise(torch.autograd.Function):
    """Keeps only the sums between chunks; the backward pass computes those within a chunk again."""

    @staticmethod
    def forward(
        ctx: Any, k: Tensor, v: Tensor, w: Tensor, u: Tensor, sums: Tensor, exponent: Tensor, chunk_size: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, borders = torch.empty_like(v), list[Tensor]()
        for chunk in _chunks(k.shape[1], chunk_size):
            borders += [sums, exponent]
            k_c, v_c = (x[:, chunk].to(w.dtype) for x in (k, v))  # (B, C, D)
            totals, exponents, _ = _unroll(k_c, v_c, w, (sums, exponent))
            old, new = _shares(k_c, u, totals[1, :, :-1], exponents[:, :-1])
            y[:, chunk] = new.mul_(v_c).addcmul_(old, totals[0, :, :-1])
            sums, exponent = totals[:, :, -1].clone(), exponents[:, -1].clone()
        ctx.save_for_backward(k, v, w, u, *borders)
        ctx.chunk_size = chunk_size
        ctx.mark_non_differentiable(sums, exponent)
        return y, sums, exponent

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        k, v, w, u, *borders = ctx.saved_tensors
        grad_k, grad_v, grad_w, grad_u = (torch.zeros_like(x) for x in (k, v, w, u))
        grad_sums = torch.zeros_like(borders[0])
        for n, chunk in reversed(list(enumerate(_chunks(k.shape[1], ctx.chunk_size)))):
            k_c, v_c, g_c = (x[:, chunk].to(w.dtype) for x in (k, v, grad_y))  # (B, C, D)
            before = borders[2 * n], borders[2 * n + 1]
            grad_k[:, chunk], grad_v[:, chunk], added_w, added_u, grad_sums = _chunk_gradients(
                k_c, v_c, g_c, w, u, before, grad_sums
            )
            grad_w += added_w
            grad_u += added_u
        return grad_k, grad_v, grad_w, grad_u, None, None, None


def _chunk_gradients(
    k: Tensor, v: Tensor, grad_y: Tensor, w: Tensor, u: Tensor, before: Sums, grad_sums: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of k, v (B, C, D), w, u (D,) and the sums before the chunk from those of y and the sums after it.

    The gradient of sums is held relative to e^-exponent, so it decays backwards by the factors of the forward pass.
    """
    totals, exponents, kept = _unroll(k, v, w, before)
    old, new = _shares(k, u, totals[1, :, :-1], exponents[:, :-1])
    y = torch.addcmul(new * v, old, totals[0, :, :-1])  # (B, C, D)
    read, own = old.mul_(grad_y), new.mul_(grad_y)  # (B, C, D), what the past and the own value get of the gradient
    backwards = torch.stack((read, read * y.neg())).flip(2)  # (2, B, C, D), of the sums before each position
    backwards = torch.cat((grad_sums[:, :, None], backwards), dim=2)  # (2, B, C + 1, D)
    _scan_(kept.flip(1), backwards)
    grad_totals = backwards[:, :, :-1].flip(2)  # (2, B, C, D), of the sums after each position
    added = (k - exponents[:, 1:]).exp_()
    own_k = own * (v - y)
    grad_k = torch.addcmul(own_k, added, torch.addcmul(grad_totals[1], grad_totals[0], v))
    grad_v = torch.addcmul(own, added, grad_totals[0])
    grad_w = (totals[:, :, :-1] * grad_totals).sum(0).mul_(kept).sum((0, 1))
    return grad_k, grad_v, grad_w, own_k.sum((0, 1)), backwards[:, :, -1].clone()


def _chunks(length: int, chunk_size: int) -> list[slice]:
    """The chunks of T positions, the last perhaps shorter."""
    return [slice(start, start + chunk_size) for start in range(0, length, chunk_size)]


def _shares(k: Tensor, u: Tensor, weights: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
    """What y takes of the sum of past values and of the current value; all (..., D) relative to the exponent."""
    now = k + u
    top = torch.maximum(exponent, now).detach()
    old, new = (exponent - top).exp(), (now - top).exp()
    total = torch.addcmul(new, old, weights)
    return old / total, new / total


def _unroll(k: Tensor, v: Tensor, w: Tensor, before: Sums) -> tuple[Tensor, Tensor, Tensor]:
    """The sums (2, B, C + 1, D) and exponents (B, C + 1, D) before and after each position, and between them the
    factors (B, C, D) that the sums decay by."""
    sums, exponent = before
    exponents = torch.cat((exponent[:, None], k), dim=1)  # (B, C + 1, D)
    _running_max_(exponents, w)
    kept = torch.sub(exponents[:, :-1], exponents[:, 1:]).add_(w).exp_()
    added = (k - exponents[:, 1:]).exp_()
    totals = torch.cat((sums[:, :, None], torch.stack((added * v, added))), dim=2)
    _scan_(kept, totals)
    return totals, exponents, kept


def _running_max_(x: Tensor, w: Tensor) -> None:
    """x_(n+1) <- max(x_(n+1), x_n + w) in place for n = 0, 1, ...; x (..., N, D), w (D,)."""
    if x.shape[-2] == 1:
        return
    even, odd = x[..., 0::2, :], x[..., 1::2, :]
    torch.maximum(odd, even[..., : odd.shape[-2], :] + w, out=odd)
    _running_max_(odd, 2 * w)
    torch.maximum(even[..., 1:, :], odd[..., : even.shape[-2] - 1, :] + w, out=even[..., 1:, :])


def _scan_(factors: Tensor, x: Tensor) -> None:
    """x_(n+1) <- x_(n+1) + factors_n x_n in place for n = 0, 1, ...; x (..., N, D), factors (..., N - 1, D)."""
    if x.shape[-2] == 1:
        return
    even, odd = x[..., 0::2, :], x[..., 1::2, :]
    to_odd, to_even = factors[..., 0::2, :], factors[..., 1::2, :]
    odd.addcmul_(to_odd, even[..., : odd.shape[-2], :])
    _scan_(to_even[..., : odd.shape[-2] - 1, :] * to_odd[..., 1:, :], odd)  # from odd to odd
    even[..., 1:, :].addcmul_(to_even, odd[..., : even.shape[-2] - 1, :])
