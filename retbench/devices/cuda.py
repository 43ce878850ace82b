"""The first CUDA GPU: NVML describes it without torch, torch's allocator measures memory."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from models.sizes import SIZES
from retbench.devices import MemoryPeak, Step
from retbench.spec import Dtype

if TYPE_CHECKING:
    from models.language_model import State

T = TypeVar("T")


class Cuda:
    name = "cuda"
    flops_per_s = 2e14
    bytes_per_s = 1e12

    def unavailable(self) -> str | None:
        try:
            self._nvml()
        except _nvml_error() as error:
            return f"NVML finds no NVIDIA GPU ({error})"
        return None

    def describe(self) -> dict[str, str | int]:
        pynvml, handle = self._nvml()
        return {
            "gpu": _text(pynvml.nvmlDeviceGetName(handle)),
            "gpu_memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
            "driver": _text(pynvml.nvmlSystemGetDriverVersion()),
        }

    def slug(self) -> str:
        return "-".join(re.findall(r"[a-z0-9]+", str(self.describe()["gpu"]).lower()))

    def free_bytes(self) -> int:
        pynvml, handle = self._nvml()
        return int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)

    def default_dtype(self) -> Dtype:
        return "bf16"

    def default_size(self) -> str:
        """The largest size up to the paper's 6.7B whose Transformer decodes batch 8 at length 8192 in this memory."""
        budget = 0.9 * self.free_bytes()
        fitting = ["tiny"]
        for name, size in SIZES.items():
            weights = 2 * (size.layer_parameters + 2 * 32000 * size.d_model)
            cache = 2 * 2 * 8 * 8192 * size.d_model * size.n_layers
            if name != "13b" and weights + cache < budget:
                fitting.append(name)
        return fitting[-1]

    def default_threads(self) -> int:
        return 1  # one thread launches the kernels

    def synchronize(self) -> None:
        import torch

        torch.cuda.synchronize()

    def limit_memory(self, limit_bytes: int, held_bytes: int = 0) -> None:
        """Bounds what torch's allocator takes in all, which is the cell's alone: what it holds is counted there."""
        import torch

        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total))

    def work_ns(self, run: Callable[[], object]) -> int:
        """Time between two events on the stream, the device idle before."""
        import torch

        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return round(1e6 * float(begin.elapsed_time(end)))

    def peak_memory(self, prepare: Callable[[], T], run: Callable[[T], object]) -> MemoryPeak:
        """Peak of what torch's allocator handed out since before ``prepare``; reserved and NVML stand beside it."""
        import torch

        before = torch.cuda.memory_allocated()
        prepared = prepare()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        allocated = _allocated_bytes()
        run(prepared)
        torch.cuda.synchronize()
        pynvml, handle = self._nvml()
        counters = {
            "allocated_bytes": _allocated_bytes() - allocated,
            "cuda_allocated_bytes": torch.cuda.max_memory_allocated(),
            "cuda_reserved_bytes": torch.cuda.max_memory_reserved(),
            "nvml_used_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).used),
        }
        return MemoryPeak(torch.cuda.max_memory_allocated() - before, counters)

    def faster_steps(self, model: object, state: "State") -> dict[str, Step]:
        from models.cuda_graph import GraphedStep
        from models.language_model import LanguageModel

        return {"cuda-graph": GraphedStep(model, state)} if isinstance(model, LanguageModel) else {}

    def energy_mj(self) -> float | None:
        pynvml, handle = self._nvml()
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
        except pynvml.NVMLError:
            return None  # not supported before Volta

    def _nvml(self) -> tuple[Any, Any]:
        """The initialised library and the handle of GPU 0; raises NVMLError where there is none."""
        import pynvml

        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)


def _nvml_error() -> type[Exception]:
    import pynvml

    error: type[Exception] = pynvml.NVMLError
    return error


def _allocated_bytes() -> int:
    """All bytes that torch's allocator has handed out so far."""
    import torch

    return int(torch.cuda.memory_stats()["allocated_bytes.all.allocated"])


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


DEVICE = Cuda()
