"""Whether the forms of a model compute the same: logits of each in float64, beside those of the parallel form."""

# B batch, T positions, V vocabulary

from typing import cast

import torch
from torch import Tensor

from models.language_model import LanguageModel
from models.retnet import Form, RetNet
from retbench.measure import Parts, Task

REFERENCE: Form = "parallel"
OTHERS: tuple[Form, ...] = ("recurrent", "chunkwise")


def measure(model: LanguageModel, task: Task) -> Parts:
    """Yields the largest difference of each form's logits from the parallel form's, over their standard deviation."""
    net = cast(RetNet, model).double()
    tokens = task.tokens(net.config.vocab_size, task.cell.batch_size, task.cell.seq_len)  # (B, T)
    reference = _logits(net, tokens, REFERENCE)  # (B, T, V)
    for form in OTHERS:
        error = (_logits(net, tokens, form) - reference).abs().max() / reference.std()
        yield {"metrics": {f"{form}_error": float(error)}}


@torch.no_grad()
def _logits(net: RetNet, tokens: Tensor, form: Form) -> Tensor:
    """(B, T) -> (B, T, V)"""
    net.form = form
    return cast(Tensor, net(tokens))
