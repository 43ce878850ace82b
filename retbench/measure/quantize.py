"""Replaces a built model's weights as the cell asks for, and says what that does to its logits."""

import torch

from models.language_model import LanguageModel
from models.quantization import quantize_
from retbench.measure import Part, Task

LENGTH = 256  # random tokens
FROM = 128  # logits from here on are compared: before there is context, any rounding changes a fresh RetNet's a lot


@torch.inference_mode()
def quantize(model: LanguageModel, task: Task) -> Part:
    """Makes the weights int8 in place; the error is relative, root mean squares over the logits that are compared."""
    tokens = task.tokens(model.config.vocab_size, 1, LENGTH)
    before = model(tokens)[:, FROM:].float()  # (1, T, V)
    quantize_(model)
    error = (model(tokens)[:, FROM:].float() - before).norm() / before.norm()
    return {"metrics": {"logit_error": float(error)}}
