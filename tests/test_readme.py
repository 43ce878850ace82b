"""What README.md says exists: its commands, and a line for every file."""

import re
from pathlib import Path

import pytest

from retbench.environment import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDERS = {"retbench", "models", "experiments"}


def listed_files() -> list[str]:
    """Paths of the tree section; indented lines belong to the folder above them."""
    tree = README.split("## The tree", 1)[1]
    paths, folder = list[str](), ""
    for indent, name in re.findall(r"^    ( *)(\S+) {2}", tree, re.MULTILINE):
        if not indent:
            folder = name.rstrip("/")
        elif folder in FOLDERS:
            paths.append(f"{folder}/{name}")
    return paths


def test_the_tree_lists_every_file_once_and_no_other() -> None:
    files = [
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".toml"} and not path.name.startswith("__")
    ]

    assert sorted(listed_files()) == sorted(files)


@pytest.mark.parametrize("command", re.findall(r"^    make (\w+)", README, re.MULTILINE))
def test_make_commands_exist(command: str) -> None:
    makefile = (ROOT / "Makefile").read_text()

    assert re.search(rf"^{command}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_linked_files_exist(target: str) -> None:
    assert Path(ROOT, target).exists()
