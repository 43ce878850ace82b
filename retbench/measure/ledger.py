"""Counts what operators do: bytes that live, are allocated and are moved, and floating point operations."""

import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten
READS_ROWS = (aten.embedding, aten.index, aten.index_select, aten.gather)  # as much as they write, of a larger tensor


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps count while operators run, on real or fake tensors; storages of ``outside`` are not counted as live.

    ``moved`` is what each operator reads and writes, as if nothing stayed in a cache between two of them. ``flops`` are
    those of matrix products, convolutions, attention (every pair of positions, seen or not, as torch counts) and FFTs.
    """

    def __init__(self, outside: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.allocated = self.moved = self.flops = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in outside}

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Counts tensors that exist already and may be dropped: keep no list of them."""
        for tensor in tensors:
            self._count(tensor.untyped_storage())

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        read = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, Tensor)]
        out = func(*args, **kwargs)
        written = [leaf for leaf in tree_iter(out) if isinstance(leaf, Tensor)]
        for tensor in written:
            self._count(tensor.untyped_storage())
        packet = func._overloadpacket  # type: ignore[attr-defined]
        self.moved += _moved(func, packet, read, written)
        if packet in FLOPS:
            self.flops += int(FLOPS[packet](*args, **kwargs, out_val=out))
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


FLOPS: dict[Any, Callable[..., Any]] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: _flash,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_backward,
    aten._fft_r2c: _fft,
    aten._fft_c2r: _fft,
    aten.mkldnn_rnn_layer: _lstm,
    aten.mkldnn_rnn_layer_backward: _lstm_backward,
}
