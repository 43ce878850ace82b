"""The CPU counts tensor bytes exactly and bounds memory; CUDA is described through NVML, here a stand-in of it."""

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from models import build
from retbench.devices import MemoryPeak, cpu, devices, find_device
from retbench.devices.cpu import DEVICE as CPU
from retbench.devices.cuda import DEVICE as CUDA
from retbench.environment import ROOT, child_variables
from retbench.errors import UsageError
from retbench.measure import Task, decode
from retbench.spec import Cell
from retbench.timing import Deadline
from tests.models import cuda_stand_in

pytestmark = pytest.mark.usefixtures("one_thread")

FLOAT = 4  # bytes
VOCAB, D_MODEL = 32000, 128  # of size tiny


def peak_of(prepare: Any, run: Any) -> int:
    peak: MemoryPeak = CPU.peak_memory(prepare, run)
    return peak.tensor_bytes


def floats(count: int) -> Tensor:
    return torch.empty(count)


# ---- exact memory of the CPU ----


def test_the_peak_is_that_of_what_lives_at_the_same_time() -> None:
    def run(_: None) -> None:
        first = floats(1000)
        second = floats(500)
        del first
        third = floats(700)
        del second, third
        floats(900)

    assert peak_of(lambda: None, run) == 1500 * FLOAT


def test_all_bytes_that_a_run_allocates_are_counted() -> None:
    peak = CPU.peak_memory(lambda: floats(1000), lambda _: [floats(10).nbytes for _ in range(3)])

    assert peak.counters["allocated_bytes"] == 30 * FLOAT


def test_work_on_the_cpu_is_time_of_the_processor() -> None:
    assert CPU.work_ns(lambda: time.sleep(0.05)) < 40_000_000


def test_work_on_a_gpu_is_the_time_between_two_events(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            order.append("record")

        def elapsed_time(self, end: "Event") -> float:
            assert end is not self
            return 1.5  # ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("synchronize"))

    assert CUDA.work_ns(lambda: order.append("run")) == 1_500_000
    assert order == ["synchronize", "record", "run", "record", "synchronize"]


def test_what_is_prepared_counts_while_it_lives() -> None:
    def run(prepared: list[Tensor]) -> None:
        floats(100)
        prepared.pop()  # 2000 floats are freed
        floats(300)

    assert peak_of(lambda: [floats(1000), floats(2000)], run) == 3100 * FLOAT


def test_what_is_prepared_and_freed_before_the_run_does_not_count() -> None:
    def prepare() -> Tensor:
        floats(10_000)
        return floats(1000)

    assert peak_of(prepare, lambda _: floats(10)) == 1010 * FLOAT


def test_a_run_that_allocates_nothing_has_the_peak_of_what_was_prepared() -> None:
    assert peak_of(lambda: floats(1000), lambda prepared: prepared.neg_()) == 1000 * FLOAT
    assert peak_of(lambda: [floats(1000)], lambda prepared: prepared.clear()) == 1000 * FLOAT
    assert peak_of(lambda: None, lambda _: None) == 0


def test_tensors_from_before_do_not_count() -> None:
    before = floats(10_000)

    assert peak_of(lambda: None, lambda _: before.neg()) == 10_000 * FLOAT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_bytes_follow_the_dtype(dtype: torch.dtype) -> None:
    assert peak_of(lambda: None, lambda _: torch.empty(12_345, dtype=dtype)) == 12_345 * dtype.itemsize


def test_views_and_operations_in_place_cost_nothing() -> None:
    def run(x: Tensor) -> None:
        x.view(10, 100).transpose(0, 1).neg_().relu_()

    assert peak_of(lambda: floats(1000), run) == 1000 * FLOAT


def test_temporaries_inside_an_operation_count() -> None:
    def run(x: Tensor) -> None:
        x.mT.contiguous() @ x  # the copy and the product

    assert peak_of(lambda: torch.ones(64, 32), run) == (64 * 32 + 64 * 32 + 32 * 32) * FLOAT


def test_the_kernels_mark_stands_beside_and_covers_what_was_touched() -> None:
    peak = CPU.peak_memory(lambda: None, lambda _: torch.ones(2**22))

    assert peak.tensor_bytes == 2**24
    assert peak.counters["vm_hwm_bytes"] > 2**24


HIGH_WATER = """
import torch
from retbench.devices.cpu import DEVICE

def resident():
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))

DEVICE.peak_memory(lambda: None, lambda _: None)  # the profiler's own memory
empty = resident()
stored = [torch.ones(2**20) for _ in range(40)]
del stored
print(resident() - empty)
peak = DEVICE.peak_memory(lambda: None, lambda _: [torch.ones(2**20) for _ in range(8)])
print(peak.counters["vm_hwm_bytes"] - empty)
"""


def test_the_kernels_mark_does_not_count_what_malloc_keeps_in_store() -> None:
    variables = {**os.environ, **child_variables(1)}
    done = subprocess.run(
        [sys.executable, "-c", HIGH_WATER], cwd=ROOT, env=variables, capture_output=True, text=True, check=True
    )

    stored, peak = (int(line) for line in done.stdout.splitlines())
    assert stored > 30 * 2**22
    assert peak == pytest.approx(8 * 2**22, abs=2 * 2**22)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_decode_step_of_retnet_holds_its_state_and_at_its_peak_the_head(batch_size: int) -> None:
    model = build("retnet", "tiny")
    model.decode_backend = "torch"
    model.step(torch.zeros(batch_size, dtype=torch.int64), model.init_state(batch_size, 1))  # what is made once is made
    token = torch.zeros(batch_size, dtype=torch.int64)
    n_heads, d_k = 2, 64
    state = 2 * batch_size * n_heads * d_k * 2 * d_k * FLOAT  # 2 layers, d_v = 2 d_k, whatever the length
    head = batch_size * (VOCAB + 2 * D_MODEL) * FLOAT  # logits, the residual stream and its norm
    rotation = 2 * (d_k // 2) * FLOAT

    bytes_at_peak = peak_of(lambda: model.init_state(batch_size, 512), lambda kept: model.step(token, kept))

    assert model.init_state(batch_size, 512).nbytes == state
    assert 0 <= bytes_at_peak - (state + head + rotation) < 64  # what remains is the decays of the heads


@pytest.mark.parametrize("system", ["transformer", "transformer-flash"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_decode_step_of_a_transformer_holds_its_cache_and_at_its_peak_the_head(system: str, batch_size: int) -> None:
    model, length, d_head = build(system, "tiny"), 64, 64
    model.decode_backend = "torch"
    model.step(torch.zeros(batch_size, dtype=torch.int64), model.init_state(batch_size, 1))
    token = torch.zeros(batch_size, dtype=torch.int64)
    cache = 2 * 2 * batch_size * length * D_MODEL * FLOAT  # 2 layers, keys and values
    head = batch_size * (VOCAB + 2 * D_MODEL) * FLOAT
    rotation = 2 * (d_head // 2) * FLOAT

    bytes_at_peak = peak_of(lambda: model.init_state(batch_size, length), lambda kept: model.step(token, kept))

    assert model.init_state(batch_size, length).nbytes == cache
    assert bytes_at_peak == cache + head + rotation


def test_a_concatenated_cache_holds_old_and_new_keys_at_once() -> None:
    model, length, batch_size = build("transformer-concat-cache", "tiny", vocab_size=8), 512, 4
    layer = batch_size * length * D_MODEL * FLOAT  # the keys of one layer
    token = torch.zeros(batch_size, dtype=torch.int64)

    def prepare() -> Any:
        state = model.init_state(batch_size, length)
        state.fill_(length - 1)
        return state

    bytes_at_peak = peak_of(prepare, lambda kept: model.step(token, kept))

    assert bytes_at_peak >= 5 * layer - batch_size * D_MODEL * FLOAT  # all keys and values, and one of them twice


# ---- the CPU ----

LIMITED = """
import torch
from retbench.devices.cpu import DEVICE
torch.ones(8)
DEVICE.limit_memory(256 * 2**20)
below = torch.ones(128 * 2**18)  # 128 MiB
try:
    torch.ones(256 * 2**18)  # 256 MiB more
except RuntimeError as error:
    print(str(error).splitlines()[0])
print(below.sum().item())
"""


def test_beyond_its_limit_allocation_fails_and_below_it_works() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )

    message, total = done.stdout.splitlines()
    assert "can't allocate memory" in message
    assert float(total) == 128 * 2**18


LIMITED_AGAIN = """
import torch
from retbench.devices.cpu import DEVICE
def fits(mib):
    try:
        return torch.empty(mib * 2**18) is not None
    except RuntimeError:
        return False
DEVICE.limit_memory(256 * 2**20)
kept = torch.empty(192 * 2**18)
print(fits(128))
DEVICE.limit_memory(256 * 2**20)  # what is kept is not the cell's
print(fits(128), fits(320))
DEVICE.limit_memory(256 * 2**20, kept.nbytes)  # it is
print(fits(128), fits(32))
"""


def test_a_later_limit_counts_what_the_cell_holds_and_nothing_else() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED_AGAIN], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )

    assert done.stdout.split() == ["False", "True", "False", "False", "True"]


LIMITED_WITH_HOLES = """
import torch
from retbench.devices.cpu import DEVICE, keep_one_heap
keep_one_heap()
small = [torch.empty(15 * 2**10) for _ in range(2048)]  # 120 MiB of the heap, 60 KiB each
last = torch.empty(15 * 2**10)
del small
DEVICE.limit_memory(256 * 2**20)
kept = torch.empty(248 * 2**18)
try:
    torch.empty(16 * 2**18)
except RuntimeError:
    print("refused")
"""


def test_what_is_free_in_the_heap_is_no_room_beyond_the_limit() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED_WITH_HOLES], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )

    assert done.stdout.split() == ["refused"]


def test_the_cpu_describes_itself_without_the_name_of_its_host() -> None:
    facts, slug = CPU.describe(), CPU.slug()

    assert facts.keys() == {"cpu", "cores", "memory_bytes", "bf16"}
    assert int(facts["memory_bytes"]) > 2**28
    assert facts["bf16"] in ("native", "emulated")
    assert re.fullmatch(r"[a-z0-9.]+(-[a-z0-9.]+)*-\d+c", slug)
    assert platform.node().lower() not in slug
    assert CPU.slug() == slug
    assert json.loads(json.dumps(facts)) == facts


@pytest.mark.parametrize(
    ("model", "slug"),
    [
        ("Intel(R) Core(TM) i7-8650U CPU @ 1.90GHz", "intel-core-i7-8650u"),
        ("AMD EPYC 7B13", "amd-epyc-7b13"),
        ("Intel(R) Xeon(R) Processor", "intel-xeon"),
        ("../../etc", "..-..-etc"),
    ],
)
def test_a_slug_names_the_model_and_is_one_folder(model: str, slug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_cpuinfo", lambda: {"model name": model})

    assert CPU.slug() == f"{slug}-{CPU.default_threads()}c"
    assert "/" not in CPU.slug()


def test_free_memory_is_what_the_kernel_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 2**20 < CPU.free_bytes() <= int(CPU.describe()["memory_bytes"])

    files = {"/proc/meminfo": "MemTotal: 100 kB\nMemAvailable:     50 kB"}
    monkeypatch.setattr(cpu, "_read", lambda path: files.get(path, ""))
    assert CPU.free_bytes() == 50 * 1024

    files |= {"/sys/fs/cgroup/memory.max": "20480", "/sys/fs/cgroup/memory.current": "10240"}
    assert CPU.free_bytes() == 10240

    files |= {"/sys/fs/cgroup/memory.max": "max"}
    assert CPU.free_bytes() == 50 * 1024


def test_default_threads_are_the_physical_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [f"processor\t: {n}\nphysical id\t: 0\ncore id\t\t: {n % 4}" for n in range(8)]
    monkeypatch.setattr(cpu, "_read", lambda path: "\n\n".join(blocks) if path == "/proc/cpuinfo" else "")
    for allowed, expected in (({*range(8)}, 4), ({0, 4}, 1), ({0, 1, 5}, 2), ({3}, 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, allowed=allowed: allowed)

        assert CPU.default_threads() == expected


def test_a_machine_whose_cores_are_not_told_counts_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_read", lambda path: "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})

    assert CPU.default_threads() == 3


@pytest.mark.parametrize(("flags", "dtype"), [("avx512_bf16", "bf16"), ("amx_bf16 sse", "bf16"), ("avx2", "fp32")])
def test_bf16_is_the_default_where_the_cpu_computes_it(flags: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_cpuinfo", lambda: {"flags": flags})

    assert CPU.default_dtype() == dtype


def test_the_cpu_is_always_there_and_tells_no_energy() -> None:
    assert CPU.unavailable() is None
    assert CPU.energy_mj() is None
    assert CPU.default_size() == "small"


# ---- CUDA through a stand-in of NVML ----


class NVMLError(Exception):
    """As the library's own: the base of all its errors."""


@dataclass
class Nvml:
    """A machine with one GPU, or with none."""

    name: str | bytes = "NVIDIA A100-SXM4-80GB"
    total: int = 80 * 2**30
    free: int = 79 * 2**30
    energy_mj: int | None = 5_000
    missing: str | None = None
    initialised: int = field(default=0)

    NVMLError = NVMLError

    def nvmlInit(self) -> None:  # noqa: N802
        if self.missing:
            raise NVMLError(self.missing)
        self.initialised += 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        assert self.initialised
        return f"handle {index}"

    def nvmlDeviceGetName(self, handle: str) -> str | bytes:  # noqa: N802
        assert handle == "handle 0"
        return self.name

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:  # noqa: N802
        assert handle == "handle 0"
        return SimpleNamespace(total=self.total, free=self.free, used=self.total - self.free)

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "550.54.15"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        assert handle == "handle 0"
        if self.energy_mj is None:
            raise NVMLError("Not Supported")
        return self.energy_mj


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    stand_in = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", stand_in)
    return stand_in


def test_a_gpu_is_described_by_nvml(nvml: Nvml) -> None:
    assert CUDA.unavailable() is None
    assert CUDA.describe() == {"gpu": nvml.name, "gpu_memory_bytes": 80 * 2**30, "driver": "550.54.15"}
    assert CUDA.slug() == "nvidia-a100-sxm4-80gb"
    assert CUDA.free_bytes() == 79 * 2**30
    assert (CUDA.default_dtype(), CUDA.default_threads()) == ("bf16", 1)


def test_a_name_in_bytes_as_older_drivers_gave_it_is_text(nvml: Nvml) -> None:
    nvml.name = b"Tesla T4"

    assert CUDA.describe()["gpu"] == "Tesla T4"
    assert CUDA.slug() == "tesla-t4"


@pytest.mark.parametrize(
    ("free_gib", "size"), [(79, "6.7b"), (140, "6.7b"), (39, "2.7b"), (23, "1.3b"), (7, "200m"), (0.1, "tiny")]
)
def test_the_default_size_is_the_largest_whose_transformer_fits(nvml: Nvml, free_gib: float, size: str) -> None:
    nvml.free = int(free_gib * 2**30)

    assert CUDA.default_size() == size


def test_energy_is_read_where_the_gpu_tells_it(nvml: Nvml) -> None:
    assert CUDA.energy_mj() == 5_000

    nvml.energy_mj = None
    assert CUDA.energy_mj() is None


def test_auto_takes_the_gpu_where_there_is_one(nvml: Nvml) -> None:
    assert find_device("auto") is CUDA
    assert find_device("cuda") is CUDA
    assert find_device("cpu") is CPU


def test_without_a_gpu_auto_takes_the_cpu_and_cuda_is_refused_with_the_reason(nvml: Nvml) -> None:
    nvml.missing = "NVML Shared Library Not Found"

    assert find_device("auto") is CPU
    with pytest.raises(UsageError, match=re.escape("device cuda cannot be used: NVML finds no NVIDIA GPU (NVML Sh")):
        find_device("cuda")


def test_an_unknown_device_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown device 'tpu'; devices are auto, cpu, cuda"):
        find_device("tpu")


def test_a_device_is_a_file_and_its_name_is_the_files() -> None:
    found = devices()

    assert list(found) == sorted(path.stem for path in (ROOT / "retbench/devices").glob("[!_]*.py"))
    assert all(device.name == name for name, device in found.items())


def test_a_limit_beyond_the_gpus_memory_is_no_limit(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    fractions: list[float] = []
    total = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: total)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)

    CUDA.limit_memory(20 * 2**30)
    CUDA.limit_memory(800 * 2**30)

    assert fractions == [0.25, 1.0]


def noting(order: list[str], name: str, value: int | None) -> Callable[[], int | None]:
    def call() -> int | None:
        order.append(name)
        return value

    return call


def test_the_peak_on_a_gpu_is_above_what_was_there_before(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    for name, value in (
        ("memory_allocated", 1000),
        ("max_memory_allocated", 5000),
        ("max_memory_reserved", 8000),
        ("reset_peak_memory_stats", None),
        ("synchronize", None),
    ):
        monkeypatch.setattr(torch.cuda, name, noting(order, name, value))

    handed_out = iter([7000, 9500])
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: {"allocated_bytes.all.allocated": next(handed_out)})

    peak = CUDA.peak_memory(lambda: order.append("prepare"), lambda _: order.append("run"))

    own = {"cuda_allocated_bytes": 5000, "cuda_reserved_bytes": 8000, "nvml_used_bytes": 2**30}
    assert peak == MemoryPeak(4000, {"allocated_bytes": 2500, **own})
    assert order.index("memory_allocated") < order.index("prepare") < order.index("reset_peak_memory_stats")
    assert order.index("reset_peak_memory_stats") < order.index("run") < order.index("max_memory_allocated")
    assert order[order.index("run") + 1] == "synchronize"


@pytest.mark.parametrize("system", ["retnet", "transformer-flash"])
def test_on_a_gpu_a_decode_step_is_captured_and_tried_beside_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    cuda_stand_in.install(monkeypatch)
    monkeypatch.setattr(type(CPU), "faster_steps", lambda self, model, state: CUDA.faster_steps(model, state))
    cell = Cell(system, "tiny", "decode", 16, 2, "fp32", "cpu", threads=1)
    with torch.inference_mode():
        model = build(system, "tiny", vocab_size=64)
        record = next(decode.measure(model, Task(cell, CPU, Deadline(0.5), {})))

    assert record["notes"]["warm_step_ms"].keys() == {"plain", "cuda-graph"}
    assert record["cell"] in ({}, {"backend": f"{model.backend}+cuda-graph"})


def test_on_a_gpu_a_step_that_cannot_be_captured_is_measured_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_stand_in.install(monkeypatch)
    monkeypatch.setattr(type(CPU), "faster_steps", lambda self, model, state: CUDA.faster_steps(model, state))
    cell = Cell("transformer-concat-cache", "tiny", "decode", 16, 2, "fp32", "cpu", threads=1)
    with torch.inference_mode():
        record = next(decode.measure(build(cell.system, "tiny", vocab_size=64), Task(cell, CPU, Deadline(0.5), {})))

    assert record["notes"]["plain_step"] == ("a step of transformer-concat-cache cannot be captured in a CUDA graph")
    assert record["cell"] == {}
