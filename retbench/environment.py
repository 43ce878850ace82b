"""The conditions of a measurement: what a child runs under, and the fingerprint that says two runs may be compared."""

import hashlib
import json
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from retbench import __version__
from retbench.devices import Device
from retbench.devices.cpu import KEEP

ROOT = Path(__file__).resolve().parent.parent

PACKAGES = ("retbench", "models", "experiments")  # records that are kept beside them change while they are made

# What changes between runs without making their numbers incomparable.
NOT_IDENTIFYING = ("commit", "dirty", "retbench", "kernel", "memory_bytes", "code")

# What a child runs and what decides its numbers; reports and the command line do not.
MEASURED_CODE = (
    "models/*.py",
    "models/native/*.*",
    "models/peers/*.py",
    "retbench/measure/*.py",
    "retbench/devices/*.py",
    "retbench/statistics.py",
    "retbench/timing.py",
    "retbench/worker.py",
)


def child_variables(threads: int) -> dict[str, str]:
    """Environment variables of every child: they change timings and memory, so they are set and recorded.

    Passive waiting: spinning barriers made contended threads up to 200x slower. Malloc thresholds: freed memory of up
    to 32 MiB is used again, where fresh pages of the kernel cost a quarter of a prefill; a pass that measures memory
    sets its own. Huge pages: fewer page faults and TLB misses for weights.
    """
    return {
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "OMP_NUM_THREADS": str(threads),
        "MALLOC_MMAP_THRESHOLD_": str(KEEP[0]),
        "MALLOC_TRIM_THRESHOLD_": str(KEEP[1]),
        "THP_MEM_ALLOC_ENABLE": "1",
    }


def capture(device: Device, threads: int) -> dict[str, Any]:
    """Hardware, versions, child variables and code, with the ``fingerprint`` of those that identify results."""
    facts: dict[str, Any] = {
        "machine": device.slug(),
        **{key: value for source in _hardware(device) for key, value in source.items()},
        "system": platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "numpy": metadata.version("numpy"),
        "retbench": __version__,
        "variables": child_variables(threads),
        "code": code_hash(),
        **_commit(),
    }
    identifying = {name: value for name, value in facts.items() if name not in NOT_IDENTIFYING}
    return {"fingerprint": sha256(identifying), **facts}


@cache
def code_hash(root: Path | None = None, patterns: tuple[str, ...] = MEASURED_CODE) -> str:
    """A hash of the source files, ours or those of ``root``, that decide what is measured and how."""
    root, digest = root or ROOT, hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in root.glob(pattern)):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _hardware(device: Device) -> list[dict[str, str | int]]:
    """The CPU always, since it launches what another device runs."""
    from retbench.devices.cpu import DEVICE as CPU

    return [CPU.describe()] if device.name == "cpu" else [CPU.describe(), device.describe()]


def _commit() -> dict[str, Any]:
    """The commit of a source checkout and whether our packages differ from it; None where there is no checkout."""
    if not (ROOT / ".git").exists():
        return {"commit": None, "dirty": None}
    variables = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=variables).stdout.strip()

    try:
        dirty = git("status", "--porcelain", "-uno", "--", *PACKAGES)
        return {"commit": git("rev-parse", "HEAD") or None, "dirty": bool(dirty)}
    except OSError:
        return {"commit": None, "dirty": None}  # git is not installed
