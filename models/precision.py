"""Modules whose parameters stay float32 in a bf16 or fp16 model: decays, frequencies, long filters."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.language_model import state_dtype


class Float32Module(nn.Module):
    """No cast of the model makes its parameters, or its submodules', smaller than float32; float64 they follow.

    Make them in ``parameter_dtype()``, which a default dtype of bf16 does not change either.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """What ``to``, ``half``, ``bfloat16``, ``cuda`` and the like call with what they do to one tensor."""

        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if not moved.is_floating_point() or moved.itemsize >= torch.float32.itemsize:
                return moved
            return tensor.to(moved.device, state_dtype(moved.dtype))

        module: nn.Module = super()._apply(keep, recurse)  # type: ignore[no-untyped-call]
        return module


def parameter_dtype() -> torch.dtype:
    """float64 where that is torch's default, else float32."""
    return state_dtype(torch.get_default_dtype())
