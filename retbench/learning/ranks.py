"""A training run on several ranks: each reads its part of every batch, gradients are averaged, the first writes.

torchrun starts a process a rank (``retbench.ranks``), which runs its part in a child: a rank that dies ends the run
with its status. Run by ``retbench train`` as ``python -m retbench.learning.ranks FOLDER``.
"""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from retbench.errors import UsageError
from retbench.isolate import Outcome
from retbench.learning.progress import TrainingProgress
from retbench.learning.run import REQUEST, RESULT, Run, claimed, keep_result, read_result, said
from retbench.ranks import RUN_LASTS, Group, is_follower

TERMINATED = "ended by SIGTERM, which torchrun sends where the process of another rank has died"

Send = Callable[[dict[str, Any]], None]


class TerminatedError(BaseException):
    """This process was asked to end."""


def train(request: dict[str, Any], send: Send) -> Iterator[dict[str, Any]]:
    """The child's side: this rank's part of the run of ``folder``; the first sends every step. Yields the result."""
    import torch

    from models.parallel import rank
    from retbench.learning.loop import DivergedError, Interrupt, Loop
    from retbench.measure import TORCH_DTYPES
    from retbench.measure.ranks import join_group, leave_group

    loop = Loop.open(Path(request["folder"]))
    torch.set_num_threads(loop.run.rank_threads)
    torch.set_default_dtype(TORCH_DTYPES[loop.run.dtype])
    join_group(loop.run.device, request["group"])
    try:
        with torch.device(loop.run.device):
            trainer, made = loop.train(lambda *step: send({"made": step}), Interrupt())
            result = loop.result(trainer, made) if rank() == 0 else {}
    except DivergedError as error:  # on all ranks, which know the same numbers
        result = {"status": "diverged", "reason": str(error)}
    leave_group()
    yield {"result": result}


def main(folder: Path) -> int:
    """The parent's side: this rank's process -> its exit status; that of the first rank speaks for all."""
    group = Group.join()
    try:
        if not is_follower():
            return said(folder, _lead(group, folder))
        group.follow()
    except UsageError as error:
        print(f"retbench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if not is_follower():
            print("retbench: interrupted; --resume goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _lead(group: Group, folder: Path) -> dict[str, Any]:
    """Makes or continues the run on all ranks and writes its result, whatever becomes of them."""
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    run = Run(**request["run"])
    signal.signal(signal.SIGTERM, _terminate)

    def told(message: dict[str, Any]) -> None:
        if "made" in message:
            progress.made(*message["made"])

    with TrainingProgress(run, Console(stderr=True)) as progress, group.lead(told) as execute, claimed(folder):
        found = read_result(folder)
        if found.get("status") == "ok":
            return found
        (folder / RESULT).unlink(missing_ok=True)
        errand = {"task": "train", "folder": str(folder.resolve())}
        try:
            outcome = execute(errand, run.rank_threads, RUN_LASTS.total_seconds(), sys.executable)
        except TerminatedError:
            outcome = Outcome("killed", TERMINATED, [])
        if outcome.status != "ok":
            return keep_result(folder, request, {"status": outcome.status, "reason": outcome.reason})
        (result,) = (message["result"] for message in outcome.messages if "result" in message)
        return keep_result(folder, request, result)


def _terminate(number: int, frame: object) -> None:
    raise TerminatedError


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
