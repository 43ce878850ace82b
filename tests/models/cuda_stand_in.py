"""A stand-in for CUDA graphs on the CPU: what a capture records is a tape of operators that is run again on replay.

As on a GPU, a capture changes no tensor, what it computes has no values until the first replay, and asking for a value
on the host is an error. A replay runs the recorded operators on the very tensors that the capture saw.
"""

from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class StandInGraph:
    """``torch.cuda.CUDAGraph``: the recorded calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    @torch.inference_mode()
    def replay(self) -> None:
        for operator, arguments, options, outputs in self.calls:
            for old, new in zip(outputs, tensors(operator(*arguments, **options)), strict=True):
                if address(old) != address(new):  # else a view, or written in place
                    old.copy_(new)


class Capture(TorchDispatchMode):
    """``torch.cuda.graph``: records the operators of a block, then undoes what they wrote."""

    def __init__(self, graph: StandInGraph) -> None:
        super().__init__()
        self.graph = graph
        self.own: set[int] = set()  # storages that the block made
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        options = kwargs or {}
        seen = {address(tensor) for tensor in tensors((args, options))}
        for argument, given in zip(func._schema.arguments, args, strict=False):
            if argument.is_write and address(given) not in self.own | self.before.keys():
                self.before[address(given)] = given, given.clone()
        out = func(*args, **options)
        self.own |= {address(tensor) for tensor in tensors(out)} - seen
        self.graph.calls.append((func, args, options, tensors(out)))
        return out

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        for tensor, values in self.before.values():
            tensor.copy_(values)
        for tensor in (tensor for call in self.graph.calls for tensor in call[3]):
            if address(tensor) in self.own and tensor.is_floating_point():
                tensor.fill_(torch.nan)


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces what ``models.cuda_graph`` uses of ``torch.cuda``."""
    stream = SimpleNamespace(wait_stream=lambda other: None)

    stand_ins = {"Stream": lambda: stream, "current_stream": lambda: stream, "stream": nullcontext}
    for name, stand_in in {**stand_ins, "CUDAGraph": StandInGraph, "graph": Capture}.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
