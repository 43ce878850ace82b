"""Checkpoints of the Hugging Face hub: config, safetensors and tokenizer files of one commit, and no code.

hub:OWNER/NAME@REVISION names one. The revision is a commit, which never changes, or a branch or tag such as main, which
stands for its commit of today; records hold the commit.
"""

import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from retbench.errors import UsageError

PREFIX = "hub:"
FORMAT = "hub:OWNER/NAME@REVISION, such as hub:fla-hub/retnet-1.3B-100B@main"
FILES = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
)


@dataclass(frozen=True)
class Snapshot:
    """The files of a repository at a commit, in a folder of the hub's own cache."""

    repository: str
    commit: str
    folder: Path


def download(text: str) -> Snapshot:
    """Fetches what the cache does not hold; raises UsageError where that fails, or ``text`` is no such name."""
    found = re.fullmatch(r"hub:([\w.-]+/[\w.-]+)@([\w./-]+)", text)
    if found is None:
        raise UsageError(f"--checkpoint {text}: give {FORMAT}")
    try:
        library = import_module("huggingface_hub")
    except ImportError as error:
        raise UsageError(f"{text} needs the package huggingface_hub: pip install 'retbench[hub]'") from error
    repository, revision = found.groups()
    try:
        folder = Path(library.snapshot_download(repository, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:  # the network and the hub may fail in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"--checkpoint {text} is neither in the cache nor can it be downloaded: {reason}") from error
    return Snapshot(repository, folder.name, folder)
