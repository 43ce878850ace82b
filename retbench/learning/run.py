"""A training run: what was asked for, its learning rate at every step, and the files of its folder."""

import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from retbench.environment import NOT_IDENTIFYING
from retbench.errors import UsageError
from retbench.locks import lock, try_lock
from retbench.spec import Cell, Checkpointing, Dtype, Loss, Schedule, Training

if TYPE_CHECKING:
    from retbench.learning.batches import Batches
    from retbench.learning.token_files import Ids, Tokens
    from retbench.learning.vocabulary import Vocabulary

ORDERS = {"unigram": 1, "5-gram": 5}  # n-grams that a model must beat before its loss means anything
MOST_COUNTED = 2**23  # tokens that these are counted in: a gigabyte of memory meanwhile
REQUEST, METRICS, RESULT = "run.json", "metrics.jsonl", "result.json"  # in the folder of a run
LOCK = ".lock"  # there, held by the process that trains
CHECKPOINT = "step-"  # and the steps made
SHARING = ("data_parallel", "fsdp")  # fields that may change when a run goes on
SAVES, MOST_UNSAVED = 10, 500  # checkpoints of a run that a cell asks for, and the steps between two at most


@dataclass(frozen=True)
class Run:
    """Everything that decides the losses of a run on one machine, and how often it is saved.

    How ranks share it changes the losses by rounding alone: together they read the sequences of one process.
    """

    system: str
    size: str
    corpus: str
    tokenizer: str
    tokens: int  # to train on; the last step is a whole one
    seq_len: int
    batch_size: int  # sequences of a micro-batch, shared out over the ranks
    grad_accumulation: int
    learning_rate: float  # the highest
    warm_up: int  # steps
    schedule: Schedule
    loss: Loss
    dtype: Dtype
    device: str
    threads: int  # of all ranks on this machine
    seed: int
    save_every: int  # steps
    keep: int  # checkpoints
    data_parallel: int = 1  # ranks
    fsdp: bool = False  # whether they share weights, gradients and optimizer state out
    checkpointing: Checkpointing = "none"
    distinct_tokens: int | None = None  # that an epoch has at most, in whole sequences
    overrides: dict[str, int] = field(default_factory=dict)  # fields of the model's config beside its size

    @classmethod
    def of_cell(cls, cell: Cell) -> Self:
        """The run of a cell that is trained from scratch, saved ten times, often enough to lose little."""
        learning, training = cell.learning, cell.training or Training()
        if learning is None:
            raise ValueError(f"{cell.label} is not to be trained from scratch")
        steps = -(-learning.tokens // (cell.seq_len * cell.batch_size * training.grad_accumulation))
        return cls(
            system=cell.system,
            size=cell.size,
            corpus=learning.corpus,
            tokenizer=learning.tokenizer,
            tokens=learning.tokens,
            seq_len=cell.seq_len,
            batch_size=cell.batch_size,
            grad_accumulation=training.grad_accumulation,
            learning_rate=learning.learning_rate,
            warm_up=learning.warm_up,
            schedule=learning.schedule,
            loss=training.loss,
            dtype=cell.dtype,
            device=cell.device,
            threads=cell.threads,
            seed=cell.seed,
            save_every=max(1, min(steps // SAVES, MOST_UNSAVED)),
            keep=1,
            checkpointing=training.checkpointing,
            distinct_tokens=learning.distinct_tokens,
            overrides={name: value for name, value in cell.overrides.items() if name != "vocab_size"},
        )

    def batches(self, ids: "Ids") -> "Batches":
        """The sequences of every step; raises UsageError where there are too few tokens for one."""
        from retbench.learning.batches import Batches  # it loads numpy

        distinct = self.distinct_tokens and max(1, self.distinct_tokens // self.seq_len)
        return Batches(ids, self.seq_len, self.batch_size * self.grad_accumulation, self.seed, distinct)

    @property
    def step_tokens(self) -> int:
        return self.seq_len * self.batch_size * self.grad_accumulation

    @property
    def steps(self) -> int:
        return -(-self.tokens // self.step_tokens)

    @property
    def rank_threads(self) -> int:
        return max(1, self.threads // self.data_parallel)

    @property
    def training(self) -> Training:
        """How its optimizer steps are made."""
        return Training(
            checkpointing=self.checkpointing,
            grad_accumulation=self.grad_accumulation,
            loss=self.loss,
            data_parallel=self.data_parallel,
            fsdp=self.fsdp,
        )

    def learning_rate_at(self, step: int) -> float:
        return rate_at(step, self.learning_rate, self.warm_up, self.steps, self.schedule)

    def differences(self, other: Self) -> str:
        """The fields that differ, in words, but for ``SHARING``: ``seed 0, not 1``."""
        pairs = zip(asdict(self).items(), asdict(other).values(), strict=True)
        found = [(name, mine, theirs) for (name, mine), theirs in pairs if mine != theirs and name not in SHARING]
        return ", ".join(f"{name} {mine}, not {theirs}" for name, mine, theirs in found)


def rate_at(step: int, highest: float, warm_up: int, steps: int, schedule: Schedule) -> float:
    """The learning rate: rises over the first ``warm_up`` steps, then falls to nothing, as a line or half a cosine."""
    if step < warm_up:
        return highest * (step + 1) / (warm_up + 1)
    left = (steps - step) / (steps - warm_up)
    return highest * (left if schedule == "linear" else (1 - math.cos(math.pi * left)) / 2)


class TakenError(UsageError):
    """Another process is training the run of a folder."""


@contextmanager
def claimed(folder: Path, waits: Callable[[], None] | None = None) -> Iterator[None]:
    """The folder of a run, for this process alone until it leaves or ends, however it does.

    Where another process has it: TakenError or, with ``waits``, which is told so, as soon as that one has done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("ab") as file:
        if not try_lock(file):
            if waits is None:
                raise TakenError(f"{folder}: another process is training this run")
            waits()
            lock(file)
        yield


def clear(folder: Path) -> None:
    """Deletes the run of a folder that is claimed; the lock stays, since others may wait for it."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first; those that are being written or deleted have other names."""
    return sorted(folder.glob(f"{CHECKPOINT}*"), key=lambda path: int(path.name.removeprefix(CHECKPOINT)))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """On disk whole or as it was before."""
    text, new = json.dumps(value, indent=2) + "\n", path.with_name(f".{path.name}")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def lay_out(
    run: Run,
    folder: Path,
    vocabulary: "Vocabulary",
    tokens: "Tokens",
    environment: Mapping[str, Any],
    stored: Mapping[str, Any] | None = None,
) -> None:
    """Writes what the loop reads to the folder of a run; what was ``stored`` there stays, but for where tokens are.

    A run that goes on under another environment keeps this one beside the first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary.save(folder)
    request = {
        "schema_version": 1,
        "data": tokens.header.data,
        "tokenizer": tokens.header.tokenizer,
        "vocab_size": tokens.header.vocab_size,
        "environment": environment,
    }
    kept = dict(stored or request)
    if changes(last_environment(kept), environment):
        kept["later_environments"] = [*kept.get("later_environments", []), environment]
    write_json(folder / REQUEST, {**kept, "run": asdict(run), "tokens": str(tokens.folder.resolve())})


def last_environment(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a run's, the one that it was last started under."""
    found: Mapping[str, Any] = [stored["environment"], *stored.get("later_environments", [])][-1]
    return found


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What of two environments differs that may change losses: hardware, versions, variables, code."""
    free = {*NOT_IDENTIFYING, "fingerprint"} - {"code"}
    return [name for name in after if name not in free and before.get(name) != after[name]]


def read_metrics(folder: Path) -> Iterator[dict[str, Any]]:
    """What each step logged; a line that was cut off ends it."""
    path = folder / METRICS
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


def keep_metrics(folder: Path, steps: int) -> None:
    """Drops what was logged after ``steps`` steps: these will be made again."""
    kept = [json.dumps(line) + "\n" for line in read_metrics(folder) if line["step"] <= steps]
    new = folder / f".{METRICS}"
    new.write_text("".join(kept), encoding="utf-8")
    new.replace(folder / METRICS)


def read_result(folder: Path) -> dict[str, Any]:
    """How the run of a folder ended and what it gave; empty where it has not, or where that is damaged: it goes on."""
    try:
        found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def keep_result(folder: Path, request: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """Puts on disk how a run ended and what was asked for -> both."""
    kept = {"schema_version": 1, "reason": None, **result, **request}
    write_json(folder / RESULT, kept)
    return kept


def said(folder: Path, result: Mapping[str, Any]) -> int:
    """Says how a run has ended -> the exit status: 0 done, 1 failed, 130 interrupted."""
    if result["status"] == "ok":
        print(outcome(folder, result))
        return 0
    if result["status"] == "interrupted":
        print(f"retbench: interrupted after step {result['step']}; --resume goes on from there", file=sys.stderr)
        return 130
    print(f"retbench: {result['status']}, {result['reason']}", file=sys.stderr)
    return 1


def outcome(folder: Path, result: Mapping[str, Any]) -> str:
    """A finished run in words."""
    held_out = result["held_out"]
    baselines = ", ".join(f"{name} {perplexity:.2f}" for name, perplexity in result["baselines"].items())
    return (
        f"held-out perplexity {held_out['perplexity']:.2f} ({baselines}), {held_out['bits_per_byte']:.3f} bits a byte,"
        f" {held_out['tokens']} tokens of {held_out['documents']} documents; checkpoint {checkpoints(folder)[-1]}"
    )
