"""Where this user's machine keeps what is slow to make: built libraries, environments of peers, facts of systems."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder, made by whoever first writes to it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retbench"
