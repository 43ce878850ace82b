"""The workloads, one file each, run in a cell's child: ``measure(model, task)`` yields parts of a record."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models import configure
from models.config import Config
from models.language_model import LanguageModel, State
from retbench.devices import Device
from retbench.spec import Cell
from retbench.timing import Deadline

Part = dict[str, Any]
Parts = Iterator[Part]

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISION = 0.02  # repeats end when the interval of the median is within 2 %


class Model(Protocol):
    """What is measured: a language model of ours, or of a peer behind the same methods."""

    @property
    def config(self) -> Config: ...

    @property
    def backend(self) -> str: ...

    @property
    def decode_form(self) -> str: ...

    @property
    def decode_backend(self) -> str: ...

    @property
    def notes(self) -> Mapping[str, object]:
        """What the record says about how it computes."""

    def prefill(self, tokens: Tensor) -> tuple[Tensor, State | None]:
        """(B, T) int64 -> logits of the last position (B, V), and the state after it where there is one."""

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        """(B,) int64 -> logits (B, V) and the state, updated."""

    def init_state(self, batch_size: int, max_seq_len: int) -> State: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def weights_bytes(self) -> int: ...

    def step_weights_bytes(self) -> int: ...


@dataclass
class Task:
    """A cell, the device it runs on, when to end, and what the plan predicted for it."""

    cell: Cell
    device: Device
    deadline: Deadline
    predicted: dict[str, int]
    prefill_s: float = 0.0  # what the plan sets apart for one prefill
    skip_prefill: str | None = None  # or why it has no time for it
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.cell.seed)

    def tokens(self, vocab_size: int, *shape: int) -> Tensor:
        """Fresh random token ids, different at every call."""
        return torch.randint(vocab_size, shape, generator=self.generator, device="cpu").to(self.cell.device)


def config_of(cell: Cell) -> Config:
    """What shapes the model of a cell; ValueError where the options contradict each other or the checkpoint is bad."""
    if cell.checkpoint is not None:
        from models.checkpoint import read_config  # late: where a peer is measured there may be no safetensors

        return replace(read_config(cell.checkpoint), **cell.overrides)  # type: ignore[arg-type]
    return configure(cell.system, cell.size, **cell.overrides)


def backend_of(model: Model) -> str:
    """What computes the mixer, with ``native`` before it where the step is native code."""
    return f"native+{model.backend}" if model.decode_backend == "native" else model.backend


def forward_backward(model: LanguageModel, tokens: Tensor) -> None:
    """Forward and backward of the next-token loss over tokens (B, T + 1); the gradients are dropped after it."""
    model.loss(tokens).backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
