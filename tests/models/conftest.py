"""What the tests of the models run in: one thread and, on request, tiles or stand-ins for CUDA graphs and packages."""

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from models import attention, fla
from models.native.tiles import refusal
from tests.models import cuda_stand_in, stand_in_packages


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Their products are small, and threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiles() -> None:
    """Skips the test where native code has no tiles."""
    reason = refusal()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def flash_attn_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for flash-attn."""
    package = ModuleType("flash_attn")
    vars(package).update(
        flash_attn_func=stand_in_packages.flash_attn_func,
        flash_attn_with_kvcache=stand_in_packages.flash_attn_with_kvcache,
    )
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    attention.flash_attn_refusal.cache_clear()


@pytest.fixture
def fla_package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for what the models import of fla-core."""
    package = ModuleType("fla.ops.simple_gla")
    vars(package).update(
        chunk_simple_gla=stand_in_packages.chunk_simple_gla,
        fused_recurrent_simple_gla=stand_in_packages.fused_recurrent_simple_gla,
    )
    monkeypatch.setitem(sys.modules, "fla.ops.simple_gla", package)
    fla.refusal.cache_clear()
    return package


@pytest.fixture
def cuda_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for CUDA graphs."""
    cuda_stand_in.install(monkeypatch)
