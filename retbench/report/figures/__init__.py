"""The figures: one file each with ``draw(records, paper) -> Figure``, and how a figure is saved."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 200
# Formats, with what else they would hold of the moment and the machine: the same figure gives the same bytes.
SUFFIXES: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def save(figure: "Figure", folder: Path, stem: str) -> list[Path]:
    """Write ``stem`` as every one of SUFFIXES into ``folder``, each whole or not at all.

    Raises OSError where the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [_save(figure, folder / f"{stem}.{suffix}", suffix) for suffix in SUFFIXES]


def _save(figure: "Figure", path: Path, suffix: str) -> Path:
    """Through a file beside it and a rename, so that a reader never sees half a figure."""
    from retbench.report.style import styled

    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=f".{suffix}")
    os.close(handle)
    try:
        with styled():
            figure.savefig(name, format=suffix, dpi=DPI, metadata=SUFFIXES[suffix])
        Path(name).chmod(0o644)  # mkstemp gives 0600
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
    return path
