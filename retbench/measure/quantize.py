"""Replaces a built model's weights as the cell asks for, and says what that does to its logits."""

import torch

from models.language_model import LanguageModel
from models.quantization import quantize_
from retbench.measure import Part, Task

LENGTH = 64  # random tokens whose logits are compared


@torch.inference_mode()
def quantize(model: LanguageModel, task: Task) -> Part:
    """Makes the weights int8 in place; the error is relative: root mean squares over all logits of LENGTH tokens."""
    tokens = task.tokens(model.config.vocab_size, 1, LENGTH)
    before = model(tokens).float()  # (1, T, V)
    quantize_(model)
    error = (model(tokens).float() - before).norm() / before.norm()
    return {"metrics": {"logit_error": float(error)}}
