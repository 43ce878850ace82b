"""The training loop of a run, a process of its own: steps, metrics, checkpoints, and how it ended.

Run by ``retbench train`` as ``python -m retbench.learning.loop FOLDER``.
"""

import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
from rich.console import Console

from models import build, load_checkpoint
from models.parallel import rank
from retbench.devices import Device, find_device
from retbench.errors import UsageError
from retbench.learning import checkpoints
from retbench.learning.batches import Batches
from retbench.learning.ngrams import count
from retbench.learning.perplexity import Losses, Score, score, sliding
from retbench.learning.progress import TrainingProgress
from retbench.learning.run import METRICS, ORDERS, REQUEST, RESULT, Run, claimed, keep_metrics, keep_result, said
from retbench.learning.run import checkpoints as made_checkpoints
from retbench.learning.scored import scored
from retbench.learning.token_files import Tokens, open_tokens
from retbench.measure import TORCH_DTYPES
from retbench.measure.ranks import averaged, keep_part_, meet
from retbench.measure.train_step import Trainer
from retbench.timing import Stopwatch
from retbench.worker import failure

if TYPE_CHECKING:
    from models.language_model import LanguageModel

CLIP = 2.0  # the paper's, Table 7: the largest norm of the gradients of a step
WORSE_THAN_NOTHING = 4.0  # nats above a uniform guess: one odd batch early on may be 2 above it
HELD_OUT_TOKENS = 2**16  # scored at the end, in whole documents

Told = Callable[[int, float, float], None]  # of every step: steps made, its loss, its seconds


class DivergedError(Exception):
    """The loss or the gradients are no longer of use; says which and where."""


class Interrupt:
    """Whether an end was asked for (Ctrl-C or SIGTERM): the loop ends after the step; asked again, at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def heeded(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@dataclass(frozen=True)
class Loop:
    """A run that is being made: its folder, its data and the device. Of several ranks the first alone writes."""

    folder: Path
    request: dict[str, Any]
    run: Run
    tokens: Tokens
    device: Device

    @classmethod
    def open(cls, folder: Path) -> "Loop":
        """What ``retbench train`` prepared in a folder."""
        request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
        run = Run(**request["run"])
        tokens = open_tokens(Path(request["tokens"]))
        if tokens is None:
            raise UsageError(f"the token files in {request['tokens']} are gone: start the command again with --resume")
        return cls(folder, request, run, tokens, find_device(run.device))

    def train(self, told: Told, interrupt: Interrupt) -> tuple[Trainer, int]:
        """Makes the steps that are missing -> the trainer and all steps made, fewer where an end was asked for."""
        trainer, first = self._start()
        batches = self.run.batches(self.tokens.train.ids)
        stopwatch = Stopwatch(self.device)
        with self._metrics(first) as metrics:
            for step in range(first, self.run.steps):
                line = self._step(trainer, batches, step)
                stopwatch.lap()
                line["step_ms"] = stopwatch.laps_s[-1] * 1e3
                if metrics:
                    metrics.write(json.dumps(line) + "\n")
                    metrics.flush()
                    told(step + 1, line["loss"], stopwatch.laps_s[-1])
                last = step + 1 == self.run.steps or interrupt.asked
                if last or (step + 1) % self.run.save_every == 0:
                    if metrics:
                        os.fsync(metrics.fileno())
                    checkpoints.save(self.folder, trainer, step + 1, self.run)
                if interrupt.asked:
                    return trainer, step + 1
        return trainer, self.run.steps

    def result(self, trainer: Trainer, made: int) -> dict[str, Any]:
        """What becomes the result after so many steps."""
        if made < self.run.steps:
            return {"status": "interrupted", "step": made}
        return {"status": "ok", "step": made, **self._held_out(self._whole(trainer.model))}

    def _start(self) -> tuple[Trainer, int]:
        """A trainer after the newest checkpoint, or a fresh one, and the steps already made."""
        run = self.run
        restored = checkpoints.restore(self.folder, run)
        meet()  # all ranks have read what the first may change from now on
        options = {"seed": run.seed, "vocab_size": self.tokens.header.vocab_size, **run.overrides}
        model = restored.model if restored else build(run.system, run.size, **options)
        if run.data_parallel > 1:
            keep_part_(model, run.device, run.training)
        trainer = Trainer(model, run.training, run.learning_rate)
        if restored is None:
            checkpoints.save(self.folder, trainer, 0, run)  # holds how products are computed
            return trainer, 0
        trainer.optimizer.restore(restored.optimizer)
        return trainer, restored.step

    def _metrics(self, first: int) -> AbstractContextManager[TextIO | None]:
        """The file that steps after ``first`` are added to, on the first rank."""
        if rank() != 0:
            return nullcontext()
        keep_metrics(self.folder, first)
        return (self.folder / METRICS).open("a", encoding="utf-8")

    def _whole(self, model: "LanguageModel") -> "LanguageModel":
        """The model that was trained; from its checkpoint where each rank has a part."""
        if self.run.data_parallel == 1:
            return model
        return load_checkpoint(made_checkpoints(self.folder)[-1], TORCH_DTYPES[self.run.dtype], self.run.device)

    def _step(self, trainer: Trainer, batches: Batches, step: int) -> dict[str, Any]:
        """One optimizer step -> its line of metrics; raises DivergedError before a bad one changes a weight."""
        run = self.run
        shape = (run.grad_accumulation, run.batch_size, run.seq_len + 1)  # (A, B, T + 1)
        tokens = torch.from_numpy(batches.at(step)).view(shape).chunk(run.data_parallel, dim=1)[rank()]
        loss = averaged(trainer.backward(tokens.to(run.device))).item()
        norm = trainer.optimizer.clip(CLIP).item()
        _check(step, loss, norm, self.tokens.header.vocab_size)
        trainer.optimizer.learning_rate = run.learning_rate_at(step)
        trainer.update()
        return {
            "step": step + 1,
            "tokens": (step + 1) * run.step_tokens,
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": run.learning_rate_at(step),
        }

    def _held_out(self, model: "LanguageModel") -> dict[str, Any]:
        """The score of held-out documents in windows of the trained length, the same for every system.

        Beside it stand n-grams on the same documents, counted in the training split or, if it is large, its start.
        """
        header = self.tokens.header

        def of(losses: Losses) -> Score:
            return score(scored(self.tokens, self.tokens), losses, header.eos, header.bos, HELD_OUT_TOKENS)

        counted = {name: count(self.tokens.train.ids, header.vocab_size, order) for name, order in ORDERS.items()}
        return {
            "held_out": summary(of(partial(sliding, model, context=self.run.seq_len))),
            "baselines": {name: of(ngrams.losses).total.perplexity for name, ngrams in counted.items()},
        }


def summary(found: Score) -> dict[str, Any]:
    """What a result says of a score."""
    total = found.total
    return {
        "loss": total.loss,
        "perplexity": total.perplexity,
        "bits_per_byte": found.bits_per_byte,
        "tokens": total.tokens,
        "documents": len(found.documents),
        "loss_by_position": {str(first): counted.loss for first, counted in found.positions.items()},
    }


def _check(step: int, loss: float, norm: float, vocab_size: int) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise DivergedError(f"step {step + 1}: the loss is {loss}, the norm of its gradients {norm}")
    if loss > math.log(vocab_size) + WORSE_THAN_NOTHING:
        raise DivergedError(f"step {step + 1}: the loss is {loss:.2f}, a uniform guess has {math.log(vocab_size):.2f}")


def train(folder: Path) -> dict[str, Any]:
    """Makes or continues the run of a folder and writes its result, whatever becomes of it but a kill.

    Raises UsageError where another process is at it: two would write the same files.
    """
    loop = Loop.open(folder)
    torch.set_num_threads(loop.run.threads)
    torch.set_default_dtype(TORCH_DTYPES[loop.run.dtype])
    interrupt = Interrupt()
    result: dict[str, Any]
    with claimed(folder), TrainingProgress(loop.run, Console(stderr=True)) as progress, interrupt.heeded():
        (folder / RESULT).unlink(missing_ok=True)
        try:
            with torch.device(loop.run.device):
                result = loop.result(*loop.train(progress.made, interrupt))
        except DivergedError as error:
            result = {"status": "diverged", "reason": str(error)}
        except UsageError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is becomes the status of the run
            result = dict(failure(error))
        return keep_result(folder, loop.request, result)


def main(folder: Path) -> int:
    """The exit status: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    try:
        return said(folder, train(folder))
    except UsageError as error:
        print(f"retbench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
