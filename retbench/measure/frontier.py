"""Frontier: the largest batch and the longest length whose decode step the memory holds, found by trying."""

from collections.abc import Callable

import torch

from retbench.measure import Model, Parts, Task
from retbench.measure.estimate import RESOLUTION
from retbench.spec import MAX_BATCH_SIZE, MAX_SEQ_LEN
from retbench.worker import OUT_OF_MEMORY

SPARE = 2**26  # bytes a thread: more than libraries newly take in a step


@torch.inference_mode()
def measure(model: Model, task: Task) -> Parts:
    """Yields the largest batch at the cell's length, then the longest length at its batch; 0 where none fits."""
    cell, predicted = task.cell, task.predicted
    batch, tries = _largest(
        lambda n: _fits(model, task, cell.seq_len, n), predicted.get("largest_batch_size", 1), MAX_BATCH_SIZE, task
    )
    yield {"metrics": {"largest_batch_size": batch}, "notes": {"batch_tries": tries}}
    longest, tries = _largest(
        lambda n: _fits(model, task, n, cell.batch_size),
        predicted.get("longest_seq_len", cell.seq_len),
        MAX_SEQ_LEN,
        task,
    )
    yield {"metrics": {"longest_seq_len": longest}, "notes": {"length_tries": tries}}


def _fits(model: Model, task: Task, seq_len: int, batch_size: int) -> bool:
    """Whether a step at the last of so many positions succeeds within the cell's limit.

    A limit on a CPU bounds libraries too, and some crash where they get nothing. So a step with room to spare comes
    first; what they keep from then on (threads' stacks, code made for a shape, buffers of products) is not the cell's.
    """
    cell = task.cell
    if cell.device == "cpu" and cell.mem_limit_bytes is not None:
        task.device.limit_memory(cell.mem_limit_bytes + SPARE * cell.threads, model.weights_bytes())
        if not _steps(model, task, seq_len, batch_size):
            return False
        task.device.limit_memory(cell.mem_limit_bytes, model.weights_bytes())
    return _steps(model, task, seq_len, batch_size)


def _steps(model: Model, task: Task, seq_len: int, batch_size: int) -> bool:
    """Whether a step at the last of so many positions succeeds, its state filled so that all of it is really there."""
    try:
        state = model.init_state(batch_size, seq_len)
        state.fill_(seq_len - 1)
        model.step(task.tokens(model.config.vocab_size, batch_size), state)
        task.device.synchronize()
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error).lower() for sign in OUT_OF_MEMORY):
            raise
        return False
    except ValueError:  # the model reads no text of that length
        return False
    return True


def _largest(fits: Callable[[int], bool], start: int, most: int, task: Task) -> tuple[int, int]:
    """The largest n from 1 to ``most`` that fits, to one part in ``RESOLUTION``, 0 for none, and the number of tries.

    Bisects from ``start``, where it is expected, with steps that grow until the frontier lies between two tries.
    Raises TimeoutError when the cell's time is over.
    """
    low, high, at, tries = 0, most + 1, max(1, min(start, most)), 0
    while high - low > max(1, low // RESOLUTION):
        if task.deadline.left_s <= 0:
            raise TimeoutError(f"between {low} and {high} after {tries} tries, and the time is over: raise --budget")
        tries += 1
        if fits(at):
            low = at
        else:
            high = at
        if low and high <= most:
            at = (low + high) // 2
        else:
            step = max(1, start // RESOLUTION) * 4 ** (tries - 1)
            at = min(low + step, most) if low else max(high - step, 1)
    return low, tries
