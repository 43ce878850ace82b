"""Predicts a cell's bytes and operations without running it: the same calls on fake tensors, counted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, cached_property

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from models import from_config
from models.config import Config
from models.language_model import LanguageModel
from models.native.library import plain_code
from models.parallel import local
from models.quantization import quantize_
from retbench.measure import TORCH_DTYPES, config_of, forward_backward
from retbench.measure.complexity import lengths
from retbench.measure.ledger import Ledger
from retbench.measure.ranks import first_of, share_
from retbench.measure.split import split_step
from retbench.measure.train_step import Trainer
from retbench.measure.workspace import peak_with_workspaces
from retbench.spec import Cell, Training

UNCOUNTABLE = 2**62  # bytes of a tensor whose size torch cannot express: more than any memory
TOKEN_BYTES = 8  # of an id
Prediction = dict[str, int]


@dataclass(frozen=True)
class Counts:
    """What a run does: its peak beside weights and state; bytes of state, those that it must move; all that it does."""

    peak: int
    state: int = 0
    must_move: int = 0  # of the state, in a step
    allocated: int = 0
    moved: int = 0
    flops: int = 0
    making: int = 0  # the peak of making the state beside it, where a step finds it made


SCALED = ("state", "must_move", "allocated", "moved", "flops")  # fields that grow with the layers


class Predictor:
    """A cell's model at any length and batch.

    Weights, decode and prefill are those of one layer and of two: all layers are alike and none keeps anything but its
    state, so that the peak beside it is that of two and all else grows by the difference. The tensors pretend to be on
    the CPU: faking a CUDA device aborts or silently replaces fused attention.
    """

    def __init__(self, cell: Cell, native: bool = True, ask: bool = False) -> None:
        """``native``: whether the model's code on a CPU is native where it can be.

        ``ask``: whether peaks hold what operators take for themselves on this machine's CPU, which are run for it.
        """
        self.cell = cell
        self._ask = ask and cell.device == "cpu"
        self._native = native and cell.device == "cpu"
        torch.set_default_dtype(TORCH_DTYPES[cell.dtype])
        torch.set_num_threads(cell.threads)  # each has memory of its own in a native step
        self.config = config_of(cell)
        self._fake = FakeTensorMode()
        self._trained = cache(self._train)

    @contextmanager
    def _traced(self) -> Iterator[None]:
        """On fake tensors, by the code that is predicted."""
        with self._fake, nullcontext() if self._native else plain_code():
            yield

    @cached_property
    def _shallow(self) -> list[LanguageModel]:
        depths = range(1, min(2, self.config.n_layers) + 1)
        with self._traced():
            return [_model(self.cell, replace(self.config, n_layers=depth)) for depth in depths]

    def weights(self) -> Prediction:
        parameters = self._of_all(lambda model: sum(parameter.numel() for parameter in model.parameters()))
        return {"parameters": parameters, "weights_bytes": self._of_all(LanguageModel.weights_bytes)}

    def decode(self, seq_len: int, batch_size: int) -> Prediction:
        """A step at the last of ``seq_len`` positions: bytes that it must move, all that it allocates, its peak."""
        step = self._scaled([self._step(model, seq_len, batch_size) for model in self._shallow])
        return {
            "state_bytes": step.state,
            "step_bytes": self._of_all(LanguageModel.step_weights_bytes) + step.must_move,
            "step_allocated_bytes": step.allocated,
            "step_flops": step.flops,
            "peak_memory_bytes": self._of_all(LanguageModel.weights_bytes) + step.state + step.peak,
        }

    def prefill(self, seq_len: int, batch_size: int) -> Prediction:
        """A prompt of ``seq_len`` positions; beyond what torch can express, UNCOUNTABLE bytes."""
        try:
            counts = self._scaled([self._prefill(model, seq_len, batch_size) for model in self._shallow])
        except RuntimeError as error:
            if "overflow" not in str(error):
                raise
            counts = Counts(*[UNCOUNTABLE] * 6)
        weights_bytes = self._of_all(LanguageModel.weights_bytes)
        return {
            "state_bytes": counts.state,
            "prefill_peak_memory_bytes": min(weights_bytes + counts.state + counts.peak, UNCOUNTABLE),
            "prefill_allocated_bytes": min(counts.allocated, UNCOUNTABLE),
            "prefill_moved_bytes": min(counts.moved, UNCOUNTABLE),
            "prefill_flops": min(counts.flops, UNCOUNTABLE),
        }

    def train(self, seq_len: int, batch_size: int, n_layers: int | None = None) -> Prediction:
        """One optimizer step after another one, traced on all layers: what a layer keeps for its gradient adds up.

        Of several ranks, what the first of them does and keeps. A search that comes back finds it known.
        """
        return self._trained(seq_len, batch_size, n_layers or self.config.n_layers)

    def _train(self, seq_len: int, batch_size: int, n_layers: int) -> Prediction:
        training = self.cell.training or Training()
        with first_of(training) as mesh:
            with self._traced():
                model = _model(self.cell, replace(self.config, n_layers=n_layers))
            if mesh is not None:
                share_(model, training, mesh)  # by real tensors, of which meshes are made
            with self._traced():
                trainer = Trainer(model, training)
                tokens = torch.zeros(training.grad_accumulation, batch_size, seq_len + 1, dtype=torch.int64)
                trainer.step(tokens[:, :1, :2])  # makes what the first step makes and all keep
                live = split_step(trainer, tokens)
            optimizer_bytes = sum(local(tensor).nbytes for tensor in trainer.optimizer.tensors())
            weights_bytes = model.weights_bytes()
        kinds = live.peak_kinds()
        return {
            "weights_bytes": weights_bytes,
            "optimizer_bytes": optimizer_bytes,
            **{f"{kind}_bytes": nbytes for kind, nbytes in kinds.items()},
            "most_activations_bytes": live.most("activations", "logits"),
            "peak_memory_bytes": weights_bytes + optimizer_bytes + self._peak(live),
            "step_moved_bytes": live.moved,
            "step_exchanged_bytes": live.exchanged,
            "step_flops": live.flops,
        }

    def forward_backward(self, seq_len: int, batch_size: int) -> Prediction:
        """Forward and backward over tokens (B, T + 1) that are made for it, without an optimizer."""
        with self._traced():
            model = _model(self.cell, self.config)
            tokens = torch.zeros(batch_size, seq_len + 1, dtype=torch.int64)
            forward_backward(model, tokens[:1, :2])
            with Ledger([*model.parameters(), *model.buffers()]) as ledger:
                ledger.hold([tokens])
                forward_backward(model, tokens)
        return {
            "peak_memory_bytes": model.weights_bytes() + self._peak(ledger),
            "step_moved_bytes": ledger.moved,
            "step_flops": ledger.flops,
        }

    def complexity(self, longest: int, batch_size: int) -> Prediction:
        """Peaks of a decode step, a prefill and a training step at every length of ``measure.complexity``.

        There tokens are made for each: they count.
        """
        found: Prediction = {}
        for length in lengths(longest):
            peaks = {
                "decode": self.decode(length, batch_size)["peak_memory_bytes"] + TOKEN_BYTES * batch_size,
                "prefill": self.prefill(length, batch_size)["prefill_peak_memory_bytes"]
                + TOKEN_BYTES * batch_size * length,
                "train": self.forward_backward(length, batch_size)["peak_memory_bytes"],
            }
            found |= {f"{kind}_peak_memory_bytes_at_{length}": nbytes for kind, nbytes in peaks.items()}
        return found

    def peak(self, seq_len: int, batch_size: int) -> int:
        """What must fit, from two layers: a prefill, if that is the cell's workload; else a step and making its state.

        A measured step finds its state made, so that the peak of ``decode`` is that of the step alone.
        """
        deepest = self._shallow[-1]
        counts = (self._prefill if self.cell.workload == "prefill" else self._step)(deepest, seq_len, batch_size)
        state_bytes = counts.state * self.config.n_layers // deepest.config.n_layers
        return self._of_all(LanguageModel.weights_bytes) + state_bytes + max(counts.peak, counts.making)

    def _of_all(self, count: Callable[[LanguageModel], int]) -> int:
        """What is counted of a model, of all layers."""
        first, last = count(self._shallow[0]), count(self._shallow[-1])
        return first + (self.config.n_layers - 1) * (last - first)

    def _scaled(self, shallow: list[Counts]) -> Counts:
        """Those of all layers from those of one and of two."""
        first, last = shallow[0], shallow[-1]
        more = self.config.n_layers - 1
        grown = {name: (getattr(first, name), getattr(last, name)) for name in SCALED}
        scaled = {name: one + more * (two - one) for name, (one, two) in grown.items()}
        return replace(last, **scaled)

    def _step(self, model: LanguageModel, seq_len: int, batch_size: int) -> Counts:
        """One step; its operations are those of the plain step, which a native one makes unseen."""
        with self._traced(), torch.no_grad():
            counts = self._step_counts(model, seq_len, batch_size)
            if model.decode_backend == "native":
                model.decode_backend = "torch"
                counts = replace(counts, flops=self._step_counts(model, seq_len, batch_size).flops)
                model.decode_backend = "native"
        return counts

    def _step_counts(self, model: LanguageModel, seq_len: int, batch_size: int) -> Counts:
        token = torch.zeros(batch_size, dtype=torch.int64)
        outside = [*model.parameters(), *model.buffers(), token]
        with Ledger(outside) as ledger:
            state = model.init_state(batch_size, seq_len)
        making = self._peak(ledger) - state.nbytes
        state.fill_(seq_len - 1)
        model.positions(0, 1)  # makes what a model makes once and keeps: a measured step finds it there
        held, must_move = state.nbytes, state.step_bytes()
        with Ledger(outside) as ledger:
            ledger.hold(state.tensors())
            model.step(token, state)
        work = (ledger.allocated - held, ledger.moved, ledger.flops)
        return Counts(self._peak(ledger) - state.nbytes, state.nbytes, must_move, *work, making)

    def _prefill(self, model: LanguageModel, seq_len: int, batch_size: int) -> Counts:
        with self._traced(), torch.no_grad():
            tokens = torch.zeros(batch_size, seq_len, dtype=torch.int64)
            model.positions(0, 1)
            with Ledger([*model.parameters(), *model.buffers(), tokens]) as ledger:
                _, state = model.prefill(tokens)
            work = (ledger.allocated - state.nbytes, ledger.moved, ledger.flops)
            return Counts(self._peak(ledger) - state.nbytes, state.nbytes, 0, *work)

    def _peak(self, ledger: Ledger) -> int:
        return peak_with_workspaces(ledger.peak, ledger.calls) if self._ask else ledger.peak


def predict(cell: Cell) -> Prediction:
    """Bytes and operations of what the cell's workload measures: of decode and prefill, or of training."""
    predictor, point = Predictor(cell, ask=True), (cell.seq_len, cell.batch_size)
    weights = predictor.weights()
    if cell.workload in ("train_step", "train_tokens"):
        return weights | (predictor.train(*point) if cell.training else predictor.forward_backward(*point))
    prefill = predictor.prefill(*point)
    if cell.workload == "prefill":
        return weights | prefill | {"peak_memory_bytes": prefill["prefill_peak_memory_bytes"]}
    decode = predictor.decode(*point)
    return weights | prefill | decode | (predictor.complexity(*point) if cell.workload == "complexity" else {})


def _model(cell: Cell, config: Config) -> LanguageModel:
    """The model with the weights that the cell asks for, on the current device."""
    model = from_config(config)
    if cell.quantize != "none":
        quantize_(model)
    return model
