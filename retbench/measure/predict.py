"""Predicts a cell's bytes without running it: the same calls on fake tensors, every live storage counted."""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from models import configure, from_config
from models.checkpoint import read_config
from models.config import Config
from models.language_model import LanguageModel, State
from models.quantization import quantize_
from retbench.measure import TORCH_DTYPES
from retbench.spec import Cell

TRACED_LAYERS = 2
UNCOUNTABLE = 2**62  # bytes of a tensor whose size torch cannot express: more than any memory


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages as operators create and drop them; those of ``outside`` do not count."""

    def __init__(self, outside: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.allocated = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in outside}

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Counts tensors that exist already and may be dropped: keep no list of them."""
        for tensor in tensors:
            self._count(tensor.untyped_storage())

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_iter(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self.live += storage.nbytes()
            self.allocated += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, storage.nbytes(), storage._cdata)

    def _free(self, nbytes: int, address: int) -> None:
        self.live -= nbytes
        self._known.discard(address)


def predict(cell: Cell) -> dict[str, int]:
    """Bytes of weights, state, a decode step's traffic, and the peaks of decode and prefill, on any device.

    Weights and states are counted on the meta device. Activations are traced on two layers: all layers are alike and
    none keeps anything but its state. The tensors pretend to be on the CPU: faking a CUDA device aborts or silently
    replaces fused attention.
    """
    torch.set_default_dtype(TORCH_DTYPES[cell.dtype])
    torch.set_num_threads(cell.threads)  # each has memory of its own in a native step
    config = (
        configure(cell.system, cell.size, **cell.overrides) if cell.checkpoint is None else read_config(cell.checkpoint)
    )
    with torch.device("meta"):
        model = _model(cell, config)
        state = model.init_state(cell.batch_size, cell.seq_len)
    state.position = cell.seq_len - 1
    state_bytes = _filled_bytes(state, cell.seq_len)
    weights_bytes = model.weights_bytes()
    with FakeTensorMode(), torch.no_grad():
        step, prefill = _activations(cell, replace(config, n_layers=min(TRACED_LAYERS, config.n_layers)))
    layers = config.n_layers / min(TRACED_LAYERS, config.n_layers)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights_bytes": weights_bytes,
        "state_bytes": state_bytes,
        "step_bytes": model.step_weights_bytes() + state.step_bytes(),
        "step_allocated_bytes": int(step.allocated * layers),
        "peak_memory_bytes": weights_bytes + state_bytes + step.peak,
        "prefill_peak_memory_bytes": weights_bytes + state_bytes + prefill.peak,
        "prefill_allocated_bytes": min(int(prefill.allocated * layers), UNCOUNTABLE),
    }


@dataclass(frozen=True)
class Activations:
    """Bytes beside weights and state: at the peak, and all that is ever allocated."""

    peak: int
    allocated: int


def _activations(cell: Cell, config: Config) -> tuple[Activations, Activations]:
    """Those of a decode step and of a prefill."""
    model = _model(cell, config)
    if cell.device != "cpu":
        model.decode_backend = "torch"
    tokens = torch.zeros(cell.batch_size, cell.seq_len, dtype=torch.int64)
    state = model.init_state(cell.batch_size, cell.seq_len)
    state.fill_(cell.seq_len - 1)
    model.positions(0, 1)  # makes what a model makes once and keeps: a measured step finds it there
    outside = [*model.parameters(), *model.buffers(), tokens]
    held_bytes = state.nbytes
    with LiveBytes(outside) as live:
        live.hold(state.tensors())
        model.step(tokens[:, 0], state)
    step, state_bytes = Activations(live.peak - state.nbytes, live.allocated - held_bytes), state.nbytes
    try:
        with LiveBytes(outside) as live:
            model.prefill(tokens)
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        return step, Activations(UNCOUNTABLE, UNCOUNTABLE)
    return step, Activations(live.peak - state_bytes, live.allocated - state_bytes)


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
