"""The tensors in a checkpoint folder: model.safetensors, or shards and their index; listed, then read piece by piece.

Nothing is ever unpickled.
"""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LISTED_PROBLEMS = 20
PIECE_BYTES = 32 * 2**20  # of a file that is in memory at once
CONVERT = """
import pathlib, sys, torch, safetensors.torch
folder = pathlib.Path(sys.argv[1])
files = sorted(folder.glob("pytorch_model*.bin"))
parts = [torch.load(file, map_location="cpu", weights_only=True) for file in files]
weights = {name: tensor.clone().contiguous() for part in parts for name, tensor in part.items()}
safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
""".strip()


class CheckpointError(ValueError):
    """A folder holds no checkpoint that we can load faithfully; lists the reasons."""

    def __init__(self, where: Path, problems: list[str]) -> None:
        more = len(problems) - LISTED_PROBLEMS
        shown = [*problems[:LISTED_PROBLEMS], *([f"... and {more} more"] if more > 0 else [])]
        super().__init__(f"{where}: {shown[0]}" if len(shown) == 1 else f"{where}:\n  " + "\n  ".join(shown))


@dataclass(frozen=True)
class Stored:
    """A tensor in a file; ``dtype`` is a safetensors name such as BF16."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name} {self.shape}"

    def read(self, dtype: torch.dtype, device: str | torch.device = "cpu") -> Tensor:
        """A copy. Mapped, a tensor starts at any byte of the file, which slows products, and dies with the file."""
        copy = torch.empty(self.shape, dtype=dtype, device=device)
        rows = max(1, PIECE_BYTES * self.shape[0] // copy.nbytes)
        for start in range(0, self.shape[0], rows):
            with opened(self.file) as tensors:  # anew for each piece: closing frees the pages that were read
                copy[start : start + rows] = tensors.get_slice(self.name)[start : start + rows]
        return copy

    def equals(self, other: "Stored") -> bool:
        """Whether both hold the same values in the same dtype."""
        if (self.shape, self.dtype) != (other.shape, other.dtype):
            return False
        with opened(self.file) as ours, opened(other.file) as theirs:
            return torch.equal(ours.get_tensor(self.name), theirs.get_tensor(other.name))


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """All tensors of a folder by name, from headers alone; raises CheckpointError for files that are not whole."""
    if (folder / WEIGHTS).exists():
        return _header(folder / WEIGHTS)
    if not (folder / INDEX).exists():
        raise CheckpointError(folder, [_without_weights(folder)])
    named = _index(folder / INDEX)  # tensor -> file
    stored: dict[str, Stored] = {}
    problems = []
    for file in sorted(set(named.values())):
        for name, tensor in _header(folder / file).items():
            if named.setdefault(name, file) == file:
                stored[name] = tensor
            else:
                problems.append(f"{tensor} is in {file}, but the index says {named[name]}")
    problems += [
        f"{name} is not in {file}, but the index says so" for name, file in named.items() if name not in stored
    ]
    if problems:
        raise CheckpointError(folder, problems)
    return stored


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises CheckpointError when there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(path, ["there is no such file"]) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(path, [f"is not JSON that can be read: {error}"]) from error
    if not isinstance(values, dict):
        raise CheckpointError(path, ["is not a JSON object"])
    return values


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A mapped safetensors file; raises CheckpointError when it is truncated or none."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise CheckpointError(file, [f"is not a whole safetensors file: {error}"]) from error


def _header(file: Path) -> dict[str, Stored]:
    with opened(file) as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - it is no dict
        return {name: Stored(file, name, tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}


def _index(path: Path) -> dict[str, str]:
    """Tensor -> file name from an index whose files are all there, in its own folder."""
    named = read_json(path).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(file, str) for file in named.values()):
        raise CheckpointError(path, ["weight_map must be an object: tensor name -> file name"])
    problems = []
    for file in sorted(set(named.values())):
        if file in ("", ".", "..") or "/" in file or "\\" in file:
            problems.append(f"{file!r} is not the name of a file in this folder")
        elif not (path.parent / file).is_file():
            problems.append(f"shard {file} is missing")
    if problems:
        raise CheckpointError(path, problems)
    return named


def _without_weights(folder: Path) -> str:
    absent = f"holds neither {WEIGHTS} nor {INDEX}"
    if not any(folder.glob("pytorch_model*.bin")):
        return absent
    command = shlex.join(["python", "-c", CONVERT, str(folder)])
    return f"{absent}; pytorch_model.bin is a pickle, which is never read. Convert it once:\n{command}"
