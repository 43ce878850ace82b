"""What to measure: a cell is one system at one size, length and batch, under one set of conditions."""

from dataclasses import dataclass
from typing import Literal

Dtype = Literal["fp32", "bf16", "fp16"]
Quantize = Literal["none", "int8"]


@dataclass(frozen=True)
class Cell:
    """One measurement. ``backend`` and ``form`` are "auto" in a request and what was used in a record."""

    system: str
    size: str
    workload: str
    seq_len: int
    batch_size: int
    dtype: Dtype
    device: str
    threads: int
    backend: str = "auto"
    form: str = "auto"
    seed: int = 0
    mem_limit_bytes: int | None = None
    checkpoint: str | None = None  # the folder whose weights are measured, instead of fresh ones
    weights: str | None = None  # what identifies them
    quantize: Quantize = "none"  # int8: weight-only, after the model was built or loaded
    compile: bool = False  # whole segments of a prefill by torch.compile
    n_layers: int | None = None  # where they differ from the size's and the config's
    vocab_size: int | None = None
    task: str | None = None  # of an evaluation: its name, shots, and documents where not all are taken
    num_fewshot: int | None = None
    limit: int | None = None

    @property
    def overrides(self) -> dict[str, int]:
        """Fields of the model's config that the cell sets beside its size."""
        fields = {"n_layers": self.n_layers, "vocab_size": self.vocab_size}
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def label(self) -> str:
        weights = "" if self.quantize == "none" else f" {self.quantize}"
        compiled = " compiled" if self.compile else ""
        return f"{self.system} {self.size}{weights}{compiled}, batch {self.batch_size}, length {self.seq_len}"
