"""Virtual environments in the user's cache that borrow our torch: whole or not there, whatever interrupts them."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from models.cache import cache_folder
from retbench.environment import ROOT, sha256
from retbench.errors import UsageError

LENT = ("torch", "numpy", "safetensors")
# Else an environment gets its own, which takes longer. Not by find_spec: setuptools takes a search for pip for pip's
# start and drops its distutils in this process, without which torch.compile fails.
OUR_PIP = any(metadata.distributions(name="pip"))


@dataclass(frozen=True)
class Venv:
    """An environment with these requirements, for this Python and torch; with others it would be another folder."""

    name: str
    requirements: Sequence[str]
    dependencies: bool = True  # whether those of the requirements are installed too
    stubs: Mapping[str, Sequence[str]] = field(default_factory=dict)  # module -> names of functions that only raise

    @property
    def folder(self) -> Path:
        contents = [list(self.requirements), self.dependencies, {name: list(them) for name, them in self.stubs.items()}]
        lent = [sys.version, metadata.version("torch"), _lent_folders()]
        return cache_folder() / "peers" / f"{self.name}-{sha256([*contents, *lent])[:12]}"

    @property
    def python(self) -> Path:
        return _python(self.folder)

    @property
    def installed(self) -> bool:
        return self.folder.exists()

    def install(self, check: Callable[[Path], None] = lambda python: None) -> None:
        """Makes the environment unless it is there; raises UsageError with what went wrong.

        It is made beside its folder and renamed when ``check``, which gets its Python and raises UsageError where that
        is no good, has passed.
        """
        if not self.installed:
            try:
                self._install(self.folder, check)
            except OSError as error:
                raise UsageError(f"cannot make {self.folder}: {error.strerror or error}") from error

    def _install(self, folder: Path, check: Callable[[Path], None]) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".installing-", dir=folder.parent) as temporary:
            new = Path(temporary) / folder.name
            venv.create(new, symlinks=os.name == "posix", with_pip=not OUR_PIP)
            site = Path(sysconfig.get_path("purelib", vars={"base": str(new)}))
            # A path file, since ours may be a virtual environment itself, which another one cannot take packages from.
            (site / "lent.pth").write_text("".join(f"{path}\n" for path in _lent_folders()), encoding="utf-8")
            for module, names in self.stubs.items():
                _write_stub(site, module, names)
            _pip_install(_python(new), [*([] if self.dependencies else ["--no-deps"]), *self.requirements])
            check(_python(new))
            if not folder.exists():  # another process may have been faster
                new.rename(folder)


def _lent_folders() -> list[str]:
    """The folders of our own packages and of those that an environment shares with us."""
    specs = [importlib.util.find_spec(name) for name in LENT]
    found = [Path(spec.origin).parents[1] for spec in specs if spec and spec.origin]
    return list(dict.fromkeys(str(folder) for folder in (ROOT, *found)))


def _python(folder: Path) -> Path:
    return folder / ("bin/python" if os.name == "posix" else "Scripts/python.exe")


def _write_stub(site: Path, module: str, names: Sequence[str]) -> None:
    *packages, last = module.split(".")
    folder = site.joinpath(*packages)
    folder.mkdir(parents=True, exist_ok=True)
    for depth in range(1, len(packages) + 1):
        site.joinpath(*packages[:depth], "__init__.py").touch()
    functions = (
        f"def {name}(*args, **kwargs):\n    raise NotImplementedError('{module}.{name} is a stub of retbench')\n"
        for name in names
    )
    (folder / f"{last}.py").write_text("\n\n".join(functions), encoding="utf-8")


def _pip_install(python: Path, arguments: Sequence[str]) -> None:
    pip = [sys.executable, "-m", "pip", "--python", str(python)] if OUR_PIP else [str(python), "-m", "pip"]
    command = [*pip, "install", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
        raise UsageError(f"pip install {' '.join(arguments)} failed: {'; '.join(errors or lines[-1:])}")
