"""torch.compile for the segments of a prefill and the blocks of training: opt-in, since it takes half a minute."""

# B batch, T positions, D model dim

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models import language_model
from models.language_model import LanguageModel


class WholeSegments:
    """Calls compiled code for x of one whole segment, (B, SEGMENT, D) without gradients, else the plain code.

    One shape means one compilation, whatever the length of the prompt.
    """

    def __init__(self, plain: Callable[..., Any]) -> None:
        self._plain, self._compiled = plain, torch.compile(plain, dynamic=False)

    def __call__(self, x: Tensor, *others: object) -> Any:
        whole = x.ndim == 3 and x.shape[1] == language_model.SEGMENT and not torch.is_grad_enabled()
        return (self._compiled if whole else self._plain)(x, *others)


def compile_prefill(model: LanguageModel, batch_size: int) -> str | None:
    """Compiles what a prefill of ``batch_size`` prompts runs by segments; why not, or None where it is done."""
    parts = [(part, name) for block in model.blocks for part, name in block.compiled_parts()]
    for part, name in parts:
        setattr(part, name, WholeSegments(getattr(part, name)))
    device = model.embedding.weight.device
    try:
        model.prefill(torch.zeros(batch_size, language_model.SEGMENT, dtype=torch.int64, device=device))
    except Exception as error:  # noqa: BLE001 - a compiler fails in ways of its own, and the plain code is still there
        for part, name in parts:
            delattr(part, name)  # uncovers the class's own
        return _refusal(error)
    return None


def compile_blocks(model: LanguageModel, batch_size: int, seq_len: int) -> str | None:
    """Compiles every block for training on tokens (batch_size, seq_len + 1); why not, or None where it is done."""
    for block in model.blocks:
        block.compile(dynamic=False)
    device = model.embedding.weight.device
    try:
        model.loss(torch.zeros(batch_size, seq_len + 1, dtype=torch.int64, device=device)).backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # noqa: BLE001 - a compiler fails in ways of its own, and the plain code is still there
        for block in model.blocks:
            block._compiled_call_impl = None
        return _refusal(error)
    finally:
        model.zero_grad(set_to_none=True)
    return None


def _refusal(error: Exception) -> str:
    """Forgets what was compiled of something that failed, and says why."""
    torch.compiler.reset()
    return f"torch.compile does not work here: {type(error).__name__}: {_cause(error)}"


def _cause(error: Exception) -> str:
    """The first two lines that say something: torch's own first one only names the backend that failed."""
    return " ".join([line.strip() for line in str(error).splitlines() if line.strip()][:2])
