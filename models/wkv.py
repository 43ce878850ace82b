"""The WKV operator of RWKV version 4 (BlinkDL/RWKV-LM): a running average of values with learned weights.

Per channel, with a log decay w < 0 a position and a bonus u for the current one,

    y_t = (sum_(i<t) e^((t-1-i) w + k_i) v_i + e^(u + k_t) v_t) / (the same sums without v).

The two sums are held relative to e^exponent, the exponent the largest of their terms': no key, however large or small,
overflows, and no sum of weights vanishes. ``step`` is the recurrence and ``recurrent`` repeats it; ``chunkwise`` is the
training form. A state (3, B, D) holds the sum of weighted values, the sum of weights, and their exponent.
"""

# B batch, T positions, C positions of a chunk, N chunks, D channels

import math
from typing import Any

import torch
from torch import Tensor

CHUNK_TOKENS = 512  # of the whole batch: what is computed of them stays near the processor
MIN_CHUNK_SIZE = 32  # shorter chunks cost more in calls than they save
NOTHING_READ = -1e30  # the exponent of empty sums: e^NOTHING_READ is 0, and differences from it stay finite


def empty_state(batch_size: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What stands before the first position (3, B, D)."""
    state = torch.zeros(3, batch_size, width, dtype=dtype, device=device)
    state[2] = NOTHING_READ
    return state


def step(k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One position. k, v (B, D), w, u (D,) in the dtype of the state -> y (B, D) in the dtype of v, the new state."""
    values, weights, exponent = state
    k, v_in = k.to(state.dtype), v.to(state.dtype)
    top = torch.maximum(exponent, u + k).detach()  # any top gives the same: it has no gradient
    past, own = (exponent - top).exp(), (u + k - top).exp()
    y = (past * values + own * v_in) / (past * weights + own)
    top = torch.maximum(exponent + w, k).detach()
    past, own = (exponent - top + w).exp(), (k - top).exp()
    return y.to(v.dtype), torch.stack((past * values + own * v_in, past * weights + own, top))


def recurrent(k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """One position after the other; k, v (B, T, D) -> y (B, T, D), otherwise as ``step``."""
    outputs = []
    for k_t, v_t in zip(k.unbind(1), v.unbind(1), strict=True):
        y, state = step(k_t, v_t, w, u, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def chunkwise(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor, chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Chunk after chunk, the positions of one all at once; shapes as in ``recurrent``, any length, any keys.

    A chunk takes O(C) work by scans over pairs, pairs of pairs and so on. Gradients flow to k, v, w and u, not to or
    from the states.
    """
    if chunk_size is None:
        chunk_size = max(MIN_CHUNK_SIZE, CHUNK_TOKENS // k.shape[0])
    y, state = _Chunkwise.apply(k, v, w, u, state, min(chunk_size, k.shape[1]))  # type: ignore[no-untyped-call]
    return y, state


class _Chunkwise(torch.autograd.Function):
    """Keeps only the states between chunks; the backward pass computes the sums within a chunk again."""

    @staticmethod
    def forward(
        ctx: Any, k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor, chunk_size: int
    ) -> tuple[Tensor, Tensor]:
        y, borders, _ = _forward(k, v, w, u, state, chunk_size)
        ctx.save_for_backward(k, v, w, u, borders)
        ctx.chunk_size = chunk_size
        last = borders[-1].clone()
        ctx.mark_non_differentiable(last)
        return y, last

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_k, grad_v, grad_w, grad_u, _ = _backward(*ctx.saved_tensors, grad_y, ctx.chunk_size)
        return grad_k, grad_v, grad_w, grad_u, None, None


# The two passes are operators of their own, so that a trace on fake tensors takes one call and not thousands. All that
# they use is in what they return, scratch memory included, so that such a trace still counts every byte.


@torch.library.custom_op("retbench::wkv_forward", mutates_args=())
def _forward(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, T, D), the states before each chunk and after the last (N + 1, 3, B, D), scratch memory."""
    y, borders, memory = _forward_memory(k, v, w, u, state, chunk_size)
    borders[0] = state
    for n, chunk in enumerate(_chunks(k.shape[1], chunk_size)):
        scratch = _Scratch(memory)
        k_c, v_c = (scratch.take(*x[:, chunk].shape).copy_(x[:, chunk]) for x in (k, v))  # (B, C, D)
        totals, exponents, _ = _unroll(k_c, v_c, w, borders[n], scratch)
        past, own, _ = _shares(k_c, u, totals[1, :, :-1], exponents[:, :-1], scratch)
        y[:, chunk] = own.mul_(v_c).addcmul_(past, totals[0, :, :-1])
        borders[n + 1, :2], borders[n + 1, 2] = totals[:, :, -1], exponents[:, -1]
    return y, borders, memory


@_forward.register_fake
def _forward_memory(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What ``_forward`` returns, not filled."""
    batch_size, length, width = k.shape
    borders = w.new_empty(math.ceil(length / chunk_size) + 1, *state.shape)
    return torch.empty_like(v), borders, w.new_empty((10 * chunk_size + 3) * batch_size * width)


@torch.library.custom_op("retbench::wkv_backward", mutates_args=())
def _backward(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, borders: Tensor, grad_y: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of k, v (B, T, D), w and u (D,) from that of y, scratch memory."""
    grad_k, grad_v, grad_w, grad_u, memory = _backward_memory(k, v, w, u, borders, grad_y, chunk_size)
    grad_w.zero_()
    grad_u.zero_()
    grad_sums = torch.zeros_like(borders[0, :2])  # (2, B, D), of the sums after the chunk
    for n, chunk in reversed(list(enumerate(_chunks(k.shape[1], chunk_size)))):
        scratch = _Scratch(memory)
        k_c, v_c, g_c = (scratch.take(*x[:, chunk].shape).copy_(x[:, chunk]) for x in (k, v, grad_y))  # (B, C, D)
        grad_k[:, chunk], grad_v[:, chunk], added_w, added_u = _chunk_gradients(
            k_c, v_c, g_c, w, u, borders[n], grad_sums, scratch
        )
        grad_w += added_w
        grad_u += added_u
    return grad_k, grad_v, grad_w, grad_u, memory


@_backward.register_fake
def _backward_memory(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, borders: Tensor, grad_y: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What ``_backward`` returns, not filled."""
    memory = w.new_empty((13 * chunk_size + 5) * k.shape[0] * k.shape[2])
    return torch.empty_like(k), torch.empty_like(v), torch.empty_like(w), torch.empty_like(u), memory


class _Scratch:
    """Memory of one chunk, handed out part by part: fresh memory would cost as much as what is computed in it."""

    def __init__(self, memory: Tensor) -> None:
        self._memory, self._used = memory, 0

    def take(self, *shape: int) -> Tensor:
        start, self._used = self._used, self._used + math.prod(shape)
        return self._memory[start : self._used].view(shape)


def _chunk_gradients(
    k: Tensor, v: Tensor, grad_y: Tensor, w: Tensor, u: Tensor, state: Tensor, grad_sums: Tensor, scratch: _Scratch
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of k, v (B, C, D), w and u (D,); ``grad_sums``, of the sums after the chunk, becomes that before it.

    A gradient of sums is held relative to e^-exponent, so it decays backwards by the factors of the forward pass.
    """
    totals, exponents, kept = _unroll(k, v, w, state, scratch)
    past, own, y = _shares(k, u, totals[1, :, :-1], exponents[:, :-1], scratch)
    torch.mul(own, v, out=y).addcmul_(past, totals[0, :, :-1])
    past.mul_(grad_y)
    own.mul_(grad_y)
    grad_totals = scratch.take(*totals.shape)  # (2, B, C + 1, D), as ``totals`` before and after each position
    grad_totals[0, :, :-1] = past
    torch.mul(past, y, out=grad_totals[1, :, :-1]).neg_()
    grad_totals[:, :, -1] = grad_sums
    _scan_(kept, grad_totals, past.flatten(), backwards=True)
    grad_sums.copy_(grad_totals[:, :, 0])
    of_values, of_weights = grad_totals[:, :, 1:]  # (B, C, D)
    decayed = torch.mul(totals[0, :, :-1], of_values, out=past).addcmul_(totals[1, :, :-1], of_weights)
    grad_w = decayed.mul_(kept).sum((0, 1))
    own_k = torch.sub(v, y, out=y).mul_(own)
    grad_u = own_k.sum((0, 1))
    added = torch.sub(k, exponents[:, 1:], out=kept).exp_()
    grad_v = own.addcmul_(added, of_values)
    grad_k = own_k.addcmul_(added, of_weights.addcmul_(of_values, v))
    return grad_k, grad_v, grad_w, grad_u


def _chunks(length: int, chunk_size: int) -> list[slice]:
    """The chunks of T positions, the last perhaps shorter."""
    return [slice(start, start + chunk_size) for start in range(0, length, chunk_size)]


def _shares(
    k: Tensor, u: Tensor, weights: Tensor, exponents: Tensor, scratch: _Scratch
) -> tuple[Tensor, Tensor, Tensor]:
    """What y takes of the sum of past values and of its own value, and memory to spare; all (B, C, D)."""
    past, own, top = (scratch.take(*k.shape) for _ in range(3))
    torch.add(k, u, out=own)
    torch.maximum(exponents, own, out=top)
    torch.sub(exponents, top, out=past).exp_()
    own.sub_(top).exp_()
    total = torch.addcmul(own, past, weights, out=top)
    return past.div_(total), own.div_(total), total


def _unroll(k: Tensor, v: Tensor, w: Tensor, state: Tensor, scratch: _Scratch) -> tuple[Tensor, Tensor, Tensor]:
    """The sums (2, B, C + 1, D) and exponents (B, C + 1, D) before and after each position, and between them the
    factors (B, C, D) that the sums decay by."""
    batch_size, size, width = k.shape
    exponents, kept = scratch.take(batch_size, size + 1, width), scratch.take(*k.shape)
    totals, spare = scratch.take(2, *exponents.shape), scratch.take(k.numel())
    exponents[:, 0], exponents[:, 1:] = state[2], k
    _running_max_(exponents, w, spare)
    torch.sub(exponents[:, :-1], exponents[:, 1:], out=kept).add_(w).exp_()
    totals[:, :, 0] = state[:2]
    added = torch.sub(k, exponents[:, 1:], out=totals[1, :, 1:]).exp_()
    torch.mul(added, v, out=totals[0, :, 1:])
    _scan_(kept, totals, spare)
    return totals, exponents, kept


def _running_max_(x: Tensor, w: Tensor, spare: Tensor, stride: int = 1) -> None:
    """x_(n+1) <- max(x_(n+1), x_n + stride w) in place for n = 0, 1, ...; x (B, N, D), spare as large as half of x.

    The odd positions take up the even ones before them, are scanned by themselves and taken up by the even ones after.
    """
    if x.shape[1] == 1:
        return

    def take_up(target: Tensor, source: Tensor) -> None:
        moved = spare[: target.numel()].view(target.shape)
        torch.add(source[:, : target.shape[1]], w, alpha=stride, out=moved)
        torch.maximum(target, moved, out=target)

    even, odd = x[:, 0::2], x[:, 1::2]
    take_up(odd, even)
    _running_max_(odd, w, spare, 2 * stride)
    take_up(even[:, 1:], odd)


def _scan_(factors: Tensor, x: Tensor, spare: Tensor, backwards: bool = False) -> None:
    """x_(n+1) <- x_(n+1) + factors_n x_n in place for n = 0, 1, ...; backwards x_n <- x_n + factors_n x_(n+1) from the
    last. x (2, B, N, D), factors (B, N - 1, D), spare as large; pairs as in ``_running_max_``.
    """
    length = x.shape[2]
    if length == 1:
        return

    def first(y: Tensor, count: int) -> Tensor:
        return y.narrow(-2, y.shape[-2] - count if backwards else 0, count)

    def rest(y: Tensor) -> Tensor:
        return y.narrow(-2, 0 if backwards else 1, y.shape[-2] - 1)

    start = (length - 1) % 2 if backwards else 0  # the position that the scan starts from is even
    even, odd = x[:, :, start::2], x[:, :, 1 - start :: 2]
    to_odd = factors[:, 1 - start :: 2] if backwards else factors[:, 0::2]
    to_even = factors[:, start::2] if backwards else factors[:, 1::2]
    odd.addcmul_(to_odd, first(even, odd.shape[2]))
    between = rest(to_odd)
    links = spare[: between.numel()].view(between.shape)  # from odd to odd
    torch.mul(first(to_even, links.shape[1]), between, out=links)
    _scan_(links, odd, spare[links.numel() :], backwards)
    rest(even).addcmul_(to_even, first(odd, even.shape[2] - 1))
