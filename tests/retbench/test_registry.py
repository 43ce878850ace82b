"""Names are found by file, unknown ones get help, and packages that shadow ours are reported instead of used."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from retbench.environment import ROOT
from retbench.errors import UsageError
from retbench.registry import check_packages, choose, experiments

KNOWN = ("retnet", "transformer", "transformer-flash")


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("retnet", ["retnet"]),
        ("transformer,retnet", ["transformer", "retnet"]),
        (" retnet , transformer ,", ["retnet", "transformer"]),
        ("retnet,retnet", ["retnet"]),
        ("all", list(KNOWN)),
    ],
)
def test_names_are_chosen_in_the_order_given_and_once(text: str, chosen: list[str]) -> None:
    assert choose(text, KNOWN, "system") == chosen


def test_an_unknown_name_gets_a_suggestion_and_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        choose("retnet,retnt", KNOWN, "system")

    assert str(caught.value) == (
        "unknown system 'retnt'; did you mean 'retnet'? systems are retnet, transformer, transformer-flash"
    )


def test_a_name_like_no_other_gets_the_known_ones_alone() -> None:
    with pytest.raises(UsageError) as caught:
        choose("mamba2", KNOWN, "system")

    assert str(caught.value) == "unknown system 'mamba2'; systems are retnet, transformer, transformer-flash"


@pytest.mark.parametrize("text", ["", ",", " , "])
def test_no_name_at_all_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no system given; systems are all, retnet, transformer, transformer-flash"):
        choose(text, KNOWN, "system")


def test_all_is_no_name_among_others() -> None:
    with pytest.raises(UsageError, match="unknown system 'all'"):
        choose("all,retnet", KNOWN, "system")


def test_experiments_are_the_files_that_define_a_command() -> None:
    found = experiments()

    assert "inference" in found
    assert all((ROOT / "experiments" / f"{name}.py").exists() and callable(m.command) for name, m in found.items())
    assert all(module.__doc__ for module in found.values())


def test_our_own_packages_are_found_in_their_place() -> None:
    check_packages()


def test_another_package_of_that_name_is_refused_with_both_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = SimpleNamespace(__file__=str(tmp_path / "models" / "__init__.py"))
    monkeypatch.setitem(sys.modules, "models", foreign)

    with pytest.raises(UsageError) as caught:
        check_packages()

    assert str(tmp_path / "models") in str(caught.value)
    assert str(ROOT / "models") in str(caught.value)


@pytest.mark.parametrize("name", ["models", "experiments"])
@pytest.mark.parametrize("arguments", [["list"], ["--help"], ["inference", "--size", "tiny"]])
def test_a_foreign_package_first_on_the_path_is_one_line_and_status_2(
    name: str, arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])

    done = subprocess.run(
        [sys.executable, "-m", "retbench", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"retbench: package {name!r} is imported from {tmp_path / name}, retbench needs")
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]
