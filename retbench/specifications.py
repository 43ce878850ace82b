"""Specifications of devices that need not be here: limits of memory and speed, a data file each with its source."""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shown
from typing import Any, get_args

from retbench.errors import UsageError
from retbench.quantities import MAX_BYTES
from retbench.spec import Dtype

FOLDER = Path(__file__).parent / "devices" / "specs"
RUNS_ON = ("cpu", "cuda")
MOST_PER_S = 1e24  # bytes or operations; beyond it and below 1 a time may be too large or too small for a number
FIELDS = {
    "description": "text",
    "device": f"one of {', '.join(RUNS_ON)}",
    "memory_bytes": f"a whole number of bytes from 1 to {MAX_BYTES}",
    "bytes_per_s": f"a number from 1 to {MOST_PER_S:g}",
    "source": "text that says where the figures stand",
    "flops_per_s": f"a table with numbers from 1 to {MOST_PER_S:g} for some of {', '.join(get_args(Dtype))}",
}


@dataclass(frozen=True)
class Specification:
    """A device's limits. ``device`` says which of torch's devices cells are planned for."""

    name: str
    description: str
    device: str
    memory_bytes: int
    bytes_per_s: float  # of its memory
    flops_per_s: Mapping[Dtype, float]  # dense products
    source: str

    def peak_flops_per_s(self, dtype: Dtype) -> float:
        """Raises UsageError for a dtype that the file has no figure for."""
        if dtype not in self.flops_per_s:
            raise UsageError(f"device {self.name} has no {dtype}; its dtypes are {', '.join(self.flops_per_s)}")
        return self.flops_per_s[dtype]


def specifications() -> list[str]:
    """The names of the devices that have a file here."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find_specification(text: str) -> Specification:
    """The specification of that name, or of a file that ends in .toml; raises UsageError for another."""
    if text.endswith(".toml"):
        return read_specification(Path(text))
    if text in specifications():
        return read_specification(FOLDER / f"{text}.toml")
    close = [name for name in specifications() if text and name.startswith(text)]
    close = close or difflib.get_close_matches(text, specifications(), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    names = ", ".join(specifications())
    raise UsageError(f"unknown device {text!r}; {hint}devices are {names}, or a file ending in .toml")


def read_specification(path: Path) -> Specification:
    """The specification in a file; raises UsageError that names the file, the field and what is allowed."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # also a number of thousands of digits, or deep arrays
        raise UsageError(f"device file {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if unknown := sorted(set(data) - set(FIELDS)):
        raise UsageError(f"device file {path}: unknown field {unknown[0]!r}; fields are {', '.join(FIELDS)}")
    for field, allowed in FIELDS.items():
        if field not in data:
            raise UsageError(f"device file {path}: {field} is missing; it must be {allowed}")
        if not _allowed(field, data[field]):
            raise UsageError(f"device file {path}: {field} is {_words(data[field])}; it must be {allowed}")
    return Specification(name=path.stem, **data)


def _words(value: Any) -> str:
    try:
        return shown(value)
    except ValueError:  # Python writes no number of thousands of digits, which hexadecimal ones may have
        return "too long to show"


def _allowed(field: str, value: Any) -> bool:
    if field == "flops_per_s":
        numbers = isinstance(value, dict) and value and set(value) <= set(get_args(Dtype))
        return bool(numbers) and all(map(_is_rate, value.values()))
    if field == "device":
        return value in RUNS_ON
    if field == "memory_bytes":
        return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_BYTES
    return _is_rate(value) if field == "bytes_per_s" else isinstance(value, str) and bool(value.strip())


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= MOST_PER_S
