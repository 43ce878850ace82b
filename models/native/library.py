"""Compiles the C++ beside it once with the machine's own compiler, keeps it in the user's cache folder and loads it."""

import ctypes
import hashlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from models.cache import cache_folder

SOURCES = sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in (".cpp", ".h"))
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread"),
    *("-ffp-contract=fast", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"),
)
COMPILE_TIMEOUT_S = 300


class UnavailableError(Exception):
    """Why there is no native code here, in words."""


def library() -> ctypes.CDLL | UnavailableError:
    """The loaded library, or why there is none."""
    return UnavailableError("native code is switched off") if is_switched_off() else loaded_library()


@contextmanager
def plain_code() -> Iterator[None]:
    """Within it there is no native code: torch computes everything, by the operators that it takes itself."""
    _switched_off.append(True)
    try:
        yield
    finally:
        _switched_off.pop()


def is_switched_off() -> bool:
    """Whether this runs within ``plain_code``."""
    return bool(_switched_off)


_switched_off: list[bool] = []


@cache
def loaded_library() -> ctypes.CDLL | UnavailableError:
    """As ``library``, tried once a process."""
    try:
        return _load()
    except UnavailableError as reason:
        return reason
    except (OSError, subprocess.SubprocessError) as error:
        return UnavailableError(f"native code cannot be built: {error}")


def _load() -> ctypes.CDLL:
    if sys.platform != "linux" or sys.byteorder != "little":
        raise UnavailableError(f"native code needs Linux, this is {sys.platform}")
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise UnavailableError(f"native code needs a C++ compiler: none of {', '.join(COMPILERS)} is on the path")
    name = f"native-{_key(compiler)}.so"
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        return _kept(folder / name) or _tested(_build(compiler, folder, name))
    except (OSError, subprocess.SubprocessError):  # no room or no permission: once more, for this process alone
        with tempfile.TemporaryDirectory(prefix="retbench-") as private:
            return _tested(_build(compiler, Path(private), name))  # stays loaded when its file is gone


def _kept(path: Path) -> ctypes.CDLL | None:
    """The library that an earlier process built, None where there is none or it is broken."""
    try:
        return _tested(path)
    except OSError:
        return None


def _key(compiler: str) -> str:
    """A hash of all that decides the machine code: source, flags, compiler, processor."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=COMPILE_TIMEOUT_S).stdout
    digest = hashlib.sha256("\0".join((*FLAGS, compiler, _processor())).encode() + version)
    for path in SOURCES:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:24]


def _processor() -> str:
    """What ``-march=native`` looks at: the first processor's features and model."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    fields = re.findall(r"^(?:flags|Features|vendor_id|cpu family|model|CPU [\w ]+)\s*:.*$", cpuinfo, re.MULTILINE)
    return "\n".join([platform.machine(), *fields])


def _build(compiler: str, folder: Path, name: str) -> Path:
    """Compiles into a folder of its own, then renames: others see a whole library or none."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as private:
        unfinished = Path(private) / name
        units = [str(path) for path in SOURCES if path.suffix == ".cpp"]
        command = [compiler, *FLAGS, "-o", str(unfinished), *units]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMPILE_TIMEOUT_S)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise OSError(next((line for line in lines if "error" in line), lines[0]))
        return unfinished.replace(folder / name)


def _tested(path: Path) -> ctypes.CDLL:
    """The library at ``path``, once it has shown that its products are right on this processor."""
    loaded = ctypes.CDLL(str(path))
    names = ["retbench_scratch_bytes", "retbench_step"]
    if loaded.retbench_has_tiles():
        names += [f"retbench_{of}_bytes" for of in ("retention", "retention_backward", "weight_gradient")]
    for name in names:
        getattr(loaded, name).restype = ctypes.c_int64
    if loaded.retbench_self_test():
        raise UnavailableError("native code computes wrong results on this processor: its self-test failed")
    return loaded
