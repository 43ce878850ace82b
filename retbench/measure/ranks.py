"""The child's side of several ranks: the process group, each rank's part of the model, common decisions."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from models.parallel import fully_shard_, tensor_parallel_
from retbench.ranks import RUN_LASTS
from retbench.spec import Training

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from models.language_model import LanguageModel


def join_group(device: str, group: str) -> None:
    """Meets the other ranks of ``group``, a name that nothing else of the run has, where torchrun says.

    From then on this process ends as soon as the group has failed on another rank: it would wait for it in vain.
    Raises RuntimeError where there are more ranks on this machine than GPUs.
    """
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    if device == "cuda":
        local_rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= gpus:
            raise RuntimeError(f"each rank needs a GPU of its own, and this machine has {gpus}")
        torch.cuda.set_device(local_rank)
    threading.Thread(target=_end_with, args=(f"{group}/failed",), daemon=True).start()
    store, rank, world = next(rendezvous("env://"))
    backend = "nccl" if device == "cuda" else "gloo"
    prefixed = PrefixStore(group, store)
    # A slower rank is waited for; the thread above ends the wait for one that has gone.
    distributed.init_process_group(backend, timeout=RUN_LASTS, store=prefixed, rank=rank, world_size=world)


def _end_with(key: str) -> None:
    """Waits until the key is in the store, over a connection of its own, and ends the process."""
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://"))
    store.wait([key], RUN_LASTS)
    os._exit(1)


def keep_part_(model: "LanguageModel", device: str, training: Training) -> None:
    """Leaves of the whole model what this rank computes and keeps."""
    share_(model, training, mesh_of(training, device))


def mesh_of(training: Training, device: str) -> "DeviceMesh":
    """The ranks by what they do: repeat the model, share its parameters out, share its heads out.

    Ranks that share heads stand next to each other. Without FSDP the model is repeated over the data-parallel ranks:
    FSDP over one rank alone, whose gradients are averaged with those of the others.
    """
    from torch.distributed.device_mesh import init_device_mesh

    readers = training.data_parallel
    shape = (1, readers, training.tensor_parallel) if training.fsdp else (readers, 1, training.tensor_parallel)
    return init_device_mesh(device, shape, mesh_dim_names=("replicas", "shards", "tensor"))


def share_(model: "LanguageModel", training: Training, mesh: "DeviceMesh") -> None:
    """Leaves of the whole model what this rank computes and keeps."""
    if training.tensor_parallel > 1:
        tensor_parallel_(model, mesh["tensor"])
    if training.data_parallel > 1:
        fully_shard_(model, mesh["shards"] if training.fsdp else mesh["replicas", "shards"])


def reader(training: Training) -> int:
    """Which of the data-parallel readers of tokens this rank belongs to."""
    return distributed.get_rank() // training.tensor_parallel


@contextmanager
def first_of(training: Training) -> Iterator["DeviceMesh | None"]:
    """Makes this process the first of the ranks that a step needs, without the others: for models of fake tensors.

    No rank needs more memory than the first, which has the longer part of what cannot be cut evenly. Where one rank is
    all, there is no mesh.
    """
    if training.ranks == 1:
        yield None
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=training.ranks)
    try:
        with _whole_shapes_uncounted():
            yield mesh_of(training, "cpu")
    finally:
        distributed.destroy_process_group()


@contextmanager
def _whole_shapes_uncounted() -> Iterator[None]:
    """DTensor learns the shape of a whole result from fake tensors: here they must not count as a rank's own."""
    from torch.distributed.tensor._sharding_prop import ShardingPropagator
    from torch.utils._python_dispatch import _disable_current_modes

    plain = ShardingPropagator._propagate_tensor_meta_non_cached

    def uncounted(*arguments: Any) -> Any:
        with _disable_current_modes():
            return plain(*arguments)

    ShardingPropagator._propagate_tensor_meta_non_cached = uncounted  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        ShardingPropagator._propagate_tensor_meta_non_cached = plain  # type: ignore[method-assign]


def agreed(decision: bool) -> bool:
    """The decision of rank 0: ranks that went separate ways would wait for each other for ever."""
    if not distributed.is_available() or not distributed.is_initialized():
        return decision
    decisions = [decision]
    distributed.broadcast_object_list(decisions, src=0)
    return decisions[0]


def meet() -> None:
    """Returns when every rank has called it."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()


def averaged(value: Tensor) -> Tensor:
    """The mean over the ranks of a scalar, in place; itself where there are none."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(value)
        value /= distributed.get_world_size()
    return value


def leave_group() -> None:
    """Where all went well; a process that fails ends without it, since the others may not be there any more."""
    distributed.destroy_process_group()
