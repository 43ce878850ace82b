"""Finds systems, sizes and experiments by file name, and helps with names that are not there."""

import difflib
import importlib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from retbench.environment import ROOT
from retbench.errors import UsageError


def check_packages() -> None:
    """Raises UsageError when another ``models`` or ``experiments`` package shadows ours."""
    for name in ("models", "experiments"):
        found = Path(importlib.import_module(name).__file__ or "").resolve().parent
        if found != ROOT / name:
            raise UsageError(
                f"package {name!r} is imported from {found}, retbench needs {ROOT / name}: rename or move it"
            )


def experiments() -> dict[str, ModuleType]:
    """Every file of ``experiments`` that defines ``command``, by its name."""
    paths = sorted((ROOT / "experiments").glob("[!_]*.py"))
    modules = {path.stem: importlib.import_module(f"experiments.{path.stem}") for path in paths}
    return {name: module for name, module in modules.items() if hasattr(module, "command")}


def numbers_beside(file: str) -> dict[str, Any]:
    """What the .toml of the same stem says, such as the paper's numbers beside an experiment's ``__file__``."""
    return tomllib.loads(Path(file).with_suffix(".toml").read_text(encoding="utf-8"))


def choose(text: str, known: Iterable[str], what: str) -> list[str]:
    """The names of a comma-separated list, ``all`` for all; raises UsageError with a suggestion for an unknown one."""
    allowed = list(known)
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"no {what} given; {what}s are all, {', '.join(allowed)}")
    if names == ["all"]:
        return allowed
    for name in names:
        if name not in allowed:
            close = difflib.get_close_matches(name, allowed, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UsageError(f"unknown {what} {name!r}; {hint}{what}s are {', '.join(allowed)}")
    return list(dict.fromkeys(names))
