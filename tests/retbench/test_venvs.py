"""Environments of their own: whole or not there, for this torch, with stubs that say so."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from retbench import venvs
from retbench.errors import UsageError
from retbench.venvs import Venv

ONE = Venv("one", ["one==1.0"], dependencies=False, stubs={"fair.nn.sub": ["wrap", "other"], "fair.scale": ["name"]})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, where an environment is a folder with its packages and nothing is installed."""

    def create(folder: Path, **options: object) -> None:
        (folder / "lib" / f"python3.{sys.version_info.minor}" / "site-packages").mkdir(parents=True)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(venvs.venv, "create", create)
    monkeypatch.setattr(venvs, "_pip_install", lambda python, arguments: None)
    return tmp_path


def entries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.parent.name == "peers"]


def test_an_environment_is_installed_once_in_the_users_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(venvs, "_pip_install", lambda python, arguments: calls.append(arguments))
    before = ONE.installed

    ONE.install()
    ONE.install()

    assert (before, ONE.installed) == (False, True)
    assert entries(cache) == [ONE.folder]
    assert ONE.folder.parent == cache / "retbench" / "peers"
    assert calls == [["--no-deps", "one==1.0"]]


@pytest.mark.parametrize("stage", ["_pip_install", "_write_stub", "check"])
@pytest.mark.parametrize("failure", [UsageError("no"), KeyboardInterrupt(), OSError("disk full")], ids=repr)
def test_what_interrupts_an_installation_leaves_nothing(
    stage: str, failure: BaseException, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise failure

    if stage != "check":
        monkeypatch.setattr(venvs, stage, fail)

    with pytest.raises(KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else UsageError):
        ONE.install(check=fail if stage == "check" else lambda python: None)

    assert entries(cache) == []
    assert not ONE.installed


def test_a_cache_that_cannot_be_written_is_one_line(cache: Path) -> None:
    (cache / "retbench").write_text("a file in the way")

    with pytest.raises(UsageError, match=rf"cannot make {ONE.folder}: Not a directory"):
        ONE.install()


def test_the_check_runs_before_the_environment_is_there(cache: Path) -> None:
    seen: list[tuple[Path, bool]] = []

    ONE.install(check=lambda python: seen.append((python, ONE.installed)))

    ((python, installed),) = seen
    assert python != ONE.python
    assert python.name == ONE.python.name
    assert not installed


def test_other_contents_are_another_environment(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [
        Venv("one", ["one==1.1"], dependencies=False, stubs=ONE.stubs),
        Venv("one", ["one==1.0"], stubs=ONE.stubs),
        Venv("one", ["one==1.0"], dependencies=False),
    ]
    folders = {venv.folder for venv in (ONE, *others)}

    monkeypatch.setattr(venvs.metadata, "version", lambda name: "another torch")

    assert len(folders) == 4
    assert ONE.folder not in folders


def test_stubs_are_imported_and_say_so_when_called(cache: Path) -> None:
    ONE.install()
    (site,) = ONE.folder.rglob("site-packages")
    code = "import fair.scale; from fair.nn.sub import wrap, other; wrap(1, x=2)"

    done = subprocess.run([sys.executable, "-c", code], cwd=site, capture_output=True, text=True, check=False)

    assert done.stderr.splitlines()[-1] == "NotImplementedError: fair.nn.sub.wrap is a stub of retbench"


def test_torch_is_lent(cache: Path) -> None:
    ONE.install()
    (site,) = ONE.folder.rglob("site-packages")
    code = f"import site; site.addsitedir({str(site)!r}); import torch, retbench; print(torch.__file__)"
    import torch

    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True, cwd="/")

    assert done.stdout.strip() == torch.__file__


def test_environments_leave_setuptools_as_torch_needs_it() -> None:
    """setuptools drops its distutils where anything looks for the module pip, and cannot be imported then."""
    code = "import retbench.venvs, setuptools; assert 'setuptools' in setuptools.distutils.__file__"

    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)
