"""The checkpoints of a run: model, optimizer, position in the data, random numbers; each whole or not there."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.checkpoint import load_checkpoint, save_checkpoint
from models.linear import decide_onednn, onednn_refusal
from models.parallel import gathered, rank
from retbench.learning.run import CHECKPOINT, Run, checkpoints, write_json
from retbench.measure import TORCH_DTYPES
from retbench.measure.train_step import Trainer

if TYPE_CHECKING:
    from models.language_model import LanguageModel

OPTIMIZER, TRAINING = "optimizer.safetensors", "training.json"
UNFINISHED, UNWANTED = ".saving-", ".deleting-"


@dataclass(frozen=True)
class Restored:
    """A checkpoint that was read: the steps made before it and what the optimizer goes on from."""

    model: "LanguageModel"
    step: int
    optimizer: dict[str, Tensor]


def save(folder: Path, trainer: Trainer, step: int, run: Run) -> Path:
    """Adds the checkpoint after ``step`` steps, which a run can be continued from, and deletes those before the last.

    It has a name of its own while it is written: killed at any moment, every checkpoint there is whole. Ranks save
    together, and the first writes; it is the checkpoint of one process.
    """
    new, final = folder / f"{UNFINISHED}{step}", folder / f"{CHECKPOINT}{step:08d}"
    if rank() == 0:
        new.mkdir()
    save_checkpoint(trainer.model, new)
    optimizer = gathered(trainer.optimizer.state())
    if rank() != 0:
        return final
    rng = {"rng.cpu": torch.get_rng_state()}
    if run.device == "cuda":
        rng["rng.cuda"] = torch.cuda.get_rng_state()
    save_file({name: x.contiguous() for name, x in (optimizer | rng).items()}, new / OPTIMIZER)
    write_json(new / TRAINING, {"step": step, "onednn_refusal": onednn_refusal(run.rank_threads)})
    for tokenizer in folder.glob("tokenizer.*"):
        shutil.copyfile(tokenizer, new / tokenizer.name)
    new.rename(final)
    for old in checkpoints(folder)[: -run.keep]:
        _delete(old)
    return final


def restore(folder: Path, run: Run) -> Restored | None:
    """The newest checkpoint, None where there is none; float32 products will be computed as they were before it."""
    for name in (UNFINISHED, UNWANTED) if rank() == 0 else ():
        for left in folder.glob(f"{name}*"):
            shutil.rmtree(left)
    found = checkpoints(folder)
    if not found:
        return None
    facts = json.loads((found[-1] / TRAINING).read_text(encoding="utf-8"))
    decide_onednn(run.rank_threads, facts["onednn_refusal"])
    model = load_checkpoint(found[-1], TORCH_DTYPES[run.dtype], run.device)
    tensors = load_file(found[-1] / OPTIMIZER)
    torch.set_rng_state(tensors.pop("rng.cpu"))
    if "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors.pop("rng.cuda"))
    return Restored(model, facts["step"], tensors)


def _delete(checkpoint: Path) -> None:
    unwanted = checkpoint.with_name(f"{UNWANTED}{checkpoint.name}")
    checkpoint.rename(unwanted)
    shutil.rmtree(unwanted)
