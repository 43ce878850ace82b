"""What every rank of a test of several devices does: the loss and gradients of its part, beside the whole model's."""

# B batch, T positions

import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from models.language_model import LanguageModel
from models.parallel import fully_shard_, local_bytes, tensor_parallel_
from tests.models.helpers import random_model, random_tokens

Options = dict[str, object]
Figures = dict[str, float]


def run(rank: int, world: int, folder: str, models: dict[str, tuple[str, Options]]) -> None:
    """Started ``world`` times: writes the figures of each model and way, or why it cannot, to folder/<rank>.json."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("tensor", "data"))
    found: dict[str, dict[str, Figures | str]] = {}
    for name, (system, options) in models.items():
        found[name] = {way.__name__: figures(way, mesh, system, options) for way in WAYS[world]}
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def figures(
    way: Callable[[LanguageModel, DeviceMesh], None], mesh: DeviceMesh, system: str, options: Options
) -> Figures | str:
    """Errors of the loss and of the worst gradient, and the bytes of parameters before and after."""
    whole, split = (random_model(system, vocab_size=64, **options) for _ in range(2))
    tokens = random_tokens(4, 35, vocab_size=64)  # not a multiple of any chunk
    try:
        way(split, mesh)
    except NotImplementedError as error:
        return str(error)
    readers = mesh.size() // mesh["tensor"].size() if way is not fully_shard else mesh.size()
    reader = mesh["data"].get_local_rank() if way is not fully_shard else mesh.get_rank()
    expected = loss(whole, tokens)
    own = loss(split, tokens.chunk(readers)[reader])
    mean = own.detach().clone()
    dist.all_reduce(mean)
    return {
        "loss_error": abs(mean.item() / mesh.size() - expected.item()),
        "gradient_error": gradient_error(split, whole, mesh["tensor"]),
        "bytes": local_bytes(split),
        "whole_bytes": local_bytes(whole),
    }


def tensor_parallel(model: LanguageModel, mesh: DeviceMesh) -> None:
    tensor_parallel_(model, mesh["tensor"])


def fully_shard(model: LanguageModel, mesh: DeviceMesh) -> None:
    fully_shard_(model, mesh["tensor"])


def both(model: LanguageModel, mesh: DeviceMesh) -> None:
    tensor_parallel_(model, mesh["tensor"])
    fully_shard_(model, mesh["data"])


WAYS = {2: (tensor_parallel, fully_shard), 4: (both,)}  # by the number of ranks


def loss(model: LanguageModel, tokens: Tensor) -> Tensor:
    """The mean over the tokens (B, T), with its gradients."""
    logits = model(tokens[:, :-1])
    value = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    value.backward()  # type: ignore[no-untyped-call]
    return value


def gradient_error(split: LanguageModel, whole: LanguageModel, mesh: DeviceMesh) -> float:
    """The largest difference over the parameters, each scaled to a largest gradient of 1."""
    how, worst = whole.blocks[0].mixer.split, 0.0
    for (name, part), expected in zip(split.named_parameters(), whole.parameters(), strict=True):
        assert part.grad is not None and expected.grad is not None, name
        gradient = part.grad.full_tensor() if isinstance(part.grad, DTensor) else part.grad
        if gradient.shape != expected.grad.shape:  # a part that is no DTensor
            parts = [torch.empty_like(gradient) for _ in range(mesh.size())]
            dist.all_gather(parts, gradient.contiguous(), mesh.get_group())
            gradient = torch.cat(parts)
        if split._decode_natively is False and any(f"mixer.{module}." in name for module in how().fused):
            gradient = gradient.unflatten(0, (mesh.size(), how().fused_count, -1)).transpose(0, 1).flatten(0, 2)
        error = (gradient - expected.grad).abs().max() / expected.grad.abs().max()
        worst = max(worst, error.item())
    return worst
