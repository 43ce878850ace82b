"""AdamW that keeps float32 master weights for parameters of fewer bits."""

from collections.abc import Iterable, Mapping
from itertools import groupby

import torch
from torch import Tensor, nn

from models.native.adamw import adamw_, is_native
from models.parallel import local, split_as, whole

BETAS, WEIGHT_DECAY = (0.9, 0.98), 0.01  # the paper's, Table 7


class MasterAdamW:
    """Fused AdamW, in place and without scratch memory.

    A parameter of fewer than 32 bits is the rounded copy of a master weight that lives here. Native code updates both
    from its gradient where it can; elsewhere, and where micro-batches add to it or it is looked at, the gradient is
    collected in float32. Bytes a parameter: bf16 2, its gradient 2 and, collected, 4, optimizer 12 (a master, two
    moments); fp32 4, its gradient 4, optimizer 8.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> None:
        self._parameters = list(parameters)
        small = [parameter for parameter in self._parameters if parameter.itemsize < torch.float32.itemsize]
        self._masters = [(parameter, nn.Parameter(parameter.detach().float())) for parameter in small]
        plain = [parameter for parameter in self._parameters if parameter.itemsize >= torch.float32.itemsize]
        self._updated = [*plain, *(master for _, master in self._masters)]
        # A DTensor and a plain tensor cannot pass through one fused operator.
        groups = [{"params": [*same]} for _, same in groupby(sorted(self._updated, key=_kind), key=_kind)]
        self._adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True)

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
        for parameter, master in self._masters:
            if master.grad is None and is_native(parameter):
                self._update_natively(parameter, master)
        self.collect_gradients()
        self._adamw.step()
        with torch.no_grad():
            for parameter, master in self._masters:
                if master.grad is not None:
                    parameter.copy_(master)
        self._adamw.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _update_natively(self, parameter: nn.Parameter, master: nn.Parameter) -> None:
        state, group = self._adamw.state[master], self._adamw.param_groups[0]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=master.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(master), torch.zeros_like(master)
        how = (group["lr"], *group["betas"], group["eps"], group["weight_decay"])
        adamw_(parameter.grad, parameter, master, state["exp_avg"], state["exp_avg_sq"], state["step"], *how)
        parameter.grad = None

    def gradients(self) -> list[Tensor]:
        """Those that a step would read now, to be clipped or looked at."""
        self.collect_gradients()
        return [w.grad for group in self._adamw.param_groups for w in group["params"] if w.grad is not None]

    @property
    def learning_rate(self) -> float:
        return float(self._adamw.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        for group in self._adamw.param_groups:
            group["lr"] = rate

    def clip(self, most: float) -> Tensor:
        """Scales the gradients, all ranks' parts, down to a norm of at most ``most`` -> their norm before, a scalar."""
        gradients = self.gradients()
        norms = [whole(torch.linalg.vector_norm(gradient)) for gradient in gradients]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        if norm > most:
            torch._foreach_mul_([local(gradient) for gradient in gradients], most / norm)
        return norm

    def state(self) -> dict[str, Tensor]:
        """``tensors`` by name, for a checkpoint; the names do not depend on what is split between ranks."""
        masters = {f"master.{index}": master.detach() for index, (_, master) in enumerate(self._masters)}
        kept = [self._adamw.state.get(weight, {}) for weight in self._updated]
        return masters | {f"{name}.{index}": x for index, state in enumerate(kept) for name, x in state.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from what ``state`` returned, whole; ranks take their parts."""
        for key, tensor in state.items():
            name, _, index = key.rpartition(".")
            if name == "master":
                master = self._masters[int(index)][1]
                master.data.copy_(split_as(tensor, master))
            else:
                weight = self._updated[int(index)]
                here = tensor.to(weight.device)
                self._adamw.state[weight][name] = split_as(here, weight) if here.shape == weight.shape else here

    def tensors(self) -> list[Tensor]:
        """What the optimizer keeps beside the model: master weights, moments and step counts; empty before a step."""
        state = [tensor for values in self._adamw.state.values() for tensor in values.values()]
        return [*(master for _, master in self._masters), *state]


def _kind(parameter: Tensor) -> str:
    return type(parameter).__name__
