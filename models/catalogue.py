"""Finds the systems by reading the files of this folder; loads no torch.

A file is a system's when it assigns a literal to ``SYSTEMS``: name -> summary and config overrides. It then also
defines ``MODEL``, the class that ``build`` calls. Nothing else has to be registered.
"""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class System:
    """A row of the paper: the module that defines it and the config fields that make it."""

    name: str
    summary: str
    module: str
    overrides: dict[str, object]
    model_types: tuple[str, ...]  # of published checkpoints that load as this system


@cache
def systems() -> dict[str, System]:
    """All systems by name, in the order of the files and of their ``SYSTEMS`` literals."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for name, entry in _literal(path).items():
            overrides, model_types = entry.get("config", {}), entry.get("model_types", ())
            found[name] = System(name, entry["summary"], f"models.{path.stem}", overrides, tuple(model_types))
    return found


def _literal(path: Path) -> dict[str, dict[str, Any]]:
    """The value of ``SYSTEMS = {...}`` in a file, empty when there is none."""
    source = path.read_text(encoding="utf-8")
    if "\nSYSTEMS = " not in source:
        return {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "SYSTEMS":
            value: dict[str, dict[str, Any]] = ast.literal_eval(node.value)
            return value
    return {}
