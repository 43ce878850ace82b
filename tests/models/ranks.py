"""What every rank of a test of several devices does: the loss and gradients of its part, beside the whole model's."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from models.language_model import LanguageModel
from models.parallel import fully_shard_, tensor_parallel_
from models.precision import Float32Module
from tests.models.helpers import random_model, random_tokens, read

VOCAB_SIZE = 64  # even, as the number of ranks


@dataclass(frozen=True)
class Case:
    """A model, and how many ranks repeat it, share out its parameters, and share out its heads."""

    system: str
    replicas: int = 1
    shards: int = 1
    tensor: int = 1
    options: dict[str, object] = field(default_factory=dict)
    chunked: bool = False
    checkpointing: bool = False
    mixed: bool = False  # what a bf16 model keeps in float32 is in float64, the rest in float32


def run(rank: int, world: int, folder: str, cases: list[Case]) -> None:
    """Started ``world`` times: writes what ``measure`` finds of each case to folder/<rank>.json."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    found = [measure(case) for case in cases]
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def measure(case: Case) -> dict[str, float] | str:
    """Errors of the loss, the worst gradient and what is decoded, and bytes of parameters; or why it cannot be."""
    names = ("replicas", "shards", "tensor")
    mesh = init_device_mesh("cpu", (case.replicas, case.shards, case.tensor), mesh_dim_names=names)
    whole, split = (random_model(case.system, **{"vocab_size": VOCAB_SIZE, **case.options}) for _ in range(2))
    for module in (part for model in (whole, split) if case.mixed for part in model.float().modules()):
        if isinstance(module, Float32Module):
            module.double()
    try:
        if case.tensor > 1:
            tensor_parallel_(split, mesh["tensor"])
        if case.replicas * case.shards > 1:
            fully_shard_(split, mesh["replicas", "shards"] if case.replicas > 1 else mesh["shards"])
    except NotImplementedError as error:
        return str(error)
    whole.checkpointing = split.checkpointing = case.checkpointing
    tokens = random_tokens(4, 35, vocab_size=VOCAB_SIZE)  # not a multiple of any chunk
    expected = whole.loss(tokens)
    expected.backward()  # type: ignore[no-untyped-call]
    own = split.loss(tokens.chunk(case.replicas * case.shards)[dist.get_rank() // case.tensor], case.chunked)
    own.backward()  # type: ignore[no-untyped-call]
    mean = own.detach() / dist.get_world_size()
    dist.all_reduce(mean)
    decoded = 0.0
    if case.replicas * case.shards == 1:
        of_split, of_whole = (read(model, tokens[:, :9], [5]) for model in (split, whole))
        decoded = (of_split - of_whole).abs().max().item()
    return {
        "loss_error": (mean - expected).abs().item(),
        "gradient_error": gradient_error(split, whole, mesh["tensor"]),
        "decode_error": decoded,
        "bytes": split.weights_bytes(),
        "whole_bytes": whole.weights_bytes(),
    }


def gradient_error(split: LanguageModel, whole: LanguageModel, mesh: DeviceMesh) -> float:
    """The largest difference over the parameters, each scaled to a largest gradient of 1."""
    errors = []
    for (name, part), expected in zip(split.named_parameters(), whole.parameters(), strict=True):
        assert part.grad is not None and expected.grad is not None, name
        gradient = gathered(part.grad, expected.grad.shape, mesh)
        if mesh.size() > 1 and ".mixer." in name:
            how = whole.blocks[0].mixer.split()
            if name.split(".")[3] in how.fused:
                gradient = gradient.unflatten(0, (mesh.size(), how.fused_count, -1)).transpose(0, 1).flatten(0, 2)
        errors.append(((gradient - expected.grad).abs().max() / expected.grad.abs().max()).item())
    return max(errors)


def gathered(part: Tensor, shape: torch.Size, mesh: DeviceMesh) -> Tensor:
    """The whole of a DTensor, or of the ranks' plain parts of a tensor of that shape."""
    plain = part.full_tensor() if isinstance(part, DTensor) else part
    if plain.shape == shape:
        return plain
    parts = [torch.empty_like(plain) for _ in range(mesh.size())]
    dist.all_gather(parts, plain.contiguous(), mesh.get_group())
    return torch.cat(parts)
