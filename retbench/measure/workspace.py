"""What operators of libraries take for themselves while they run, which no tensor shows: asked of them, one by one.

oneDNN orders operands anew and keeps sums of its products in float32; FlashAttention packs keys and values. How much
they take depends on shapes, the processor and the library's version: they are run by themselves on zeros and counted.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from models.linear import ONEDNN
from retbench.devices.cpu import memory_events

aten = torch.ops.aten
LIBRARIES = {  # operators that libraries compute
    aten.mm,
    aten.addmm,
    aten.bmm,
    aten.baddbmm,
    aten.convolution,
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
    ONEDNN,
}
OURS = "retbench"  # the namespace of operators of our own, which make smaller tensors inside
HALVES = (torch.bfloat16, torch.float16)  # torch's own products of float32 are made where their operands lie
MOST_FLOPS = 3e11  # of an operator that is asked: half a second where bf16 is native
MOST_BYTES = 2**28  # of its operands


@dataclass(frozen=True)
class Operand:
    """A tensor but for its values."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return torch.Size(self.size).numel() * self.dtype.itemsize

    def zeros(self) -> Tensor:
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device="cpu").zero_()


@dataclass(frozen=True)
class Call:
    """An operator and its arguments, tensors as Operands: calls that are equal take equally much."""

    operator: Any
    leaves: tuple[Any, ...]
    structure: TreeSpec = field(compare=False)
    flops: int = field(compare=False)

    @classmethod
    def of(cls, operator: Any, arguments: object, flops: int) -> Self:
        leaves, structure = tree_flatten(arguments)
        described = (
            Operand(tuple(leaf.shape), leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf
            for leaf in leaves
        )
        return cls(operator, tuple(described), structure, flops)

    @property
    def operands(self) -> list[Operand]:
        return [leaf for leaf in self.leaves if isinstance(leaf, Operand)]

    @property
    def is_asked(self) -> bool:
        is_small = self.flops <= MOST_FLOPS and sum(operand.nbytes for operand in self.operands) <= MOST_BYTES
        takes_more = self.operator._overloadpacket == ONEDNN or any(x.dtype in HALVES for x in self.operands)
        return is_small and takes_more

    def made(self) -> Callable[[], object]:
        """The call on zeros."""
        leaves = [leaf.zeros() if isinstance(leaf, Operand) else leaf for leaf in self.leaves]
        args, kwargs = tree_unflatten(leaves, self.structure)
        return partial(self.operator, *args, **kwargs)


_known: dict[tuple[int, Call], int] = {}  # by the number of threads too, each of which has memory of its own


def peak_with_workspaces(peak: int, calls: Mapping[Call, int]) -> int:
    """The peak in bytes of a trace whose calls began with so many bytes live, with what operators take for themselves.

    Of calls that would take long to ask nothing is added.
    """
    asked = [call for call in calls if call.is_asked]
    return max([peak, *(calls[call] + nbytes for call, nbytes in zip(asked, most_bytes(asked), strict=True))])


def most_bytes(calls: Sequence[Call]) -> list[int]:
    """What each takes at most at once on this CPU by as many threads as torch uses now, its result included."""
    threads = torch.get_num_threads()
    missing = [call for call in dict.fromkeys(calls) if (threads, call) not in _known]
    if missing:
        with unset_fake_temporarily(), torch.no_grad():
            _known.update(((threads, call), nbytes) for call, nbytes in zip(missing, _asked(missing), strict=True))
    return [_known[threads, call] for call in calls]


def _asked(calls: Iterable[Call]) -> list[int]:
    marks = []
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for place, call in enumerate(calls):
            run = call.made()
            marks.append(f"retbench: call {place}")
            with record_function(marks[-1]):
                run()
    return [memory.most_added() for memory in memory_events(profiler, marks)]
