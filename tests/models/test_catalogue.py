"""Systems are found by reading files; importing the names, systems and sizes loads no torch."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import models
from models import SIZES, systems
from models.catalogue import paper_systems, peer_of, peers
from models.language_model import LanguageModel

ROOT = Path(models.__file__).parents[1]


def run(code: str, root: Path = ROOT) -> str:
    """The output of Python code in a fresh interpreter that finds ``models`` under ``root``."""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_names_systems_and_sizes_loads_no_torch() -> None:
    code = "import sys, models, models.catalogue, models.sizes; models.systems(); print('torch' in sys.modules)"

    assert run(code) == "False"


def test_the_systems_of_the_inference_figures_are_there() -> None:
    assert {"retnet", "transformer", "transformer-flash", "transformer-concat-cache"} <= set(systems())


def test_every_system_has_a_model_class_and_a_summary() -> None:
    for name, system in systems().items():
        module = importlib.import_module(system.module)

        assert system.name == name
        assert system.summary
        assert issubclass(module.MODEL, LanguageModel)
        assert (name in module.SYSTEMS) == (system.twin_of is None)


def test_the_paper_has_no_twins_of_peers_and_every_peer_has_one() -> None:
    twins = {peer.twin: name for name, peer in peers().items()}

    assert {name: system.twin_of for name, system in systems().items() if name not in paper_systems()} == twins
    assert len(twins) == len(peers())


def test_a_peer_is_pinned_and_its_rows_are_no_systems() -> None:
    rows = [row for peer in peers().values() for row in peer.rows]

    assert all(peer_of(row) == peer for peer in peers().values() for row in peer.rows)
    assert len(set(rows) | set(systems())) == len(rows) + len(systems())
    assert all("==" in requirement for peer in peers().values() for requirement in peer.requirements)
    assert peer_of("retnet") is None


def test_one_new_file_adds_a_system(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("__pycache__"))
    source = "from models.retnet import RetNet\n\nSYSTEMS = {'toy': {'summary': 'a toy', 'config': {'n_heads': 4}}}\n"
    (tmp_path / "models" / "toy.py").write_text(source + "\n\nMODEL = RetNet\n", encoding="utf-8")

    printed = run("import models; print(models.build('toy', 'tiny', vocab_size=8).config)", tmp_path)

    assert "system='toy'" in printed
    assert "n_heads=4" in printed


def test_a_file_that_only_mentions_systems_adds_none(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "models" / "notes.py").write_text("'''\nSYSTEMS = nothing here\n'''\n", encoding="utf-8")

    assert run("import models; print(*models.systems())", tmp_path) == " ".join(systems())


def test_sizes_are_those_of_the_design() -> None:
    shapes = {name: (size.d_model, size.n_layers) for name, size in SIZES.items()}

    assert shapes == {
        "nano": (128, 1),
        "tiny": (128, 2),
        "micro": (192, 3),
        "mini": (256, 4),
        "small": (768, 12),
        "200m": (1024, 16),
        "1.3b": (2048, 24),
        "2.7b": (2560, 32),
        "6.7b": (4096, 32),
        "13b": (5120, 40),
    }
