"""Retention in its three forms (arXiv 2307.08621, section 2.1) as pure functions of q, k, v and the decays.

All compute the plain recurrence S_n = gamma S_(n-1) + k_n^T v_n, o_n = q_n S_n. The paper's row scalings are positive
scalars that the group norm after it removes, so one normalisation, the group norm, serves all three forms. Without a
group norm ``with_row_sums`` and ``scale_rows`` around any form apply the paper's scalings.
"""

# B batch, H heads, T positions, K key dim, V value dim, N chunks, C positions of a chunk

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SEGMENT_CHUNKS = 32  # chunks whose states are held at once: caps the memory of long prompts


def log_decays(schedule: str, n_heads: int, device: torch.device | None = None) -> Tensor:
    """log gamma (H,), float64. ``linspace``: the paper's experiments (section 3.1); ``eq8``: 1 - 2^(-5-i).

    The paper's ablations (section 3.6): ``single``: 127/128 for every head; ``none``: 1, no decay.
    """
    if schedule == "eq8":
        complement = 2.0 ** (-5 - torch.arange(n_heads, dtype=torch.float64, device=device))
    elif schedule in ("single", "none"):
        complement = torch.full(
            (n_heads,), 1 / 128 if schedule == "single" else 0.0, dtype=torch.float64, device=device
        )
    else:
        first, last = math.log(1 / 32), math.log(1 / 512)
        complement = torch.linspace(first, last, n_heads, dtype=torch.float64, device=device).exp()
    return torch.log1p(-complement)


def decay_matrix(log_gamma: Tensor, length: int) -> Tensor:
    """D (H, T, T) of eq. 5, float64: gamma^(n-m) where n >= m, else 0."""
    falling = powers_of(log_gamma, torch.arange(length - 1, -1, -1, device=log_gamma.device))  # (H, T)
    padded = F.pad(falling, (0, length - 1))  # (H, 2 T - 1): every row of D is a window of it
    return padded.unfold(-1, length, 1).flip(-2)  # (H, T, T)


def powers_of(log_gamma: Tensor, exponents: Tensor) -> Tensor:
    """gamma^exponents (H, *exponents.shape), float64; gamma = 0 gives 0^0 = 1."""
    finite = log_gamma.clamp(min=-1e4)
    return torch.exp(torch.tensordot(finite, exponents.to(finite.dtype), dims=0))


def decay_row_scales(log_gamma: Tensor, start: int | Tensor, length: int) -> Tensor:
    """(T, H), float64: the root of the row sums of D, 1 + gamma + ... + gamma^n, at n = start .. start + T - 1."""
    steps = torch.arange(1, length + 1, dtype=torch.float64, device=log_gamma.device)
    terms = steps.add_(start)[:, None]  # (T, 1)
    sums = torch.expm1(terms * log_gamma) / torch.expm1(log_gamma)  # (T, H), 0 / 0 where gamma = 1
    return torch.where(log_gamma == 0, terms, sums).sqrt()


def with_row_sums(v: Tensor) -> Tensor:
    """v (..., V) with a column of ones (..., V + 1): every form then also gives the row sums of its scores R."""
    return F.pad(v, (0, 1), value=1.0)


def scale_rows(out: Tensor, decay_scales: Tensor) -> Tensor:
    """Scales the rows of D and R as in section 2.2: R by D / sqrt(sum D), then by 1 / max(abs(sum R), 1).

    out (..., V + 1) with the row sums r of the unscaled scores as its last column, decay_scales the sqrt(sum D), of
    the dimensions before it -> (..., V). Both scalings at once are 1 / max(abs(r), sqrt(sum D)), r a plain recurrence.
    """
    values, row_sums = out[..., :-1], out[..., -1:]
    return values / torch.maximum(row_sums.abs(), decay_scales[..., None].to(out.dtype))


def chunkwise_flops(n_heads: int, length: int, d_k: int, d_v: int, chunk_size: int) -> tuple[int, int]:
    """Operations that the chunkwise form must make of one sequence: for the pairs within chunks, and for the state.

    2 (K + V) for each pair of a position and what it sees of its chunk; 4 K V for each position, half of it to read the
    state, half to add to it.
    """
    whole, rest = divmod(length, chunk_size)
    pairs = (whole * chunk_size * (chunk_size + 1) + rest * (rest + 1)) // 2
    return n_heads * 2 * (d_k + d_v) * pairs, n_heads * 4 * d_k * d_v * length


def parallel(q: Tensor, k: Tensor, v: Tensor, log_gamma: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Parallel form, eq. 5, after a prefix whose state is given.

    q, k (B, H, T, K), v (B, H, T, V), log_gamma (H,), state (B, H, K, V) -> o (B, H, T, V) and the new state.
    """
    length = q.shape[2]
    steps = torch.arange(length, device=q.device)
    decay = decay_matrix(log_gamma, length).to(q.dtype)
    since_start = powers_of(log_gamma, steps + 1)[..., None]  # (H, T, 1)
    to_end = powers_of(log_gamma, length - 1 - steps)[..., None]  # (H, T, 1)
    inner = (q @ k.mT * decay) @ v  # (B, H, T, V)
    cross = (q * since_start.to(q.dtype)) @ state.to(q.dtype)  # (B, H, T, V)
    added = (k * to_end.to(k.dtype)).mT @ v  # (B, H, K, V)
    return inner + cross, state * since_start[:, -1:].to(state.dtype) + added.to(state.dtype)


def recurrent(q: Tensor, k: Tensor, v: Tensor, log_gamma: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Recurrent form, eq. 6, one position after the other; shapes as in ``parallel``."""
    gamma = log_gamma.exp().to(state.dtype)[:, None, None]  # (H, 1, 1)
    outputs = []
    for q_n, k_n, v_n in zip(*(x.to(state.dtype).unbind(2) for x in (q, k, v)), strict=True):
        state = state * gamma + k_n[..., None] * v_n[:, :, None]  # (B, H, K, V)
        outputs.append((q_n[:, :, None] @ state).squeeze(2))  # (B, H, V)
    return torch.stack(outputs, dim=2).to(q.dtype), state


def recurrent_step_(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, state: Tensor) -> Tensor:
    """One step of eq. 6 that updates ``state`` (B, H, K, V) in place.

    q, k (B, H, K), v (B, H, V), gamma (H,) in the dtype of the state -> o (B, H, V) in that dtype.
    """
    q, k, v = q.to(state.dtype), k.to(state.dtype), v.to(state.dtype)
    state.mul_(gamma[:, None, None]).addcmul_(k[..., None], v[:, :, None])
    return (q[:, :, None] @ state).squeeze(2)


def chunkwise(
    q: Tensor, k: Tensor, v: Tensor, log_gamma: Tensor, state: Tensor, chunk_size: int, decay: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Chunkwise form, eq. 7; shapes as in ``parallel``, any length.

    ``decay`` is ``decay_matrix`` of ``chunk_size`` or more positions, for callers that share it between layers. Fast
    where q, k and v are contiguous: batched products of strided matrices take four times as long.
    """
    length = q.shape[2]
    chunk_size = min(chunk_size, length)
    decay = (decay_matrix(log_gamma, chunk_size) if decay is None else decay).to(q.dtype)
    segment = SEGMENT_CHUNKS * chunk_size
    whole, rest = divmod(length - length % chunk_size, segment)
    sizes = [size for size in (*[segment] * whole, rest, length % chunk_size) if size]
    # Slices would each get a gradient of the whole length.
    segments = zip(*(x.split_with_sizes(sizes, dim=2) if len(sizes) > 1 else (x,) for x in (q, k, v)), strict=True)
    outputs = []
    for pieces in segments:
        size = min(chunk_size, pieces[0].shape[2])
        # Contiguous here, or each product keeps a copy of its own for the backward pass.
        q_s, k_s, v_s = (x.contiguous().view(*x.shape[:2], -1, size, x.shape[-1]) for x in pieces)
        out, state = _segment(q_s, k_s, v_s, log_gamma, state, decay[:, :size, :size])
        outputs.append(out)
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)), state


def _segment(q: Tensor, k: Tensor, v: Tensor, log_gamma: Tensor, state: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """Chunks at once, q, k, v (B, H, N, C, K or V): batched products within chunks, one product across them."""
    size = decay.shape[-1]  # C
    steps = torch.arange(size, device=q.device)
    since_start = powers_of(log_gamma, steps + 1)[:, None, :, None]  # (H, 1, C, 1)
    to_end = decay[:, -1, None, :, None]  # (H, 1, C, 1), gamma^(C-1-m)
    scores = (q @ k.mT).mul_(decay[:, None])  # (B, H, N, C, C)
    added = (k * to_end).mT @ v  # (B, H, N, K, V)
    before, state = _chunk_states(added, state, log_gamma * size)  # (B, H, N, K, V)
    out = (scores @ v).add_((q * since_start.to(q.dtype)) @ before)  # (B, H, N, C, V)
    return out.flatten(2, 3), state


def _chunk_states(added: Tensor, state: Tensor, log_chunk_decay: Tensor) -> tuple[Tensor, Tensor]:
    """From what each chunk adds (B, H, N, K, V): the states before each, in that dtype, and the state after the last.

    Between segments the state stays in its own dtype; within one each contribution is rounded once.
    """
    n_chunks = added.shape[2]
    if n_chunks == 1:  # as below, without its copies: a short text after a long one moves little but states
        decay = log_chunk_decay.exp()[:, None, None]  # (H, 1, 1)
        return state[:, :, None].to(added.dtype), state * decay.to(state.dtype) + added[:, :, 0].to(state.dtype)
    weights = decay_matrix(log_chunk_decay, n_chunks + 1)  # (H, N + 1, N + 1)
    chunks = torch.cat((state[:, :, None].to(added.dtype), added[:, :, :-1]), dim=2)  # (B, H, N, K, V)
    before = (weights[:, :-1, :-1].to(added.dtype) @ chunks.flatten(3)).view_as(added)  # (B, H, N, K, V)
    sum_added = weights[:, -1:, 1:].to(added.dtype) @ added.flatten(3)  # (B, H, 1, K V)
    kept = state * weights[:, -1, 0, None, None].to(state.dtype)  # (B, H, K, V)
    return before, kept + sum_added.view_as(state)
