"""The workloads, one file each, run in a cell's child: ``measure(model, task)`` yields parts of a record."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from retbench.devices import Device
from retbench.spec import Cell
from retbench.timing import Deadline

Part = dict[str, Any]
Parts = Iterator[Part]

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISION = 0.02  # repeats end when the interval of the median is within 2 %


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
