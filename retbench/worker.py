"""The child's side of a cell: reads one request, measures or predicts, writes messages to a pipe.

Run by ``isolate`` as ``python -m retbench.worker FD``; standard output and error go to a log that failures quote.
"""

import ctypes
import json
import os
import resource
import select
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from models.catalogue import peer_of
from retbench.devices import find_device
from retbench.devices.cpu import keep_one_heap
from retbench.spec import Cell, Training
from retbench.timing import Deadline

if TYPE_CHECKING:
    from models.language_model import LanguageModel
    from retbench.measure import Model

Send = Callable[[dict[str, Any]], None]
Parts = Callable[[dict[str, Any]], Iterator[dict[str, Any]]]  # of a request

PR_SET_PDEATHSIG = 1
OUT_OF_MEMORY = (  # how torch, C++, the kernel, oneDNN, OpenBLAS, Python and cuBLAS say it, in lower case
    "out of memory",
    "can't allocate memory",
    "bad_alloc",
    "cannot allocate memory",
    "could not create a memory object",
    "memory allocation still failed",
    "memoryerror",
    "cublas_status_alloc_failed",
)


def main(descriptor: int) -> None:
    _die_with_reader(descriptor)
    os.set_inheritable(descriptor, False)  # a grandchild that lives on must not keep the pipe open
    request = json.loads(sys.stdin.readline())

    def send(message: dict[str, Any]) -> None:
        os.write(descriptor, json.dumps(message).encode() + b"\n")

    sending = {"evaluate": _evaluate, "learn": _learn, "recall": _recall, "train": _train}
    tasks = _TASKS | {name: partial(task, send=send) for name, task in sending.items()}
    try:
        for message in tasks[request["task"]](request):
            send(message)
        send({"done": {"status": "ok", "reason": None}})
    except Exception as error:  # noqa: BLE001 - whatever it is becomes the cell's status
        send({"done": failure(error)})


def _measure(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Parts of the record of one cell."""
    deadline, cell = Deadline(request["budget_s"]), Cell.from_dict(request["cell"])
    is_limited = cell.device == "cpu" and cell.mem_limit_bytes is not None
    if is_limited:
        keep_one_heap()
    import torch

    from models.linear import onednn_refusal
    from models.native import tiles
    from retbench.measure import TORCH_DTYPES, Task, backend_of
    from retbench.measure.compile import compile_cell
    from retbench.measure.quantize import quantize
    from retbench.measure.ranks import join_group, keep_part_, leave_group, reader

    device = find_device(cell.device)
    workload = import_module(f"retbench.measure.{cell.workload}")  # before the limit, which is for the cell alone
    torch.set_num_threads(cell.threads)
    torch.set_default_dtype(TORCH_DTYPES[cell.dtype])
    if "group" in request:
        join_group(cell.device, request["group"])
    if is_limited:  # the memory of these trials is not the cell's
        onednn_refusal(cell.threads) if cell.dtype == "fp32" else tiles.refusal()
    if cell.mem_limit_bytes is not None:
        device.limit_memory(cell.mem_limit_bytes)
    with torch.device(cell.device):
        model = _model(cell)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        steal = _steal_ticks()
        given = {name: request[name] for name in ("predicted", "prefill_s", "skip_prefill")}
        task = Task(cell, device, deadline, **given)
        if "group" in request:
            parameters = sum(parameter.numel() for parameter in model.parameters())
            training = cast(Training, cell.training)
            keep_part_(cast("LanguageModel", model), cell.device, training)
            task.generator.manual_seed(cell.seed + reader(training))
        if cell.quantize != "none":
            yield quantize(cast("LanguageModel", model), task)  # peers are measured as they are
        yield {"cell": {"backend": backend_of(model), "form": model.decode_form}, "notes": model.notes}
        if cell.compile:
            yield compile_cell(cast("LanguageModel", model), task)
        yield from workload.measure(model, task)
    if "group" in request:
        leave_group()
        yield {"metrics": {"parameters": parameters}}  # of the whole model
    after = resource.getrusage(resource.RUSAGE_SELF)
    yield {
        "notes": {
            "load_average": os.getloadavg()[0],
            "stolen_share": _stolen_s(steal) / max(request["budget_s"] - deadline.left_s, 1e-3),
            "involuntary_context_switches": after.ru_nivcsw - usage.ru_nivcsw,
        }
    }


def _model(cell: Cell) -> "Model":
    """What the cell measures."""
    from models import build, load_checkpoint
    from retbench.measure import TORCH_DTYPES

    if cell.checkpoint is not None:
        return load_checkpoint(cell.checkpoint, TORCH_DTYPES[cell.dtype], cell.device)
    if peer_of(cell.system):
        from models import peers

        return peers.build(cell.system, cell.size, cell.seed)
    return build(cell.system, cell.size, seed=cell.seed, **cell.overrides)


def _rounds(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Parts of the records of several cells that are measured in turn; ``at`` is the cell's place."""
    deadline = Deadline(request["budget_s"])
    from retbench.measure.rounds import measure

    cells = [Cell.from_dict(fields) for fields in request["cells"]]
    steal = _steal_ticks()
    for part in measure(cells, deadline):
        share = _stolen_s(steal) / max(request["budget_s"] - deadline.left_s, 1e-3)
        yield {**part, "notes": {**part["notes"], "load_average": os.getloadavg()[0], "stolen_share": share}}


def _predict(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The predicted bytes of every cell, in order; a cell that cannot be predicted does not stop the others."""
    from retbench.measure.estimate import estimate
    from retbench.measure.predict import predict

    def predicted(cell: Cell) -> dict[str, int]:
        frontier = cell.workload == "frontier" and cell.mem_limit_bytes
        return estimate(cell, cell.mem_limit_bytes or 0) if frontier else predict(cell)

    return _each(request, predicted)


def _estimate(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What every cell would need, in order, and how far it could go in so many bytes."""
    from retbench.measure.estimate import estimate

    return _each(request, partial(estimate, memory_bytes=request["memory_bytes"]))


def _each(request: dict[str, Any], predict: Callable[[Cell], dict[str, int]]) -> Iterator[dict[str, Any]]:
    for fields in request["cells"]:
        cell = Cell.from_dict(fields)
        try:
            yield {"predicted": predict(cell), "problem": None}
        except ValueError as error:
            yield _bad_input(cell, error)
        except (RuntimeError, NotImplementedError) as error:
            yield {"predicted": {}, "problem": f"no prediction for {cell.label}: {str(error).splitlines()[0]}"}


def _describe(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the model of every cell is, in order."""
    from retbench.measure.describe import describe

    for fields in request["cells"]:
        cell = Cell.from_dict(fields)
        try:
            yield {"facts": describe(cell)}
        except ValueError as error:
            yield _bad_input(cell, error)


def _evaluate(request: dict[str, Any], send: Send) -> Iterator[dict[str, Any]]:
    """What comes of the tasks of a checkpoint, one after the other; ``send`` gets their progress meanwhile."""
    from retbench.evaluate.child import evaluate

    yield from evaluate(request, send)


def _train(request: dict[str, Any], send: Send) -> Iterator[dict[str, Any]]:
    """A rank's part of a training run; ``send`` gets its steps meanwhile."""
    from retbench.learning.ranks import train

    yield from train(request, send)


def _learn(request: dict[str, Any], send: Send) -> Iterator[dict[str, Any]]:
    """What comes of a system that is trained from scratch; ``send`` gets its progress meanwhile."""
    from retbench.learning.child import learn

    yield from learn(request, send)


def _recall(request: dict[str, Any], send: Send) -> Iterator[dict[str, Any]]:
    """What a system recalls that is trained to; ``send`` gets its progress meanwhile."""
    from retbench.learning.recall import recall

    yield from recall(request, send)


def _bad_input(cell: Cell, error: ValueError) -> dict[str, Any]:
    """Tells of a cell that nobody can measure: what was asked of its model contradicts it."""
    return {"bad_input": f"{cell.label}: {error}"}


def _brief(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One side of a pair of the gate: timed calls or, as ``part`` says, what can be counted."""
    import torch

    from retbench.measure import TORCH_DTYPES, Task, backend_of, brief

    cell = Cell.from_dict(request["cell"])
    torch.set_num_threads(cell.threads)
    torch.set_default_dtype(TORCH_DTYPES[cell.dtype])
    part = {"timed": brief.time_calls, "counted": brief.count}[request["part"]]
    usage, steal, deadline = resource.getrusage(resource.RUSAGE_SELF), _steal_ticks(), Deadline(0.0)
    with torch.inference_mode(cell.workload != "train_step"), torch.device(cell.device):
        model = _model(cell)
        yield {"cell": {"backend": backend_of(model), "form": model.decode_form}}
        yield part(model, Task(cell, find_device(cell.device), deadline, {}))
    switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - usage.ru_nivcsw
    yield {
        "interference": {
            "load_average": os.getloadavg()[0],
            "stolen_share": _stolen_s(steal) / -deadline.left_s,
            "involuntary_context_switches": switches,
        }
    }


_TASKS = {
    "measure": _measure,
    "brief": _brief,
    "rounds": _rounds,
    "predict": _predict,
    "estimate": _estimate,
    "describe": _describe,
}


def failure(error: Exception) -> dict[str, str]:
    """The status and the reason that an error gives."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, MemoryError) or any(sign in text.lower() for sign in OUT_OF_MEMORY):
        return {"status": "oom", "reason": text.splitlines()[0]}
    if isinstance(error, NotImplementedError):
        return {"status": "unsupported", "reason": text.splitlines()[0]}
    return {"status": "error", "reason": f"{type(error).__name__}: {text.splitlines()[0]}"}


def die_with_parent() -> None:
    """Asks Linux to kill this process when its parent dies: an orphan would load the machine unseen."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _die_with_reader(descriptor: int) -> None:
    """``die_with_parent`` of a parent that reads the pipe; at once where nobody does any more."""
    die_with_parent()
    if sys.platform == "linux":
        pipe = select.poll()
        pipe.register(descriptor, 0)
        if pipe.poll(0):  # an error is always told: nobody reads the pipe, the parent had died before
            sys.exit("the parent is gone")


def _stolen_s(since: int) -> float:
    """Seconds of this machine's processors that went to others since ``_steal_ticks`` was ``since``, a processor."""
    return (_steal_ticks() - since) / os.sysconf("SC_CLK_TCK") / (os.cpu_count() or 1)


def _steal_ticks() -> int:
    """Clock ticks that a hypervisor gave to others since boot; 0 where it is not told."""
    try:
        return int(Path("/proc/stat").read_text().split()[8])  # the eighth counter of the first line
    except (OSError, IndexError):
        return 0


if __name__ == "__main__":
    main(int(sys.argv[1]))
