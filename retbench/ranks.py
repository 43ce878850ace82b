"""Cells on several ranks. torchrun starts a process a rank; each runs its part of a cell in a child of its own.

Rank 0 leads: it has the session, tells the others which cell is next, and makes one outcome of theirs. A child that
dies therefore ends its cell and nothing else. A training run is such a cell too (``learning.ranks``). What passes
between the processes lies in torchrun's own store.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from retbench import isolate
from retbench.environment import ROOT
from retbench.errors import UsageError
from retbench.isolate import Outcome
from retbench.record import Status
from retbench.spec import Cell, Training
from retbench.worker import die_with_parent

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

    from retbench.session import Report, Session
    from retbench.sweep import Execute

LAUNCHER = "torch.distributed.run"  # the module that the command torchrun runs
POLL_S = 0.05  # between two looks for the outcome of another rank, when rank 0 has its own
RUN_LASTS = timedelta(days=30)  # the others wait so long for rank 0's next cell
# Of several failures one is the cause. Ranks that wait for one that has gone fail too, with an error of the network.
CAUSES: tuple[Status, ...] = ("oom", "killed", "unsupported", "timeout", "error")


def launched() -> int | None:
    """How many processes torchrun has started; None for none."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ and "WORLD_SIZE" in os.environ else None


def is_follower() -> bool:
    """Whether this process is a rank that measures for rank 0 and shows nothing."""
    return "WORLD_SIZE" in os.environ and os.environ.get("RANK", "0") != "0"


def check_ranks(training: Training, nproc: int, compiled: bool = False) -> None:
    """Raises UsageError where the processes are not as many as the options need, or cannot be started."""
    check_degrees(training)
    needed, there = training.ranks, launched() or nproc
    if nproc < 1:
        raise UsageError("--nproc is 1 or more")
    if compiled and needed > 1:
        raise UsageError("--compile is for one process: leave it out, or --tensor-parallel and --data-parallel")
    if there != needed:
        raise UsageError(
            f"--tensor-parallel {training.tensor_parallel} x --data-parallel {training.data_parallel} needs {needed} "
            f"processes, not {there}: give --nproc {needed}, or start it with torchrun --nproc-per-node {needed}"
        )
    if needed > 1:
        check_launcher()


def check_launcher() -> None:
    """Raises UsageError where several processes are needed, none have been started, and torchrun is not there."""
    if launched() is None and find_spec(LAUNCHER) is None:
        raise UsageError("torchrun is not there: this torch was built without torch.distributed; one process works")


def check_alone() -> None:
    """Raises UsageError under torchrun, for a command whose every process would do all of its work."""
    if (launched() or 1) > 1:
        raise UsageError(f"torchrun has started {launched()} processes, and this command is one: start it without")


def check_degrees(training: Training) -> None:
    """Raises UsageError for degrees that no number of processes can have."""
    if min(training.tensor_parallel, training.data_parallel) < 1:
        raise UsageError("--tensor-parallel and --data-parallel are 1 or more")
    if training.fsdp and training.data_parallel == 1:
        raise UsageError("--fsdp shares the model out over data-parallel ranks: --data-parallel must be 2 or more")


def check_systems(cells: Sequence[Cell]) -> None:
    """Raises UsageError for a cell whose heads, FFN or vocabulary the ranks cannot share out equally, or of no model.

    A system that cannot be split at all passes: its record will say why.
    """
    degrees = {cell: cell.training.tensor_parallel for cell in cells if cell.training}
    if max(degrees.values(), default=1) == 1:
        return  # without torch
    import torch

    from models import from_config
    from models.parallel import check_degree
    from retbench.measure import config_of

    for cell, degree in degrees.items():
        try:
            with torch.device("meta"):
                model = from_config(replace(config_of(cell), n_layers=1))
            check_degree(model, degree)
        except NotImplementedError:
            continue
        except ValueError as error:
            raise UsageError(str(error)) from error


def run(session: "Session", report: "Report", nproc: int) -> None:
    """``session.run`` in this process alone, or by as many as its cells need, which are started if they are not there.

    All cells have the same degrees, and ``check_ranks`` has passed them. Raises UsageError before anything is started.
    """
    training = session.cells[0].training or Training()
    check_systems(session.cells)
    if training.ranks == 1 or (session.dry_run and not is_follower()):
        session.run(report)
    elif launched() is None:
        sys.exit(launch(nproc, "retbench", sys.argv[1:]))
    elif not is_follower():
        with Group.join().lead() as execute:
            replace(session, execute=execute).run(report)
    elif not session.dry_run:
        Group.join().follow()


def launch(nproc: int, module: str, arguments: Sequence[str]) -> int:
    """Runs a module with the same arguments in ``nproc`` processes by torchrun -> the first exit status but 0."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args
    from torch.distributed.run import run as torchrun

    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # else torchrun says that it does so; children set their own
    words = ["--standalone", "--nproc-per-node", str(nproc), "-m", "--", module, *arguments]
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what failed has said so in a line
    try:
        torchrun(parse_args(words))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:  # all but what was killed
            print(f"retbench: rank {rank} was killed by {failure.signal_name()}", file=sys.stderr)
        return max(failure.exitcode, 1)
    except SignalException as error:
        return 128 + error.sigval
    return 0


@contextmanager
def executing() -> Iterator[Callable[..., Outcome]]:
    """What runs a request, as ``isolate.run_worker``: here or, for rank 0, on every rank that torchrun has started."""
    if launched() is None:
        yield isolate.run_worker
    else:
        with Group.join().lead() as execute:
            yield execute


@dataclass(frozen=True)
class Ended:
    """How a rank's child ended, and as which of the ranks'."""

    outcome: Outcome
    place: int


def combined(ranks: Sequence[Ended]) -> Outcome:
    """The outcome of a cell from those of its ranks: rank 0's, with the memory of the rank that needs most.

    If a rank failed, the status is that of the likeliest cause; of equal ones, of the first.
    """
    failed = [(rank, ended) for rank, ended in enumerate(ranks) if ended.outcome.status != "ok"]
    first = ranks[0].outcome
    memory = [_memory(ended.outcome) for ended in ranks]
    if all(memory):
        peaks = [metrics["peak_memory_bytes"] for metrics in memory]
        most = {**memory[peaks.index(max(peaks))], "rank_peak_memory_bytes": peaks}
        own = [{**part, "metrics": most} if part.get("metrics") is memory[0] else part for part in first.messages]
        first = replace(first, messages=own)
    if not failed:
        return first
    rank, cause = min(failed, key=lambda pair: (CAUSES.index(pair[1].outcome.status), pair[1].place))
    same = all(ended.outcome.reason == cause.outcome.reason for ended in ranks)
    reason = cause.outcome.reason if same else f"rank {rank}: {cause.outcome.reason}"
    return replace(first, status=cause.outcome.status, reason=reason)


def _memory(outcome: Outcome) -> dict[str, int]:
    """The metrics that came with the peak, empty where the child did not come so far."""
    metrics: list[dict[str, int]] = [message.get("metrics", {}) for message in outcome.messages]
    return next((part for part in metrics if "peak_memory_bytes" in part), {})


@dataclass(frozen=True)
class Group:
    """This process among those that torchrun has started."""

    store: "Store"
    rank: int
    world: int

    @classmethod
    def join(cls) -> "Group":
        from torch.distributed.rendezvous import rendezvous

        die_with_parent()
        store, rank, world = next(rendezvous("env://"))
        store.set_timeout(RUN_LASTS)
        return cls(store, rank, world)

    @contextmanager
    def lead(self, listener: isolate.Listener = lambda message: None) -> Iterator["Execute"]:
        """For rank 0: what runs a cell on all ranks; its own child's messages are told. The others end when it does."""
        asked = 0

        def execute(
            request: dict[str, Any],
            threads: int,
            timeout_s: float,
            python: str = sys.executable,
            listener: isolate.Listener = listener,
        ) -> Outcome:
            nonlocal asked
            errand = {"request": request, "threads": threads, "timeout_s": timeout_s, "python": python}
            asked += 1
            self.store.set(f"errand/{asked}", json.dumps(errand))
            own = self._run(asked, errand, listener)
            others = [json.loads(self._awaited(f"outcome/{asked}/{rank}")) for rank in range(1, self.world)]
            return combined([own, *(Ended(Outcome(**entry["outcome"]), entry["place"]) for entry in others)])

        try:
            yield execute
        finally:
            self.store.set(f"errand/{asked + 1}", json.dumps(None))

    def _awaited(self, key: str) -> bytes:
        """What another rank puts into the store; a signal is heeded meanwhile, as it is not in the store's own wait."""
        while not self.store.check([key]):
            time.sleep(POLL_S)
        return self.store.get(key)

    def follow(self) -> None:
        """For the other ranks: runs this rank's part of every cell until rank 0 has no more."""
        asked = 1
        while errand := json.loads(self.store.get(f"errand/{asked}")):
            self.store.set(f"outcome/{asked}/{self.rank}", json.dumps(asdict(self._run(asked, errand))))
            asked += 1

    def _run(self, number: int, errand: dict[str, Any], listener: isolate.Listener = lambda message: None) -> "Ended":
        request = {**errand["request"], "group": f"cell/{number}"}
        outcome = isolate.run_worker(
            request, errand["threads"], errand["timeout_s"], errand["python"], listener=listener
        )
        ended = Ended(outcome, self.store.add(f"ended/{number}", 1))
        if outcome.status != "ok":
            self.store.set(f"cell/{number}/failed", "")  # the children of the other ranks end then
        return ended
