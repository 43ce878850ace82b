"""The two versions that a gate compares: a folder each with that version's models and one instrument, this retbench.

The instrument is the same on both sides, so that a change of how we measure is never taken for a change of the models,
and so that a base from before the gate can be measured too.
"""

import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retbench.devices import Device
from retbench.environment import ROOT, capture, code_hash
from retbench.errors import UsageError
from retbench.venvs import Venv

BORROWED = shutil.ignore_patterns("__pycache__")


@dataclass(frozen=True)
class Version:
    """Where a version's packages lie, the Python that its dependencies ask for, and what its records say of it."""

    name: str
    root: Path
    python: str
    environment: dict[str, Any]

    @property
    def label(self) -> str:
        commit = str(self.environment["commit"])[:12]
        return f"{commit} with uncommitted changes" if self.environment["dirty"] else commit


def head(folder: Path, device: Device, threads: int) -> Version:
    """The working tree as it is now, copied, so that it may be edited while it is measured."""
    root = _assembled(ROOT, folder / "head")
    return Version("head", root, sys.executable, capture(device, threads))


def base(ref: str, folder: Path, device: Device, threads: int) -> Version:
    """The commit of ``ref``, by a git worktree that is gone when this returns; UsageError where there is none."""
    commit = resolve(ref)
    tree = folder / "tree"
    try:
        _git("worktree", "add", "--quiet", "--detach", str(tree), commit)
        root, python = _assembled(tree, folder / "base"), _python(tree)
    finally:
        for arguments in (("remove", "--force", str(tree)), ("prune",)):
            _run(["git", "-C", str(ROOT), "worktree", *arguments])
    environment = {**capture(device, threads), "commit": commit, "dirty": False, "code": code_hash(root)}
    return Version("base", root, python, environment)


def resolve(ref: str) -> str:
    """The commit that a ref names; UsageError where there is none, or no repository."""
    if not (ROOT / ".git").exists():
        raise UsageError(f"--base-ref needs a git checkout, which {ROOT} is not: use --baseline FILE")
    command = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}"]
    done = _run(command)
    if done.returncode:
        said = done.stderr.strip() or "a shallow clone lacks most: git fetch it first"
        raise UsageError(f"--base-ref {ref!r} is no commit of {ROOT}; {said}")
    return done.stdout.strip()


def _assembled(source: Path, target: Path) -> Path:
    """A folder with the models of ``source`` and our own retbench."""
    if not (source / "models").is_dir():
        raise UsageError(f"{source} has no folder models: there is nothing to measure")
    shutil.copytree(source / "models", target / "models", ignore=BORROWED)
    shutil.copytree(ROOT / "retbench", target / "retbench", ignore=BORROWED)
    return target


def _python(tree: Path) -> str:
    """This Python or, where a version depends on other packages, that of an environment which has them."""
    wanted = dependencies(tree)
    if wanted == dependencies(ROOT):
        return sys.executable
    venv = Venv("gate", wanted)
    venv.install()
    return str(venv.python)


def dependencies(tree: Path) -> list[str]:
    """What a version needs to run, in order; UsageError where its pyproject.toml does not say."""
    try:
        project = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))
        return sorted(project["project"]["dependencies"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{tree / 'pyproject.toml'} names no dependencies: {error}") from error


def _git(*arguments: str) -> None:
    done = _run(["git", "-C", str(ROOT), *arguments])
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise UsageError(f"git {' '.join(arguments[:2])} failed: {lines[-1]}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UsageError(f"git cannot be run: {error.strerror or error}") from error
