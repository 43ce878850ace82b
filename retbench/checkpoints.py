"""Checkpoints as rows of a sweep: a name and an identity from their files, without loading them or torch.

A folder is one, or what the hub holds under a name, which is downloaded.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from models.catalogue import systems
from retbench import hub
from retbench.errors import UsageError
from retbench.learning.run import CHECKPOINT

OWN = "retbench"  # the model_type of our own checkpoints, whose config names the system


@dataclass(frozen=True)
class Checkpoint:
    """A folder with config.json and safetensors files."""

    folder: Path
    system: str  # "retnet:my-folder", so that it stands beside the built systems of its kind
    weights: str  # a hash or, of the hub's, repository and commit


def find_checkpoint(given: str | Path) -> Checkpoint:
    """Of a folder or hub:OWNER/NAME@REVISION; raises UsageError for what is no checkpoint or cannot be downloaded.

    What is wrong inside shows when it is loaded.
    """
    if not str(given).startswith(hub.PREFIX):
        folder = Path(given)
        kind, files = _inspect(folder)
        return Checkpoint(folder, f"{kind}:{_name(folder.resolve())}", _identity(folder / "config.json", files))
    found = hub.download(str(given))
    kind, _ = _inspect(found.folder)
    name = found.repository.rpartition("/")[2]
    return Checkpoint(found.folder, f"{kind}:{name}", f"{found.repository}@{found.commit}")


def _inspect(folder: Path) -> tuple[str, list[Path]]:
    """The system of a checkpoint and its files of weights."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        kind = config.get("system") if config["model_type"] == OWN else _system_of(config["model_type"])
    except OSError as error:
        raise UsageError(f"--checkpoint {folder}: cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"--checkpoint {folder}: {path} is no config with a model_type") from error
    if kind not in systems():
        known = [OWN, *(model_type for system in systems().values() for model_type in system.model_types)]
        raise UsageError(f"--checkpoint {folder}: unknown model_type; model types are {', '.join(known)}")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UsageError(f"--checkpoint {folder}: no .safetensors file in it")
    return str(kind), files


def _name(folder: Path) -> str:
    """The folder's own name or, of a checkpoint among those of a run, the run's before it: their names are alike."""
    return f"{folder.parent.name}/{folder.name}" if folder.name.startswith(CHECKPOINT) else folder.name


def _system_of(model_type: object) -> str | None:
    return next((name for name, system in systems().items() if model_type in system.model_types), None)


def _identity(config: Path, files: list[Path]) -> str:
    """A hash of the config and of each file's name, size and time of change: reading the weights would take minutes."""
    digest = hashlib.sha256(config.read_bytes())
    for file in files:
        facts = file.stat()
        digest.update(f"\0{file.name}\0{facts.st_size}\0{facts.st_mtime_ns}".encode())
    return digest.hexdigest()
