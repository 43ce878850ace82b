"""The loss of the next token, plain or in chunks of positions that never hold the logits of all of them."""

# N positions of a batch, C of a chunk, D model dim, V vocabulary

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOSS_CHUNK = 512  # positions; their logits take 64 MB a float32 copy at a vocabulary of 32000


def plain_loss(hidden: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    """hidden (N, D), head (D -> V), targets (N,) int64 -> the mean cross-entropy, a scalar in float32 at least."""
    return _summed(head(hidden), targets) / len(targets)


def chunked_loss(hidden: Tensor, head: nn.Module, targets: Tensor, chunk: int = LOSS_CHUNK) -> Tensor:
    """``plain_loss`` from the logits of ``chunk`` positions at a time, for a head with no parameter but its weight.

    The gradients are computed with the loss, while a chunk's logits are there, so nothing is computed twice.
    """
    if chunk < 1:
        raise ValueError(f"a chunk has at least one position, not {chunk}")
    if not torch.is_grad_enabled():
        pieces = zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True)
        return torch.stack([_summed(head(piece), wanted) for piece, wanted in pieces]).sum() / len(targets)
    loss: Tensor = _Chunked.apply(hidden, head.weight, head, targets, chunk)  # type: ignore[no-untyped-call]
    return loss


class _Chunked(torch.autograd.Function):
    """hidden (N, D), weight (V, D) -> the mean over chunks of the loss, with both gradients ready for backward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, head: nn.Module, targets: Tensor, chunk: int) -> Tensor:
        total = hidden.new_zeros((), dtype=_exact(hidden.dtype))
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight, dtype=_exact(weight.dtype))
        for first in range(0, len(targets), chunk):
            rows = slice(first, first + chunk)
            piece = hidden[rows].detach().requires_grad_()  # (C, D)
            with torch.enable_grad():
                loss = _summed(head(piece), targets[rows]) / len(targets)
            of_hidden[rows], more = torch.autograd.grad(loss, (piece, weight))
            of_weight += more
            total += loss.detach()
        ctx.gradients = of_hidden, of_weight.to(weight.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Scales the gradients in place, once: a second backward raises TypeError."""
        of_hidden, of_weight = cast(tuple[Tensor, Tensor], ctx.gradients)
        ctx.gradients = None
        return of_hidden.mul_(gradients[0]), of_weight.mul_(gradients[0]), None, None, None


def _summed(logits: Tensor, targets: Tensor) -> Tensor:
    """logits (N, V) -> the sum of cross-entropies, in float32 at least."""
    return F.cross_entropy(logits.to(_exact(logits.dtype)), targets, reduction="sum")


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
