"""One model on several devices: tensor parallelism, whole heads a rank, and FSDP, a part of every parameter a rank.

Both change a model in place, before its first forward pass and before an optimizer sees its parameters. Every rank has
built the same whole model; it keeps its part. Torch's DTensor does the splitting and the communication.
"""

# B batch, T positions, N positions of a batch, V vocabulary

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, distributed, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

    from models.language_model import LanguageModel


@dataclass(frozen=True)
class Split:
    """How the ranks of tensor parallelism share a mixer out: heads, or independent channels, stay whole.

    The names are those of the mixer's attributes, modules and parameters.
    """

    counts: tuple[str, ...]  # how many heads or channels there are: each rank has an equal number
    columns: tuple[str, ...]  # projections that give a rank's own channels, head by head, from all channels
    rows: tuple[str, ...]  # projections from a rank's own channels to all channels
    parameters: tuple[str, ...] = ()  # with a head or channel in the first dimension
    fused: tuple[str, ...] = ()  # modules among them whose first dimension is ``fused_count`` such, one after the other
    fused_count: int = 1
    only_projections: bool = True  # nothing but the columns reads the input of the mixer


def tensor_parallel_(model: "LanguageModel", mesh: "DeviceMesh") -> None:
    """Leaves to each rank of a 1-d mesh its heads, its part of each FFN and of the vocabulary; the norms stay whole.

    The model still takes all tokens (B, T) and gives all logits (B, T, V), on every rank the same.
    Raises ValueError for a number of ranks that does not divide what is shared out, and NotImplementedError where a
    system's mixer cannot be split; the model is then unchanged.
    """
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        ParallelStyle,
        PrepareModuleInput,
        RowwiseParallel,
        parallelize_module,
    )

    check_degree(model, mesh.size())
    split = model.blocks[0].mixer.split()
    plan: dict[str, ParallelStyle] = {
        "ffn.up_proj": ColwiseParallel(),
        "ffn.gate_proj": ColwiseParallel(),
        "ffn.down_proj": RowwiseParallel(),
        # Once for all projections that read it: their gradients are then added up before the ranks' are.
        "ffn": PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Replicate()),
        **{f"mixer.{name}": ColwiseParallel() for name in split.columns},
        **{f"mixer.{name}": RowwiseParallel() for name in split.rows},
    }
    if split.only_projections:
        layouts = (Replicate(), None, None)
        plan["mixer"] = PrepareModuleInput(input_layouts=layouts, desired_input_layouts=layouts)
    for block in model.blocks:
        for name in split.fused:
            _order_by_rank_(block.mixer.get_submodule(name), split.fused_count, mesh.size())
        present = {name: style for name, style in plan.items() if _has(block, name)}
        parallelize_module(block, mesh, present)
        for name in split.parameters:
            _keep_rows(block.mixer, name, mesh)
    ends = {
        "embedding": RowwiseParallel(input_layouts=Replicate()),
        "head": ColwiseParallel(use_local_output=False),
    }
    parallelize_module(model, mesh, ends)
    if model.config.tied_embeddings:
        model.head.weight = model.embedding.weight
    model.keep_part_(mesh)


def check_degree(model: "LanguageModel", degree: int) -> None:
    """Raises the errors of ``tensor_parallel_``; the model may be one of meta tensors."""
    mixer, config = model.blocks[0].mixer, model.config
    counts = {name: int(getattr(mixer, name)) for name in mixer.split().counts}
    counts |= {"d_ffn": config.d_ffn, "vocab_size": config.vocab_size}
    for name, count in counts.items():
        if count % degree:
            allowed = [n for n in range(1, 65) if all(other % n == 0 for other in counts.values())]
            raise ValueError(
                f"tensor parallelism over {degree} ranks does not divide {name} = {count} of {config.system}; "
                f"possible are {', '.join(map(str, allowed))}"
            )


def fully_shard_(model: "LanguageModel", mesh: "DeviceMesh") -> None:
    """FSDP over the last dimension of a mesh: each rank keeps a part of every parameter and gathers block by block.

    Over the first of two dimensions the model is repeated. All ranks read tokens of their own; the gradients of
    ``loss`` and ``forward`` are means over them. Call it after ``tensor_parallel_``.
    What is gathered together must be of one dtype: the few float32 parameters of a bf16 model stay whole.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    dtype = model.embedding.weight.dtype
    others = {parameter for parameter in model.parameters() if parameter.dtype != dtype}
    for parameter in others:
        parameter.register_post_accumulate_grad_hook(partial(_average_gradient, mesh))  # type: ignore[no-untyped-call]
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh, ignored_params=others)
    register_fsdp_forward_method(model, "loss")


def whole(tensor: Tensor) -> Tensor:
    """A tensor that the ranks have parts of, such as logits (..., V), on every rank; a plain one is whole."""
    found: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found


def summed_cross_entropy(logits: "DTensor", targets: Tensor) -> Tensor:
    """Logits (N, V) of which each rank has its part of the vocabulary, targets (N,) -> the sum, on every rank."""
    mesh, part = logits.device_mesh, logits.to_local()  # (N, V / ranks)
    first = mesh.get_local_rank() * part.shape[1]
    loss: Tensor = _SummedCrossEntropy.apply(part, targets - first, mesh.get_group())  # type: ignore[no-untyped-call]
    return loss


class _SummedCrossEntropy(torch.autograd.Function):
    """The logits are never gathered: what the ranks exchange is three numbers a position."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, targets: Tensor, group: distributed.ProcessGroup) -> Tensor:
        """part (N, V / ranks), targets (N,) counted from this rank's first token."""
        top = part.amax(-1, keepdim=True)  # (N, 1)
        distributed.all_reduce(top, distributed.ReduceOp.MAX, group)
        shares = (part - top).exp_()  # (N, V / ranks)
        places = targets.clamp(0, part.shape[1] - 1)[:, None]  # (N, 1)
        is_own = (places == targets[:, None]).to(part.dtype)  # (N, 1): whether the target is this rank's
        sums = torch.cat((shares.sum(-1, keepdim=True), part.gather(1, places) * is_own), dim=1)  # (N, 2)
        distributed.all_reduce(sums, group=group)
        total, of_target = sums[:, :1], sums[:, 1:]  # (N, 1) each
        ctx.save_for_backward(shares.div_(total), places, is_own)
        return (total.log() + top - of_target).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient is made where the shares are: a second backward raises RuntimeError."""
        shares, places, is_own = ctx.saved_tensors
        return shares.scatter_add_(1, places, -is_own).mul_(gradients[0]), None, None


def summed_gradient(x: Tensor, mesh: "DeviceMesh") -> Tensor:
    """x, the same on every rank; its gradient is the sum of the ranks', each of which computes a part of the model."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    return DTensor.from_local(x, mesh, [Replicate()], run_check=False).to_local(grad_placements=[Partial()])


def _average_gradient(mesh: "DeviceMesh", parameter: Tensor) -> None:
    """Of a micro-batch too: what was there before is the same on every rank, so its mean is itself."""
    gradient = cast(Tensor, parameter.grad)
    for dimension in range(mesh.ndim):
        distributed.all_reduce(gradient, group=mesh.get_group(dimension))
    gradient /= mesh.size()


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor; a plain tensor is its own."""
    # Without an import of DTensor, which takes a second, where there can be none.
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def rank() -> int:
    """This process's place among the ranks, 0 where it is alone."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors by name on the first rank, none on the others, which give their parts: every rank calls it."""
    found = {}
    for name, tensor in tensors.items():  # one at a time, so that only the first rank ever holds them all
        together = whole(tensor.detach())
        if rank() == 0:
            found[name] = together
    return found


def split_as(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor that all ranks have, split between them as ``other`` is; every rank calls it."""
    if not hasattr(other, "device_mesh"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    like = cast("DTensor", other)
    split: Tensor = distribute_tensor(tensor, like.device_mesh, like.placements)
    return split


def _has(module: nn.Module, name: str) -> bool:
    return any(name == found for found, _ in module.named_modules())


@torch.no_grad()
def _order_by_rank_(module: nn.Module, count: int, degree: int) -> None:
    """Puts the rows of a rank next to each other in parameters (count D, ...) that are ``count`` of (D, ...) in one."""
    for parameter in module.parameters():
        rows = parameter.view(count, degree, -1, *parameter.shape[1:])
        parameter.copy_(rows.transpose(0, 1).flatten(0, 2))


def _keep_rows(mixer: nn.Module, name: str, mesh: "DeviceMesh") -> None:
    """Replaces a parameter by this rank's part of its first dimension: what computes with it knows no DTensor."""
    *path, last = name.split(".")
    owner: nn.Module = reduce(getattr, path, mixer)
    parameter: nn.Parameter = getattr(owner, last)
    part = parameter.detach().chunk(mesh.size())[mesh.get_local_rank()].clone()
    setattr(owner, last, nn.Parameter(part, requires_grad=parameter.requires_grad))
