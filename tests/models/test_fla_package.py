"""The installed fla-core takes the arguments that are given to it, and its kernels, interpreted, compute as plain ones.

fla-core and Triton are installed into an environment of their own, kept in the user's cache, that borrows our torch.
"""

import inspect
import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest

from models.cache import cache_folder
from tests.models import stand_in_packages

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

REQUIREMENTS = ("fla-core==0.6.0", "triton==3.9.0", "einops==0.8.2")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def python_with_fla() -> Path:
    """The interpreter of the environment."""
    if sys.platform != "linux":
        pytest.skip("Triton is for Linux")
    version = f"{sys.version_info.major}{sys.version_info.minor}"
    folder = cache_folder() / "tests" / "-".join([*(name.replace("==", "-") for name in REQUIREMENTS), version])
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        venv.create(folder, clear=True, symlinks=True, with_pip=True)
    # Ours may be an environment itself, which --system-site-packages of another would not see.
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    if not (folder / "installed").exists():
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", *REQUIREMENTS]
        done = subprocess.run(install, capture_output=True, text=True)
        if "from versions: none" in done.stderr:
            pytest.skip("fla-core cannot be installed: the package index is not reachable")
        assert done.returncode == 0, done.stderr
        (folder / "installed").touch()
    return python


@pytest.fixture(scope="module")
def interpreted(python_with_fla: Path) -> Any:
    """What ``fla_interpreted.py`` found."""
    command = [str(python_with_fla), str(ROOT / "tests" / "models" / "fla_interpreted.py")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["chunk_simple_gla", "fused_recurrent_simple_gla"])
def test_the_stand_in_takes_what_the_package_takes(interpreted: Any, name: str) -> None:
    stand_in = list(inspect.signature(getattr(stand_in_packages, name)).parameters)

    assert interpreted["parameters"][name][: len(stand_in)] == stand_in


def test_the_kernels_give_the_logits_and_gradients_of_the_plain_forms(interpreted: Any) -> None:
    errors = {name: interpreted[name] for name in ("logits", "gradients")}

    assert all(0 < fla <= 4 * plain < 1e-4 for fla, plain in errors.values())


def test_the_probe_agrees_with_the_kernels(interpreted: Any) -> None:
    assert interpreted["refusal"] is None
