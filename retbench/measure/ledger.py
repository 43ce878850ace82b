"""Counts what operators do: bytes that live, are allocated and are moved, and floating point operations."""

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    is_traceable_wrapper_subclass,
    is_traceable_wrapper_subclass_type,
)
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from models.linear import ONEDNN
from retbench.measure.workspace import LIBRARIES, OURS, Call

aten = torch.ops.aten
READS_ROWS = (aten.embedding, aten.index, aten.index_select, aten.gather)  # as much as they write, of a larger tensor
COLLECTIVES = ("c10d", "_c10d_functional")  # namespaces of what ranks do together
WAIT, WRAP = "wait_tensor", "_wrap_tensor_autograd"  # of them, what exchanges nothing


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps count while operators run, on real or fake tensors; storages of ``outside`` are not counted as live.

    ``moved`` is what each operator reads and writes, as if nothing stayed in a cache between two of them. ``flops`` are
    those of matrix products, convolutions, attention (every pair of positions, seen or not, as torch counts) and FFTs.
    ``exchanged`` are bytes of the tensors that ranks reduce, gather or scatter together, each counted whole and once.
    ``calls`` are those of operators that libraries compute, each with the most bytes that were live when it began.
    """

    def __init__(self, outside: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.allocated = self.moved = self.flops = self.exchanged = 0
        self.calls: dict[Call, int] = {}
        self._sizes = {storage._cdata: storage.nbytes() for storage in (x.untyped_storage() for x in outside)}

    def __enter__(self) -> Self:
        self._plain_resize = torch.UntypedStorage.resize_
        # FSDP frees and makes gathered weights so, which no operator shows.
        resized: Any = lambda storage, nbytes: self._resize(storage, nbytes)  # noqa: E731 - a function would be typed
        torch.UntypedStorage.resize_ = resized  # type: ignore[method-assign]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.UntypedStorage.resize_ = self._plain_resize  # type: ignore[method-assign]

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Counts tensors that exist already and may be dropped: keep no list of them."""
        for tensor in tensors:
            self._count(tensor.untyped_storage())

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(map(is_traceable_wrapper_subclass_type, types)):
            return NotImplemented  # what a DTensor makes of its parts is counted
        kwargs = kwargs or {}
        read = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
        packet = func._overloadpacket  # type: ignore[attr-defined]
        began = self.live
        # Of a fake tensor torch would make another one, where a real one is only waited for.
        is_there = packet.__name__ == WAIT and isinstance(args[0], FakeTensor)
        out = args[0] if is_there else func(*args, **kwargs)
        written = [
            leaf for leaf in tree_iter(out) if isinstance(leaf, Tensor) and not is_traceable_wrapper_subclass(leaf)
        ]
        for tensor in written:
            self._count(tensor.untyped_storage())
        self.moved += _moved(func, packet, read, written)
        formula = FLOPS.get(packet) or flop_registry.get(packet)
        flops = int(formula(*args, **kwargs, out_val=out)) if formula else 0
        self.flops += flops
        if packet in LIBRARIES or func.namespace == OURS:  # type: ignore[attr-defined]
            call = Call.of(func, (args, kwargs), flops)
            self.calls[call] = max(began, self.calls.get(call, 0))
        if func.namespace in COLLECTIVES and packet.__name__ not in (WAIT, WRAP):  # type: ignore[attr-defined]
            self.exchanged += max((tensor.nbytes for tensor in (*read, *written)), default=0)
        return out

    def _count(self, storage: torch.UntypedStorage, already: int = 0) -> None:
        """Follows a storage from now on; bytes that were there ``already`` are not counted."""
        address = storage._cdata
        if address not in self._sizes:
            self._sizes[address] = already
            self._change(address, storage.nbytes())
            weakref.finalize(storage, self._free, address)

    def _resize(self, storage: torch.UntypedStorage, nbytes: int) -> object:
        self._count(storage, already=storage.nbytes())
        done = self._plain_resize(storage, nbytes)
        self._change(storage._cdata, storage.nbytes())
        return done

    def _change(self, address: int, nbytes: int) -> None:
        """A storage that has so many bytes now."""
        grown = nbytes - self._sizes[address]
        self._sizes[address] = nbytes
        self.live += grown
        self.allocated += max(grown, 0)
        self.peak = max(self.peak, self.live)

    def _free(self, address: int) -> None:
        self._change(address, 0)
        del self._sizes[address]


def _moved(func: Any, packet: Any, read: Sequence[Tensor], written: Sequence[Tensor]) -> int:
    """Bytes that one operator reads and writes; a view and an allocation move none."""
    sources = {tensor.untyped_storage()._cdata for tensor in read}
    is_view = not func._schema.is_mutable and all(x.untyped_storage()._cdata in sources for x in written)
    if is_view or "empty" in packet.__name__:
        return 0
    results = sum(tensor.nbytes for tensor in written)
    return 2 * results if packet in READS_ROWS else results + sum(tensor.nbytes for tensor in read)


def _flash(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    """Of the CPU's FlashAttention, which torch's registry lacks: q, k, v (B, H, T or S, K)."""
    return int(sdpa_flop_count(q.shape, k.shape, v.shape))  # type: ignore[no-untyped-call]


def _flash_backward(grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    """Five products where a backward pass that kept the scores has four."""
    return int(sdpa_backward_flop_count(grad_out.shape, q.shape, k.shape, v.shape))  # type: ignore[no-untyped-call]


def _fft(x: Tensor, dim: Sequence[int], *_: Any, out_val: Tensor, **__: Any) -> int:
    """2.5 N log2 N for each transform of N real numbers, the usual count of a split radix."""
    (axis,) = dim
    length = max(x.shape[axis], out_val.shape[axis])
    transforms = max(x.numel(), out_val.numel()) // length
    return round(2.5 * length * math.log2(length)) * transforms if length > 1 else 0


def _lstm(x: Tensor, w: Tensor, u: Tensor, *_: Any, **__: Any) -> int:
    """Of one layer: x (T, B, D) through W and U (4 D, D)."""
    return 2 * x.shape[0] * x.shape[1] * (w.numel() + u.numel())


def _lstm_backward(x: Tensor, w: Tensor, u: Tensor, *_: Any, **__: Any) -> int:
    return 2 * _lstm(x, w, u)


def _linear(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """x (N, I) times the transpose of weight (O, I)."""
    return 2 * x.numel() * len(weight)


FLOPS: dict[Any, Callable[..., Any]] = {  # of operators that torch does not count
    aten._scaled_dot_product_flash_attention_for_cpu: _flash,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_backward,
    aten._fft_r2c: _fft,
    aten._fft_c2r: _fft,
    ONEDNN: _linear,
    aten.mkldnn_rnn_layer: _lstm,
    aten.mkldnn_rnn_layer_backward: _lstm_backward,
}
