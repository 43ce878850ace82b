"""What to measure: a cell is one system at one size, length and batch, under one set of conditions."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self

MAX_SEQ_LEN = 2**20
MAX_BATCH_SIZE = 2**16

Dtype = Literal["fp32", "bf16", "fp16"]
Quantize = Literal["none", "int8"]
Checkpointing = Literal["none", "block"]
Loss = Literal["plain", "chunked"]
Schedule = Literal["linear", "cosine"]


@dataclass(frozen=True)
class Training:
    """How an optimizer step is made. It reads grad_accumulation micro-batches, each of the batch of the cell."""

    checkpointing: Checkpointing = "none"  # block: keeps the input of each block and computes the rest again
    grad_accumulation: int = 1
    loss: Loss = "plain"  # chunked: never holds the logits of all positions
    tensor_parallel: int = 1  # processes that share each layer
    data_parallel: int = 1  # processes that read batches of their own
    fsdp: bool = False  # whether these share weights, gradients and optimizer state

    @property
    def ranks(self) -> int:
        """The processes that make a step together."""
        return self.tensor_parallel * self.data_parallel

    @property
    def words(self) -> str:
        """What differs from the plain step, empty where nothing does."""
        words = {
            "checkpointed blocks": self.checkpointing == "block",
            f"{self.grad_accumulation} micro-batches": self.grad_accumulation > 1,
            "chunked loss": self.loss == "chunked",
            f"tensor parallel {self.tensor_parallel}": self.tensor_parallel > 1,
            f"data parallel {self.data_parallel}": self.data_parallel > 1,
            "fsdp": self.fsdp,
        }
        return ", ".join(text for text, holds in words.items() if holds)


@dataclass(frozen=True)
class Learning:
    """What a model is trained on from scratch, how, and what it is scored on: all that decides its losses."""

    corpus: str  # as typed; its train split is read, its held-out split scored
    tokenizer: str
    tokens: int  # trained on
    learning_rate: float  # the highest
    warm_up: int  # steps
    schedule: Schedule
    others: tuple[str, ...]  # corpora that are only scored
    excerpt: int  # tokens of each document that are scored, from its start
    contexts: tuple[int, ...]  # of Table 8's protocol
    data: tuple[str, ...]  # a hash of the texts of the corpus and of each of the others
    vocabulary: str  # a hash of what the tokenizer does
    distinct_tokens: int | None = None  # that are read again and again; None: all of the train split
    documents: int | None = None  # of a corpus that are scored; None, in old records: of others too the held-out ones


@dataclass(frozen=True)
class Recall:
    """How a model is trained on sequences of key-value pairs and queries: all that decides what it recalls."""

    pairs: tuple[int, ...]  # of a sequence: a step has sequences of one of these numbers, in turn
    tokens: int  # trained on
    step_tokens: int
    learning_rate: float  # the highest
    warm_up_share: float  # of the steps

    @property
    def steps(self) -> int:
        return -(-self.tokens // self.step_tokens)


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
    chunk_size: int | None = None
    training: Training | None = None  # of an optimizer step
    task: str | None = None  # of an evaluation: its name, shots, and documents where not all are taken
    num_fewshot: int | None = None
    limit: int | None = None
    l_max: int | None = None  # of a Hyena: the longest text that it can read, which its filters depend on
    learning: Learning | None = None  # of a model that is trained from scratch
    recall: Recall | None = None  # of one that is trained on generated pairs

    @property
    def overrides(self) -> dict[str, int]:
        """Fields of the model's config that the cell sets beside its size."""
        values = {
            "n_layers": self.n_layers,
            "vocab_size": self.vocab_size,
            "chunk_size": self.chunk_size,
            "l_max": self.l_max,
        }
        return {name: value for name, value in values.items() if value is not None}

    @property
    def setting(self) -> Self:
        """What cells that are compared with each other share: all but the system and what comes with it."""
        return replace(self.requested, system="", chunk_size=None)

    @property
    def requested(self) -> Self:
        """The cell without what was chosen when it ran."""
        return replace(self, backend="auto", form="auto")

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold, for requests, records and keys; fields that came later are left out where not set."""
        return {name: value for name, value in asdict(self).items() if name not in _LATER or value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The cell of ``to_dict``, of an older version too; what is unknown is ignored."""
        known = {field.name: data[field.name] for field in fields(cls) if field.name in data}
        if known.get("training") is not None:
            known["training"] = Training(**known["training"])
        if known.get("learning") is not None:
            lists = ("others", "contexts", "data")
            known["learning"] = Learning(
                **{**known["learning"], **{name: tuple(known["learning"][name]) for name in lists}}
            )
        if known.get("recall") is not None:
            known["recall"] = Recall(**{**known["recall"], "pairs": tuple(known["recall"]["pairs"])})
        return cls(**known)

    @property
    def label(self) -> str:
        weights = "" if self.quantize == "none" else f" {self.quantize}"
        compiled = " compiled" if self.compile else ""
        chunk = "" if self.chunk_size is None else f" chunk {self.chunk_size}"
        training = "" if self.training is None else self.training.words
        shape = f"batch {self.batch_size}, length {self.seq_len}"
        seed = "" if self.learning is None and self.recall is None else f", seed {self.seed}"
        return f"{self.system} {self.size}{weights}{compiled}{chunk}, {shape}{training and f', {training}'}{seed}"


_LATER = (
    "chunk_size",
    "training",
    "task",
    "num_fewshot",
    "limit",
    "l_max",
    "learning",
    "recall",
)  # fields that keys and records of before do not have
