"""A suite of learning cells: each a system trained from scratch in a child of its own, scored, one record each.

A cell's folder below runs/ is named after all that decides its losses. A child that died is started again by the same
command and goes on from its last checkpoint; another experiment with the same cell finds it trained. Where it is being
trained, by a command in another terminal, the child waits for that.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from rich.console import Console

from retbench.devices import Device
from retbench.environment import capture, code_hash, sha256
from retbench.errors import UsageError
from retbench.isolate import Outcome, run_worker
from retbench.learning.material import Material
from retbench.learning.progress import SuiteProgress
from retbench.learning.run import Run, TakenError, claimed, clear, lay_out
from retbench.record import Record
from retbench.spec import Cell
from retbench.store import Store, latest, results_path

CODE = ("models/*.py", "retbench/learning/*.py", "retbench/measure/optimizer.py", "retbench/measure/train_step.py")
FOREVER_S = 30 * 24 * 3600.0  # a child is not known to hang, and a run may take days

Execute = Callable[..., Outcome]  # as run_worker
Event = dict[str, Any] | Outcome | BaseException  # what a child tells, how it ended, what went wrong on our side


@dataclass(frozen=True)
class Suite:
    """The cells of one experiment on one device, what they are trained on, and where folders and records go."""

    experiment: str
    cells: Sequence[Cell]
    device: Device
    material: Material | None  # None where nothing is read and a run is too short to be resumed
    out: Path
    jobs: int = 1  # cells that are trained side by side
    execute: Execute = run_worker
    environment: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "environment", capture(self.device, self.cells[0].threads))

    @property
    def store(self) -> Store:
        return Store(results_path(self.out, self.device.slug(), self.experiment))

    def key(self, cell: Cell) -> str:
        """What makes a run and its record reusable: the same cell, code that learns, and environment."""
        return sha256([cell.workload, cell.to_dict(), code_hash(patterns=CODE), self.environment["fingerprint"]])

    def folder(self, cell: Cell) -> Path:
        """Of the cell's run."""
        return self.out / "runs" / f"{cell.system}-{cell.size}-seed{cell.seed}-{self.key(cell)[:12]}"

    def run(self, console: Console, fresh: bool = False) -> list[Record]:
        """A record for every cell, in order; each new one is on disk as soon as its child has ended."""
        store = self.store
        store.check_writable()
        known = {} if fresh else latest(store.read().records)
        records = {
            cell: known[key] for cell in self.cells if (key := self.key(cell)) in known and known[key].status == "ok"
        }
        todo = [cell for cell in self.cells if cell not in records]
        if self.material:
            for cell in todo:
                self._prepare(cell, self.material, fresh)
        with SuiteProgress(self.cells, console) as progress:
            for record in records.values():
                progress.finished(record, reused=True)
            for cell, event in _events(todo, self.jobs, self._child):
                if isinstance(event, Outcome):
                    records[cell] = self._record(cell, event)
                    for problem in store.append(records[cell]):
                        progress.line(problem)
                    progress.finished(records[cell], reused=False)
                elif isinstance(event, BaseException):
                    raise event
                elif "made" in event:
                    progress.made(cell, **event["made"])
                elif "waits" in event:
                    progress.line(f"{cell.label}: waiting for another process, which is training this run")
        return [records[cell] for cell in self.cells]

    def _prepare(self, cell: Cell, material: Material, fresh: bool) -> None:
        """Writes what the cell's child reads; raises UsageError where that is not possible."""
        folder = self.folder(cell)
        try:
            with claimed(folder):
                if fresh:
                    clear(folder)
                lay_out(Run.of_cell(cell), folder, material.vocabulary, material.trained, self.environment)
        except TakenError:  # who has it has written the same there
            if fresh:
                raise
        except OSError as error:
            raise UsageError(f"{error.filename or folder}: {error.strerror or error}") from error

    def _child(self, cell: Cell, tell: Callable[[Event], None]) -> Outcome:
        request = {"task": cell.workload, "cell": cell.to_dict()}
        if self.material:
            corpora = {name: str(tokens.folder.resolve()) for name, tokens in self.material.corpora.items()}
            request |= {"folder": str(self.folder(cell)), "corpora": corpora}
        return self.execute(request, cell.threads, FOREVER_S, listener=tell)

    def _record(self, cell: Cell, outcome: Outcome) -> Record:
        parts: Mapping[str, Any] = next((m for m in reversed(outcome.messages) if "metrics" in m), {})
        return Record(
            experiment=self.experiment,
            cell=cell,
            status=outcome.status,
            reason=outcome.reason,
            key=self.key(cell),
            created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            environment=self.environment,
            metrics=parts.get("metrics", {}),
            notes=parts.get("notes", {}),
        )


def _events(
    cells: Sequence[Cell], jobs: int, run: Callable[[Cell, Callable[[Event], None]], Outcome]
) -> Iterator[tuple[Cell, Event]]:
    """What is told of each cell and at last its outcome, ``jobs`` cells at a time.

    Their threads are daemons: when an interrupt ends this process, its children die with it.
    """
    waiting: SimpleQueue[Cell] = SimpleQueue()
    events: SimpleQueue[tuple[Cell, Event]] = SimpleQueue()
    for cell in cells:
        waiting.put(cell)

    def work() -> None:
        while True:
            try:
                cell = waiting.get_nowait()
            except Empty:
                return
            try:
                events.put((cell, run(cell, lambda event, cell=cell: events.put((cell, event)))))  # type: ignore[misc]
            except BaseException as error:  # noqa: BLE001 - the main thread raises it
                events.put((cell, error))

    for _ in range(min(jobs, len(cells))):
        threading.Thread(target=work, daemon=True).start()
    left = len(cells)
    while left:
        cell, event = events.get()
        yield cell, event
        left -= isinstance(event, Outcome)
