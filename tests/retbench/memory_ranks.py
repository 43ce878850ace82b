"""What every rank of a test of predicted memory does: an optimizer step on its part, its bytes counted in two ways."""

import json
from pathlib import Path
from typing import cast

import torch
from torch import distributed

from models import build
from retbench.devices.cpu import DEVICE as CPU
from retbench.measure import TORCH_DTYPES
from retbench.measure.ranks import keep_part_
from retbench.measure.split import split_step
from retbench.measure.train_step import Trainer
from retbench.spec import Cell, Training

STEPS = 3  # counted: a thread of Gloo's may let go of what it reduced a moment late, but rarely in each


def run(rank: int, world: int, folder: str, cells: list[Cell]) -> None:
    """Started ``world`` times: writes what ``bytes_of`` finds of each cell to folder/<rank>.json."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    found = [bytes_of(cell) for cell in cells]
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def bytes_of(cell: Cell) -> dict[str, int]:
    """Of this rank: its weights, what its operators make by kind, and the peak that the profiler sees."""
    torch.set_default_dtype(TORCH_DTYPES[cell.dtype])
    model, training = build(cell.system, cell.size, **cell.overrides), cast(Training, cell.training)
    keep_part_(model, cell.device, training)
    trainer = Trainer(model, training)
    tokens = torch.zeros(training.grad_accumulation, cell.batch_size, cell.seq_len + 1, dtype=torch.int64)
    trainer.step(tokens)
    steps = (split_step(trainer, tokens.clone()) for _ in range(STEPS))
    live = min(steps, key=lambda step: step.peak)
    measured = min(CPU.peak_memory(tokens.clone, trainer.step).tensor_bytes for _ in range(STEPS))
    kinds = {f"{kind}_bytes": nbytes for kind, nbytes in live.peak_kinds().items()}
    return {**kinds, "weights_bytes": model.weights_bytes(), "exchanged_bytes": live.exchanged, "measured": measured}
