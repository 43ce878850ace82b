"""What every system is at a size: a table of facts that a child computes once and the user's cache folder keeps."""

import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from models.cache import cache_folder
from models.catalogue import systems
from retbench import plan
from retbench.environment import code_hash, sha256
from retbench.report.numbers import significant
from retbench.report.tables import Column, Entry, Table
from retbench.spec import Cell, Dtype

SEQ_LEN = 8192
DTYPE: Dtype = "bf16"

Facts = list[dict[str, Any]]  # in the order of the cells


def systems_table(sizes: Sequence[str]) -> Table:
    """Parameters, state and forms of all systems at each size, with the summaries of the systems below."""
    cells = [Cell(name, size, "decode", SEQ_LEN, 1, DTYPE, "cpu", 1) for size in sizes for name in systems()]
    columns = (
        Column("size", "size", justify="left"),
        Column("system", "system", justify="left"),
        Column("parameters", "parameters"),
        Column("state_bytes", f"state at\n{SEQ_LEN}, MiB", unit="bytes"),
        Column("training_form", "training and\nprefill", justify="left"),
        Column("decode_form", "decode", justify="left"),
    )
    rows = tuple(_row(cell, facts) for cell, facts in zip(cells, _known(cells), strict=True))
    notes = [f"state: of one sequence of {SEQ_LEN} tokens, weights in {DTYPE}"]
    notes += [f"{name}: {system.summary}" for name, system in systems().items()]
    return Table("systems", "Systems", columns, rows, tuple(notes), section=("size",))


def _row(cell: Cell, facts: dict[str, Any]) -> tuple[Entry, ...]:
    parameters, state_bytes = facts["parameters"], facts["state_bytes"]
    return (
        Entry(cell.size, cell.size),
        Entry(cell.system, cell.system),
        Entry(parameters, f"{parameters:,}"),
        Entry(state_bytes, significant(state_bytes / 2**20)),
        *(Entry(facts[form], facts[form]) for form in ("training_form", "decode_form")),
    )


def _known(cells: Sequence[Cell]) -> Facts:
    """The facts of every cell: from the cache folder where these models were asked for before, else from a child."""
    fields = [cell.to_dict() for cell in cells]
    path = cache_folder() / f"systems-{sha256([fields, code_hash(), metadata.version('torch')])[:24]}.json"
    with suppress(OSError, ValueError):
        kept: Facts = json.loads(path.read_text(encoding="utf-8"))
        return kept
    print("building every system without memory, once: a few seconds", file=sys.stderr)
    found = plan.describe(cells)
    with suppress(OSError):  # no room or no permission: the next call computes them again
        _keep(path, json.dumps(found))
    return found


def _keep(path: Path, text: str) -> None:
    """Written beside its place and renamed: others see the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as private:
        unfinished = Path(private) / path.name
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
