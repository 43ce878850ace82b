"""Predictions as records: traced once, stored below results/model, read again by the report. Nothing is measured."""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from retbench import __version__, plan
from retbench.environment import code_hash, sha256
from retbench.errors import UsageError
from retbench.record import Record
from retbench.spec import Cell
from retbench.store import Store, latest, results_path

MACHINE = "model"  # the folder of results/ in which nothing was measured


def predicted(experiment: str, cells: Sequence[Cell], out: Path) -> list[Record]:
    """A record for every cell, in order; those that this code has traced before by this torch are not traced again.

    Raises UsageError where a cell cannot be predicted or a record cannot be stored.
    """
    store = Store(results_path(out, MACHINE, experiment))
    store.check_writable()
    keys = {cell: sha256([experiment, cell.to_dict(), code_hash(), metadata.version("torch")]) for cell in cells}
    known = latest(store.read().records)
    missing = [cell for cell, key in keys.items() if key not in known]
    found, problems = plan.predict(missing) if missing else ([], [])
    if problems:
        raise UsageError("; ".join(problems))
    for cell, prediction in zip(missing, found, strict=True):
        known[keys[cell]] = _record(experiment, cell, keys[cell], prediction)
        store.append(known[keys[cell]])
    return [known[keys[cell]] for cell in cells]


def _record(experiment: str, cell: Cell, key: str, prediction: dict[str, int]) -> Record:
    facts: dict[str, Any] = {"torch": metadata.version("torch"), "retbench": __version__, "code": code_hash()}
    return Record(
        experiment=experiment,
        cell=cell,
        status="ok",
        reason=None,
        key=key,
        created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        environment={"machine": MACHINE, "python": platform.python_version(), **facts},
        predicted=prediction,
    )
