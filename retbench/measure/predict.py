"""Predicts a cell's bytes and operations without running it: the same calls on fake tensors, counted."""

from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from models import configure, from_config
from models.checkpoint import read_config
from models.config import Config
from models.language_model import LanguageModel, State
from models.quantization import quantize_
from retbench.measure import TORCH_DTYPES
from retbench.measure.ledger import Ledger
from retbench.measure.split import split_step
from retbench.measure.train_step import Trainer
from retbench.spec import Cell, Training

UNCOUNTABLE = 2**62  # bytes of a tensor whose size torch cannot express: more than any memory
Prediction = dict[str, int]


@dataclass(frozen=True)
class Counts:
    """What a run does beside holding weights and state: its peak, all that it allocates and moves, operations."""

    peak: int
    allocated: int = 0
    moved: int = 0
    flops: int = 0

    @classmethod
    def of(cls, ledger: Ledger, held: int, state: int) -> "Counts":
        """``held`` bytes of state were there before, ``state`` bytes are after it."""
        return cls(ledger.peak - state, ledger.allocated - held, ledger.moved, ledger.flops)


class Predictor:
    """A cell's model at any length and batch.

    Weights and states are counted on the meta device. Activations of decode and prefill are traced on one layer and on
    two: all layers are alike and none keeps anything but its state, so that the peak is that of two and all else grows
    by the difference. The tensors pretend to be on the CPU: faking a CUDA device aborts or silently replaces fused
    attention.
    """

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        torch.set_default_dtype(TORCH_DTYPES[cell.dtype])
        torch.set_num_threads(cell.threads)  # each has memory of its own in a native step
        self.config = (
            read_config(cell.checkpoint)
            if cell.checkpoint is not None
            else configure(cell.system, cell.size, **cell.overrides)
        )
        with torch.device("meta"):
            self._model = _model(cell, self.config)
        self._fake = FakeTensorMode()
        depths = range(1, min(2, self.config.n_layers) + 1)
        with self._fake:
            self._shallow = [_model(cell, replace(self.config, n_layers=depth)) for depth in depths]

    def weights(self) -> Prediction:
        parameters = sum(parameter.numel() for parameter in self._model.parameters())
        return {"parameters": parameters, "weights_bytes": self._model.weights_bytes()}

    def decode(self, seq_len: int, batch_size: int) -> Prediction:
        """A step at the last of ``seq_len`` positions: bytes that it must move, all that it allocates, its peak."""
        with torch.device("meta"):
            state = self._model.init_state(batch_size, seq_len)
        state.position = seq_len - 1
        state_bytes = _filled_bytes(state, seq_len)
        step = self._scaled([self._step(model, seq_len, batch_size) for model in self._shallow])
        return {
            "state_bytes": state_bytes,
            "step_bytes": self._model.step_weights_bytes() + state.step_bytes(),
            "step_allocated_bytes": step.allocated,
            "step_flops": step.flops,
            "peak_memory_bytes": self._model.weights_bytes() + state_bytes + step.peak,
        }

    def prefill(self, seq_len: int, batch_size: int) -> Prediction:
        """A prompt of ``seq_len`` positions; beyond what torch can express, UNCOUNTABLE bytes."""
        with torch.device("meta"):
            state_bytes = _filled_bytes(self._model.init_state(batch_size, seq_len), seq_len)
        try:
            counts = self._scaled([self._prefill(model, seq_len, batch_size) for model in self._shallow])
        except RuntimeError as error:
            if "overflow" not in str(error):
                raise
            counts = Counts(UNCOUNTABLE, UNCOUNTABLE, UNCOUNTABLE, UNCOUNTABLE)
        return {
            "prefill_peak_memory_bytes": self._model.weights_bytes() + state_bytes + counts.peak,
            "prefill_allocated_bytes": min(counts.allocated, UNCOUNTABLE),
            "prefill_moved_bytes": min(counts.moved, UNCOUNTABLE),
            "prefill_flops": min(counts.flops, UNCOUNTABLE),
        }

    def train(self, seq_len: int, batch_size: int) -> Prediction:
        """One optimizer step after another one, traced on all layers: what a layer keeps for its gradient adds up."""
        training = self.cell.training or Training()
        with self._fake:
            model = _model(self.cell, self.config)
            trainer = Trainer(model, training)
            micro_batches = torch.zeros(training.grad_accumulation, batch_size, seq_len + 1, dtype=torch.int64)
            trainer.step(micro_batches[:, :1, :2])  # makes what the first step makes and all keep
            live = split_step(trainer, micro_batches)
            optimizer_bytes = sum(tensor.nbytes for tensor in trainer.optimizer.tensors())
        kinds = live.peak_kinds()
        return {
            "optimizer_bytes": optimizer_bytes,
            **{f"{kind}_bytes": nbytes for kind, nbytes in kinds.items()},
            "peak_memory_bytes": model.weights_bytes() + optimizer_bytes + live.peak,
            "step_moved_bytes": live.moved,
            "step_flops": live.flops,
        }

    def _scaled(self, shallow: list[Counts]) -> Counts:
        """Those of all layers from those of one and of two."""
        first, last = shallow[0], shallow[-1]
        more = self.config.n_layers - 1
        return Counts(
            last.peak,
            *(getattr(first, name) + more * (getattr(last, name) - getattr(first, name)) for name in SCALED),
        )

    def _step(self, model: LanguageModel, seq_len: int, batch_size: int) -> Counts:
        """One step; its operations are those of the plain step, which a native one makes unseen."""
        with self._fake, torch.no_grad():
            if self.cell.device != "cpu":
                model.decode_backend = "torch"
            counts = self._step_counts(model, seq_len, batch_size)
            if model.decode_backend == "native":
                model.decode_backend = "torch"
                counts = replace(counts, flops=self._step_counts(model, seq_len, batch_size).flops)
                model.decode_backend = "native"
        return counts

    def _step_counts(self, model: LanguageModel, seq_len: int, batch_size: int) -> Counts:
        token = torch.zeros(batch_size, dtype=torch.int64)
        state = model.init_state(batch_size, seq_len)
        state.fill_(seq_len - 1)
        model.positions(0, 1)  # makes what a model makes once and keeps: a measured step finds it there
        held = state.nbytes
        with Ledger([*model.parameters(), *model.buffers(), token]) as ledger:
            ledger.hold(state.tensors())
            model.step(token, state)
        return Counts.of(ledger, held, state.nbytes)

    def _prefill(self, model: LanguageModel, seq_len: int, batch_size: int) -> Counts:
        with self._fake, torch.no_grad():
            tokens = torch.zeros(batch_size, seq_len, dtype=torch.int64)
            model.positions(0, 1)
            with Ledger([*model.parameters(), *model.buffers(), tokens]) as ledger:
                _, state = model.prefill(tokens)
            return Counts.of(ledger, state.nbytes, state.nbytes)


SCALED = ("allocated", "moved", "flops")


def predict(cell: Cell) -> Prediction:
    """Bytes and operations of a training step, or of decode and prefill where the cell's workload is another."""
    predictor, point = Predictor(cell), (cell.seq_len, cell.batch_size)
    if cell.workload == "train_step":
        return predictor.weights() | predictor.train(*point)
    return predictor.weights() | predictor.decode(*point) | predictor.prefill(*point)


def _model(cell: Cell, config: Config) -> LanguageModel:
    """The model with the weights that the cell asks for, on the current device."""
    model = from_config(config)
    if cell.quantize != "none":
        quantize_(model)
    return model


def _filled_bytes(state: State, seq_len: int) -> int:
    """Bytes of the state when it holds ``seq_len`` tokens: a concatenated cache starts out empty."""
    for layer in state.layers:
        layer.fill_(seq_len, torch.Generator())
    return state.nbytes
