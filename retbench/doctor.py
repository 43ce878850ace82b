"""Says what of this machine decides the numbers: versions, devices, clocks, load, and what is not installed.

With --aa it measures how well a gate would work here: one system against itself.
"""

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from retbench import __version__
from retbench.compare import Format, check_format
from retbench.devices import devices
from retbench.environment import child_variables
from retbench.quantities import format_bytes, parse_duration

if TYPE_CHECKING:
    from retbench.report.tables import Table

CPU_FILES = Path("/sys/devices/system/cpu")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")

# Modules that may be missing, how they are installed, and what is lost without them.
OPTIONAL = {
    "fla": ("pip install 'retbench[cuda]'", "on CUDA, retention by plain torch instead of fla-core's kernels"),
    "flash_attn": ("pip install 'retbench[cuda]'", "on CUDA, attention by torch's sdpa instead of flash-attn"),
    "tokenizers": ("pip install 'retbench[text]'", "no tokenizer.json: generate reads bytes or SentencePiece only"),
    "sentencepiece": ("pip install 'retbench[text]'", "no SentencePiece: generate reads bytes or tokenizer.json only"),
    "lm_eval": ("pip install 'retbench[eval]'", "no evaluation by lm-eval"),
}

Judgement = Literal["ok", "note", "warning"]
AaTime = Annotated[
    str, typer.Option("--aa", help="Time for a system against itself, such as 60s; not done by default.")
]


@dataclass(frozen=True)
class Finding:
    """Something of the machine, whether it is well, and what it means for the numbers."""

    name: str
    found: str
    judgement: Judgement = "ok"
    meaning: str = ""


def command(aa: AaTime = "", output_format: Format = "table") -> None:
    check_format(output_format)
    budget_s = parse_duration(aa, "--aa") if aa else None

    from retbench.report.tables import Format as TableFormat
    from retbench.report.tables import render

    tables = [findings_table(list(findings()))]
    if budget_s is not None:
        from retbench.self_comparison import compare_with_itself, self_table

        tables.append(self_table(compare_with_itself(budget_s)))
    render(tables, cast(TableFormat, output_format), sys.stdout)


def findings() -> Iterator[Finding]:
    """All that is looked at, in the order in which it is shown."""
    yield from _versions()
    yield from _devices()
    yield from _clocks()
    yield from _room()
    yield Finding("threads and malloc", ", ".join(f"{key}={value}" for key, value in child_variables(1).items()))
    yield from _tools()


def findings_table(found: list[Finding]) -> "Table":
    """One row a finding, warnings in red."""
    from retbench.report.tables import Column, Entry, Table

    columns = tuple(
        Column(name, name.capitalize(), justify="left") for name in ("what", "found", "judgement", "meaning")
    )
    rows = tuple(
        (
            Entry(one.name, one.name),
            Entry(one.found, one.found),
            Entry(one.judgement, one.judgement, failed=one.judgement == "warning"),
            Entry(one.meaning or None, one.meaning),
        )
        for one in found
    )
    return Table("env", "This machine", columns, rows)


def _versions() -> Iterator[Finding]:
    from retbench.devices.cpu import DEVICE as CPU
    from retbench.environment import capture

    environment = capture(CPU, 1)
    dirty = " with uncommitted changes" if environment["dirty"] else ""
    yield Finding("retbench", f"{__version__}, commit {str(environment['commit'])[:12]}{dirty}")
    yield Finding("python", f"{platform.python_version()} ({sys.executable})")
    yield Finding("torch", metadata.version("torch"))
    yield Finding("system", f"{platform.system()} {platform.release()}")


def _devices() -> Iterator[Finding]:
    for name, device in devices().items():
        reason = device.unavailable()
        if reason:
            yield Finding(name, f"not available: {reason}", "note", "cells run on the CPU")
        else:
            yield Finding(name, ", ".join(f"{key} {value}" for key, value in device.describe().items()))


def _clocks() -> Iterator[Finding]:
    governor = _read(CPU_FILES / "cpu0" / "cpufreq" / "scaling_governor")
    if governor is None:
        yield Finding("governor", "not told", "note", "clock rates cannot be seen: a virtual machine, or no Linux")
    else:
        steady = governor == "performance"
        meaning = "" if steady else "clock rates follow the load: cpupower frequency-set -g performance"
        yield Finding("governor", governor, "ok" if steady else "warning", meaning)
    if _read(CPU_FILES / "intel_pstate" / "no_turbo") == "0" or _read(CPU_FILES / "cpufreq" / "boost") == "1":
        yield Finding("turbo", "on", "note", "clock rates depend on heat and on the neighbours")
    if _read(CPU_FILES / "smt" / "active") == "1":
        yield Finding("hyper-threads", "on", "note", "what runs on the other thread of a core slows the measured one")


def _room() -> Iterator[Finding]:
    from retbench.devices.cpu import DEVICE as CPU

    load, cores = os.getloadavg()[0], CPU.default_threads()
    busy = load > 0.5
    yield Finding(
        "load", f"{load:.1f} on {cores} cores", "warning" if busy else "ok", "others disturb it" if busy else ""
    )
    yield Finding("free memory", format_bytes(CPU.free_bytes()))
    limit = (_read(CPU_LIMIT) or "max").split()
    if limit[0] != "max":
        share = int(limit[0]) / int(limit[1])
        yield Finding("CPU limit", f"{share:g} processors", "warning", "the group is stopped when it has used them up")
    pages = _read(HUGE_PAGES)
    if pages is not None:
        never = "[never]" in pages
        yield Finding("huge pages", pages, "note" if never else "ok", "more TLB misses over weights" if never else "")


def _tools() -> Iterator[Finding]:
    from models.native.library import COMPILERS

    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    lost = "decode steps and products of bf16 are computed by torch, not in native code; docs/performance.md"
    yield Finding("C++ compiler", compiler or "none", "ok" if compiler else "warning", "" if compiler else lost)
    git = shutil.which("git")
    yield Finding("git", git or "none", "ok" if git else "note", "" if git else "no gate against a commit")
    for module, (install, lost) in OPTIONAL.items():
        there = importlib.util.find_spec(module) is not None
        found, meaning = ("installed", "") if there else ("not installed", f"{lost}; {install}")
        yield Finding(module, found, "ok" if there else "note", meaning)


def _read(path: Path) -> str | None:
    """The text of a kernel file, None where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return None
