"""AdamW that keeps float32 master weights for parameters of fewer bits."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

BETAS, WEIGHT_DECAY = (0.9, 0.98), 0.01  # the paper's, Table 7


class MasterAdamW:
    """Fused AdamW, in place and without scratch memory.

    A parameter of fewer than 32 bits is the rounded copy of a master weight that lives here; so does its gradient, in
    float32, which micro-batches add to. Bytes a parameter: bf16 2, its gradient 2 and collected 4, optimizer 12 (a
    master, two moments); fp32 4, its gradient 4, optimizer 8.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> None:
        self._parameters = list(parameters)
        small = [parameter for parameter in self._parameters if parameter.itemsize < torch.float32.itemsize]
        self._masters = [(parameter, nn.Parameter(parameter.detach().float())) for parameter in small]
        plain = [parameter for parameter in self._parameters if parameter.itemsize >= torch.float32.itemsize]
        updated = [*plain, *(master for _, master in self._masters)]
        self._adamw = torch.optim.AdamW(updated, lr=learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)

    def collect_gradients(self) -> None:
        """Adds gradients of fewer bits to those of the master weights and drops them; again, it does nothing."""
        for parameter, master in self._masters:
            if parameter.grad is not None:
                if master.grad is None:
                    master.grad = parameter.grad.float()
                else:
                    master.grad += parameter.grad
                parameter.grad = None

    def step(self) -> None:
        """Updates all weights and drops the gradients."""
        self.collect_gradients()
        self._adamw.step()
        with torch.no_grad():
            for parameter, master in self._masters:
                parameter.copy_(master)
        self._adamw.zero_grad(set_to_none=True)

    def gradients(self) -> list[Tensor]:
        """Those that a step would read now, to be clipped or looked at."""
        self.collect_gradients()
        return [w.grad for group in self._adamw.param_groups for w in group["params"] if w.grad is not None]

    def tensors(self) -> list[Tensor]:
        """What the optimizer keeps beside the model: master weights, moments and step counts; empty before a step."""
        state = [tensor for values in self._adamw.state.values() for tensor in values.values()]
        return [*(master for _, master in self._masters), *state]
