"""What a peer's file makes of another project's model: the methods that a measurement asks of ours."""

# B batch, T positions, V vocabulary

from importlib import metadata
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.config import Config
from models.language_model import State


class PeerModel(nn.Module):
    """Another project's model, ``theirs``, of the shape that our config says, still without weights."""

    layout: ClassVar[str]  # of ``models.layouts``: what the project calls our tensors
    distribution: ClassVar[str]  # what is installed
    prefill_form: ClassVar[str]  # how a prompt is read, for the record

    def __init__(self, row: str, config: Config) -> None:
        super().__init__()
        self.row = row
        self.config = config
        self.theirs: Any = self.make().eval()
        self.notes: dict[str, object] = {}  # for the record

    @property
    def backend(self) -> str:
        """The project and its version, for the record."""
        return f"{self.distribution} {metadata.version(self.distribution)}"

    @property
    def decode_form(self) -> str:
        """How a step is computed, for the record."""
        return "recurrent"

    @property
    def decode_backend(self) -> str:
        """What computes a step: never native code of ours."""
        return "torch"

    def make(self) -> nn.Module:
        """The project's model of this config: its weights on the meta device, what it computes itself in place."""
        raise NotImplementedError

    @property
    def embedding(self) -> nn.Embedding:
        """Of the tokens that are read."""
        raise NotImplementedError

    def prefill(self, tokens: Tensor) -> tuple[Tensor, State | None]:
        """(B, T) int64 -> logits of the last position (B, V), and the state after it where the project makes one."""
        raise NotImplementedError

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        """(B,) int64 -> logits (B, V) and the state, updated."""
        raise NotImplementedError

    def init_state(self, batch_size: int, max_seq_len: int) -> State:
        """An empty state for at most ``max_seq_len`` tokens."""
        raise NotImplementedError

    def set_norm_eps(self, eps: float) -> None:
        """Sets the epsilon of every norm."""
        raise NotImplementedError

    def cast(self, dtype: torch.dtype) -> None:
        """Casts the weights as the project's users do."""
        self.theirs.to(dtype)

    def weights_bytes(self) -> int:
        """Bytes of all parameters and buffers."""
        return sum(tensor.nbytes for tensor in (*self.parameters(), *self.buffers()))

    def step_weights_bytes(self) -> int:
        """Bytes of weights that a decode step must read: all but the input embedding."""
        return self.weights_bytes() - self.embedding.weight.nbytes
