"""The CPU: exact tensor memory from the profiler, limits from the kernel."""

import ctypes
import gc
import os
import platform
import re
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from retbench.devices import MemoryPeak, Step
from retbench.spec import Dtype

if TYPE_CHECKING:
    from torch.profiler import profile

    from models.language_model import State

T = TypeVar("T")

MEASURED = "retbench: measured"

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of glibc's mallopt
GIVE_BACK, KEEP = (2**16, 2**16), (2**25, 2**31 - 1)  # bytes: map from, trim from


class Cpu:
    name = "cpu"
    flops_per_s = 2e11
    bytes_per_s = 4e9

    def unavailable(self) -> str | None:
        return None

    def describe(self) -> dict[str, str | int]:
        model = _cpuinfo().get("model name") or platform.processor() or platform.machine()
        return {
            "cpu": model,
            "cores": self.default_threads(),
            "memory_bytes": _meminfo().get("MemTotal", 0),
            "bf16": "native" if _has_bf16() else "emulated",
        }

    def slug(self) -> str:
        model = re.sub(r"\(r\)|\(tm\)|processor|cpu|@.*", " ", str(self.describe()["cpu"]).lower())
        return "-".join([*re.findall(r"[a-z0-9.]+", model)[:6], f"{self.default_threads()}c"])

    def free_bytes(self) -> int:
        """What the kernel says is available, or what is left of the control group's limit if that is less."""
        free = _meminfo().get("MemAvailable", 0)
        limit, used = (_read(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
        return min(free, int(limit) - int(used)) if limit.isdigit() and used.isdigit() else free

    def default_dtype(self) -> Dtype:
        return "bf16" if _has_bf16() else "fp32"

    def default_size(self) -> str:
        return "small"

    def default_threads(self) -> int:
        """Physical cores that this process may use: a second thread on a core slows both."""
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
        cores = set()
        for block in _read("/proc/cpuinfo").split("\n\n"):
            field = dict(re.findall(r"^([\w ]+?)\s*:\s*(.*)$", block, re.M))
            if int(field.get("processor", -1)) in allowed:
                cores.add((field.get("physical id"), field.get("core id", field["processor"])))
        return len(cores) or len(allowed)

    def synchronize(self) -> None:
        """Nothing to wait for: calls return when their work is done."""

    def limit_memory(self, limit_bytes: int, held_bytes: int = 0) -> None:
        """Bounds private writable memory at ``limit_bytes`` more than is not the cell's now; none is kept in store."""
        if resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY:
            self.peak_memory(lambda: None, lambda _: None)  # the profiler's own memory is not charged to the cell
        gc.collect()
        _set_malloc(GIVE_BACK)
        _fill_heap()
        held = int(re.findall(r"VmData:\s*(\d+) kB", _read("/proc/self/status"))[0]) * 1024
        most = resource.getrlimit(resource.RLIMIT_DATA)[1]  # stays, so that the next bound may be higher
        resource.setrlimit(resource.RLIMIT_DATA, (held - held_bytes + limit_bytes, most))

    def work_ns(self, run: Callable[[], object]) -> int:
        """CPU time of the process, which stands still while others have the processor."""
        from retbench.timing import sample

        return sample(run, self).cpu_ns

    def peak_memory(self, prepare: Callable[[], T], run: Callable[[T], object]) -> MemoryPeak:
        """Exact: the profiler sees every allocation of torch. VmHWM, the kernel's peak, stands beside it."""
        from torch.profiler import ProfilerActivity, profile, record_function

        gc.collect()  # garbage that is freed while bytes are counted would be taken off them
        with _memory_given_back(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            prepared = prepare()
            _reset_high_water_mark()
            with record_function(MEASURED):
                run(prepared)
            high_water = int(re.findall(r"VmHWM:\s*(\d+) kB", _read("/proc/self/status"))[0]) * 1024
        (memory,) = memory_events(profiler, [MEASURED])
        counters = {"vm_hwm_bytes": high_water, "allocated_bytes": memory.allocated()}
        return MemoryPeak(memory.before + memory.most_added(), counters)

    def faster_steps(self, model: object, state: "State") -> dict[str, Step]:
        return {}

    def energy_mj(self) -> float | None:
        return None


@dataclass(frozen=True)
class MemoryEvents:
    """Bytes that were there when a span of a profile began, and what each allocation and release in it changed."""

    before: int
    changes: tuple[int, ...]

    def most_added(self) -> int:
        """Bytes more than before when most were there, 0 if there never were more."""
        return max(accumulate(self.changes, initial=0))

    def allocated(self) -> int:
        return sum(nbytes for nbytes in self.changes if nbytes > 0)


def memory_events(profiler: "profile", marks: Sequence[str]) -> list[MemoryEvents]:
    """What a profile with its memory saw while each ``record_function(mark)``, of which there is one, was open."""
    # FunctionEvents fold allocations into their operators and lose the order: read the raw events.
    events: list[Any] = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    memory = sorted(((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"), key=lambda e: e[0])
    spans = {event.name(): (event.start_ns(), event.end_ns()) for event in events if event.name() in marks}

    def seen(begin_ns: int, end_ns: int) -> MemoryEvents:
        before = sum(nbytes for ns, nbytes in memory if ns < begin_ns)
        return MemoryEvents(before, tuple(nbytes for ns, nbytes in memory if begin_ns <= ns <= end_ns))

    return [seen(*spans[mark]) for mark in marks]


@contextmanager
def _memory_given_back() -> Iterator[None]:
    """Freed memory goes back to the kernel at once, else the high-water mark would count it twice."""
    _set_malloc(GIVE_BACK)
    try:
        yield
    finally:
        if resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY:
            _set_malloc(KEEP)


def _set_malloc(thresholds: tuple[int, int]) -> None:
    """The sizes from which glibc maps memory of its own, and from which it gives free memory back; others have none."""
    for parameter, nbytes in zip((M_MMAP_THRESHOLD, M_TRIM_THRESHOLD), thresholds, strict=True):
        _mallopt(parameter, nbytes)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def keep_one_heap() -> None:
    """To be called before ``limit_memory`` and before there are threads, which would each get a heap of their own.

    What fails in one heap is tried in another, which then stays as large and has room that no limit bounds.
    """
    _mallopt(M_ARENA_MAX, 1)


class _Heap(ctypes.Structure):
    """struct mallinfo2 of glibc."""

    NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = tuple((name, ctypes.c_size_t) for name in NAMES)


def _fill_heap() -> None:
    """Takes what is free in glibc's heap, in place of what was taken the time before.

    The kernel counts it as in use, yet malloc would serve blocks of any size from it before it asks for more.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return
    libc.mallinfo2.restype, libc.malloc.restype, libc.free.argtypes = _Heap, ctypes.c_void_p, [ctypes.c_void_p]
    while _taken:
        libc.free(_taken.pop())
    libc.malloc_trim(0)
    heap, size = libc.mallinfo2(), GIVE_BACK[0] - 64  # the largest block that is never mapped by itself
    for _ in range(heap.fordblks // size):
        block = libc.malloc(size)
        if block is None or libc.mallinfo2().arena > heap.arena:
            libc.free(block)
            break
        _taken.append(block)


_taken: list[int] = []


def _mallopt(parameter: int, value: int) -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(parameter, value)


def _reset_high_water_mark() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # not Linux, or not allowed: the mark then includes the time before


@cache
def _cpuinfo() -> dict[str, str]:
    """The first processor's fields."""
    return dict(re.findall(r"^([\w ]+?)\s*:\s*(.*)$", _read("/proc/cpuinfo").split("\n\n")[0], re.M))


def _has_bf16() -> bool:
    flags = _cpuinfo().get("flags", "").split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _meminfo() -> dict[str, int]:
    """Bytes by name; empty where there is no /proc."""
    return {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s*(\d+) kB$", _read("/proc/meminfo"), re.M)}


def _read(path: str) -> str:
    """The text of a kernel file, stripped; empty where it does not exist."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


DEVICE = Cpu()
