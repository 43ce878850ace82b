"""The devices that cells run on, one file each; importing this package or a device's file loads no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from retbench.errors import UsageError
from retbench.spec import Dtype

if TYPE_CHECKING:
    from torch import Tensor

    from models.language_model import State

T = TypeVar("T")
Step = Callable[["Tensor"], object]  # tokens (B,), through a state that it is bound to


@dataclass(frozen=True)
class MemoryPeak:
    """Bytes that a run added at its peak, and the device's own counters beside them: ``allocated_bytes`` in all."""

    tensor_bytes: int
    counters: dict[str, int]


class Device(Protocol):
    """What differs between devices. Parent-side methods load no torch; the others run in a cell's child."""

    name: str
    flops_per_s: float  # rough figures of a core or the device, to share out time with, never to report
    bytes_per_s: float

    # parent side
    def unavailable(self) -> str | None:
        """Why cells cannot run here, None when they can."""

    def describe(self) -> dict[str, str | int]:
        """The hardware, as far as it identifies results: goes into every record's environment."""

    def slug(self) -> str:
        """A short name of the hardware for folders, without the host's name."""

    def free_bytes(self) -> int:
        """Memory that a cell may use now."""

    def default_dtype(self) -> Dtype: ...

    def default_size(self) -> str: ...

    def default_threads(self) -> int: ...

    # child side
    def synchronize(self) -> None:
        """Returns when all work that was submitted is done."""

    def limit_memory(self, limit_bytes: int, held_bytes: int = 0) -> None:
        """Bounds the cell's memory, of which it holds ``held_bytes`` now; beyond it allocation fails."""

    def work_ns(self, run: Callable[[], object]) -> int:
        """Nanoseconds of the device's work in one call, as free as can be from what others do meanwhile."""

    def peak_memory(self, prepare: Callable[[], T], run: Callable[[T], object]) -> MemoryPeak:
        """Peak bytes of the tensors made by ``prepare`` and ``run``, while ``run`` runs. Never part of a timing."""

    def faster_steps(self, model: object, state: "State") -> dict[str, Step]:
        """Other ways than ``model.step`` to step through a state, by name. Raises RuntimeError where one fails."""

    def energy_mj(self) -> float | None:
        """Millijoules that the device has used since its driver started, None where it cannot be read."""


def devices() -> dict[str, Device]:
    """All devices by name: every other file of this folder defines ``DEVICE``."""
    names = [path.stem for path in sorted(Path(__file__).parent.glob("[!_]*.py"))]
    return {name: import_module(f"retbench.devices.{name}").DEVICE for name in names}


def find_device(name: str) -> Device:
    """The device of that name, or for ``auto`` CUDA where it works and else the CPU."""
    known = devices()
    if name == "auto":
        return next((d for d in known.values() if d.name != "cpu" and d.unavailable() is None), known["cpu"])
    if name not in known:
        raise UsageError(f"unknown device {name!r}; devices are auto, {', '.join(known)}")
    reason = known[name].unavailable()
    if reason:
        raise UsageError(f"device {name} cannot be used: {reason}")
    return known[name]
