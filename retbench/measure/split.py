"""What the memory of an optimizer step is made of at its peak: every storage gets a kind, by where it was made."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, get_args

from torch import Tensor, nn

from models.parallel import local
from retbench.measure.ledger import Ledger

if TYPE_CHECKING:
    from retbench.measure.train_step import Trainer

Kind = Literal["gradients", "activations", "logits"]


class KindsOfBytes(Ledger):  # type: ignore[no-untyped-call]
    """Keeps a log of storages, each with the ``kind`` that was set when it was made, until it is told another."""

    def __init__(self, outside: Iterable[Tensor]) -> None:
        super().__init__(outside)
        self.kind: Kind = "activations"
        self._kinds: list[Kind] = []  # of each storage in the order that they were made
        self._places: dict[int, int] = {}  # address -> place in that order of the storage that is there now
        self._log: list[tuple[int, int]] = []  # place, bytes more: negative when it was freed

    def mark(self, tensor: Tensor, kind: Kind) -> None:
        """Says of a storage that is still there what it is, and was from the start."""
        self._kinds[self._places[local(tensor).untyped_storage()._cdata]] = kind

    def peak_kinds(self) -> dict[Kind, int]:
        """Bytes of each kind when most bytes were there together, in all the ``peak``."""
        live, now, most = Counter[Kind](), 0, (0, Counter[Kind]())
        for place, nbytes in self._log:
            now += nbytes
            live[self._kinds[place]] += nbytes
            if now > most[0]:
                most = now, live.copy()
        return {kind: most[1][kind] for kind in get_args(Kind)}

    def most(self, *kinds: Kind) -> int:
        """Bytes of these kinds when most of them were there together, whatever else was."""
        now = most = 0
        for place, nbytes in self._log:
            now += nbytes if self._kinds[place] in kinds else 0
            most = max(most, now)
        return most

    def _change(self, address: int, nbytes: int) -> None:
        if address not in self._places:
            self._places[address] = len(self._kinds)
            self._kinds.append(self.kind)
        self._log.append((self._places[address], nbytes - self._sizes[address]))
        super()._change(address, nbytes)

    def _free(self, address: int) -> None:
        super()._free(address)
        del self._places[address]


def split_step(trainer: "Trainer", tokens: Tensor) -> KindsOfBytes:
    """Makes a step over tokens (A, B, T + 1), on real or fake tensors -> its storages, but for what is there always.

    logits: all that is made between the input of the head and the gradient of that input, the loss included.
    activations: all else of forward and backward, the tokens included, and what FSDP gathers. gradients: those of
    parameters, in any dtype, as far as this rank keeps them. Weights and what the optimizer keeps are there before and
    after; none of a step's own is, once the optimizer has made its state in a first step.
    """
    model = trainer.model
    outside = [*model.parameters(), *model.buffers(), *trainer.optimizer.tensors()]
    live = KindsOfBytes(map(local, outside))
    with live:
        live.hold([tokens])

        def head_begins(module: nn.Module, inputs: object, hidden: Tensor) -> None:
            live.kind = "logits"
            hidden.register_hook(head_ends)  # type: ignore[no-untyped-call]

        def head_ends(gradient: Tensor) -> None:
            live.kind = "activations"

        def accumulated(parameter: Tensor) -> None:
            if parameter.grad is not None:
                live.mark(parameter.grad, "gradients")

        hooks = [model.norm.register_forward_hook(head_begins)]
        for parameter in model.parameters():
            hooks.append(parameter.register_post_accumulate_grad_hook(accumulated))  # type: ignore[no-untyped-call]
        try:
            trainer.backward(tokens)
            for gradient in trainer.optimizer.gradients():
                live.mark(gradient, "gradients")
            trainer.update()
        finally:
            for hook in hooks:
                hook.remove()
    return live
