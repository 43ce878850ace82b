"""Two versions as folders: the base from a git worktree that leaves no trace, head as it is on disk."""

import shutil
import sys
from pathlib import Path

import pytest

from retbench import environment, revision
from retbench.devices.cpu import DEVICE as CPU
from retbench.errors import UsageError
from retbench.revision import base, dependencies, head, resolve
from tests.retbench.gate_fixtures import PROJECT, git, repository

__all__ = ["repository"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "work"
    path.mkdir()
    return path


def models(root: Path) -> str:
    return (root / "models" / "__init__.py").read_text()


def worktrees(repository: Path) -> int:
    return len(git(repository, "worktree", "list").splitlines())


def test_base_and_head_are_folders_with_their_own_models(repository: Path, folder: Path) -> None:
    (repository / "models" / "__init__.py").write_text("# edited\n")

    old, new = base("main~1", folder, CPU, 1), head(folder, CPU, 1)

    assert (models(old.root), models(new.root)) == ("# first\n", "# edited\n")
    assert all((version.root / "retbench").is_dir() for version in (old, new))
    assert (old.name, old.python, old.environment["commit"]) == ("base", sys.executable, resolve("main~1"))
    assert old.environment["code"] != new.environment["code"]


def test_head_may_be_edited_while_it_is_measured(repository: Path, folder: Path) -> None:
    version = head(folder, CPU, 1)

    (repository / "models" / "__init__.py").write_text("# edited\n")

    assert models(version.root) == "# second\n"


def test_no_worktree_is_left(repository: Path, folder: Path) -> None:
    base("main", folder, CPU, 1)

    assert worktrees(repository) == 1
    assert not (folder / "tree").exists()


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError("disk full"), SystemExit(143)], ids=repr)
def test_whatever_interrupts_it_no_worktree_is_left(
    failure: BaseException, repository: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise failure

    monkeypatch.setattr(shutil, "copytree", fail)

    with pytest.raises(type(failure)):
        base("main", folder, CPU, 1)

    assert worktrees(repository) == 1
    assert not (folder / "tree").exists()


@pytest.mark.parametrize("ref", ["nowhere", "main:models", "--help", ""])
def test_a_ref_that_is_no_commit_is_refused(ref: str, repository: Path) -> None:
    with pytest.raises(UsageError, match=f"--base-ref '{ref}' is no commit of .*: git fetch it first"):
        resolve(ref)


def test_without_a_checkout_a_baseline_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revision, "ROOT", tmp_path)

    with pytest.raises(UsageError, match=r"needs a git checkout, .*: use --baseline FILE"):
        resolve("main")


def test_a_base_without_models_is_refused(repository: Path, folder: Path) -> None:
    git(repository, "rm", "-rq", "models")
    git(repository, "commit", "-qm", "third")

    with pytest.raises(UsageError, match="has no folder models"):
        base("main", folder, CPU, 1)


def test_other_dependencies_get_an_environment_of_their_own(
    repository: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: list[list[str]] = []
    monkeypatch.setattr(revision.Venv, "install", lambda venv: installed.append(list(venv.requirements)))
    (repository / "pyproject.toml").write_text(PROJECT.replace("numpy>=1", "numpy>=2"))

    version = base("main", folder, CPU, 1)

    assert installed == [["numpy>=1"]]
    assert version.python == str(revision.Venv("gate", ["numpy>=1"]).python)


@pytest.mark.parametrize("text", ["", "[project]", "not toml [", "[project]\ndependencies = 3"])
def test_a_project_that_names_no_dependencies_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(text)

    with pytest.raises(UsageError, match="names no dependencies"):
        dependencies(tmp_path)


def test_a_dirty_head_says_so(repository: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "ROOT", repository)
    clean = head(folder / "one", CPU, 1)
    (repository / "models" / "__init__.py").write_text("# edited\n")

    dirty = head(folder / "two", CPU, 1)

    assert clean.label == resolve("main")[:12]
    assert dirty.label == f"{clean.label} with uncommitted changes"
