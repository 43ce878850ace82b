"""What every rank of a test of optimizer steps does: three steps on its part, beside the same on the whole model."""

import json
from pathlib import Path

import torch
from torch import distributed

from models import build
from models.language_model import LanguageModel
from retbench.measure.ranks import keep_part_, reader
from retbench.measure.train_step import Trainer
from retbench.spec import Cell, Training

STEPS, MICRO_BATCHES, LENGTH = 3, 2, 17


def run(rank: int, world: int, folder: str, cases: list[tuple[str, Training]]) -> None:
    """Started ``world`` times: writes the losses of each case, on the ranks and alone, to folder/<rank>.json."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    found = [losses(system, training) for system, training in cases]
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


def losses(system: str, training: Training) -> tuple[list[float], list[float]]:
    """The mean over the ranks of the loss of each step, and what one process that reads all tokens gets."""
    cell = Cell(system, "tiny", "train_step", LENGTH, 2, "fp32", "cpu", threads=1, training=training, vocab_size=64)
    whole, split = (build(system, cell.size, **cell.overrides) for _ in range(2))
    keep_part_(split, cell.device, training)
    on_ranks = torch.tensor(stepped(split, training, reader(training)))
    distributed.all_reduce(on_ranks)
    return (on_ranks / distributed.get_world_size()).tolist(), stepped(whole, training)


def stepped(model: LanguageModel, training: Training, part: int | None = None) -> list[float]:
    """The losses of steps over the same tokens, the part of one reader or all of them."""
    trainer = Trainer(model, training, learning_rate=0.01)
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(STEPS):
        tokens = torch.randint(64, (MICRO_BATCHES, 2 * training.data_parallel, LENGTH + 1), generator=generator)
        read = tokens if part is None else tokens.chunk(training.data_parallel, dim=1)[part]
        found.append(trainer.step(read).item())
    return found
