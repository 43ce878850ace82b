"""The figures: one file each with ``draw(records, paper) -> Figure``, and how a figure is saved."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from retbench.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 200
# Formats, with what else they would hold of the moment and the machine: the same figure gives the same bytes.
SUFFIXES: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def save_all(figures: Mapping[str, "Figure"], folder: Path) -> list[Path]:
    """``save`` of figures by their stems; raises UsageError where the folder cannot be written."""
    try:
        return [path for stem, figure in figures.items() for path in save(figure, folder, stem)]
    except OSError as error:
        raise UsageError(f"cannot write figures to {folder}: {error.strerror or error}") from error


def save(figure: "Figure", folder: Path, stem: str) -> list[Path]:
    """Write ``stem`` as every one of SUFFIXES into ``folder``, each whole or not at all.

    Raises OSError where the folder cannot be written.
    """
    from retbench.report.style import styled

    folder.mkdir(parents=True, exist_ok=True)
    with styled():
        figure.draw_without_rendering()  # lays it out, once for all formats: that takes longer than drawing
        figure.set_layout_engine("none")
        return [_save(figure, folder / f"{stem}.{suffix}", suffix) for suffix in SUFFIXES]


def _save(figure: "Figure", path: Path, suffix: str) -> Path:
    """Through a file beside it and a rename, so that a reader never sees half a figure."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=f".{suffix}")
    os.close(handle)
    try:
        _print(figure, name, suffix)
        Path(name).chmod(0o644)  # mkstemp gives 0600
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def _print(figure: "Figure", name: str, suffix: str) -> None:
    """Draws it once; ``savefig`` would draw it twice, to lay it out again."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    dpi, metadata = figure.dpi, SUFFIXES[suffix]
    try:
        figure.dpi = DPI
        if suffix == "png":
            FigureCanvasAgg(figure).print_png(name, metadata=metadata)  # type: ignore[no-untyped-call]
        elif suffix == "svg":
            FigureCanvasSVG(figure).print_svg(name, metadata=metadata)  # type: ignore[no-untyped-call]
        else:
            FigureCanvasPdf(figure).print_pdf(name, metadata=metadata)  # type: ignore[no-untyped-call]
    finally:
        figure.dpi = dpi
