"""What no model can be asked for ends with one line and exit status 2, before anything is measured or written."""

import json
from pathlib import Path

import pytest

from models import build, save_checkpoint
from tests.experiments.conftest import run

TOO_LONG = "hyena tiny, batch 1, length 65536: hyena reads at most l_max = 32768 tokens, not 65536; l_max is a field"


@pytest.mark.parametrize("verb", ["inference", "complexity"])
def test_a_length_beyond_l_max_is_refused(verb: str, tmp_path: Path) -> None:
    done = run(tmp_path, verb, "--systems", "lstm,hyena", "--size", "tiny", "--seq-len", "64k", "--batch-size", "1")

    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"retbench: {TOO_LONG}")
    assert not list(tmp_path.rglob("*.jsonl"))


def test_an_ablation_of_another_system_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    done = run(tmp_path, "inference", "--systems", "transformer-no-decay")

    assert done.returncode == 2
    assert "did you mean 'transformer'? systems are h3, hyena, " in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("system", "fields", "words"),
    [
        ("retnet", {"n_heads": 3}, "n_heads must divide d_model: 3 does not divide 128"),
        ("transformer", {"gamma": "none"}, "transformer has no config field gamma; its fields are d_model, n_layers"),
    ],
)
def test_a_config_that_no_system_has_is_refused(
    system: str, fields: dict[str, object], words: str, tmp_path: Path
) -> None:
    save_checkpoint(build(system, "tiny", vocab_size=8), tmp_path / "mine")
    config = tmp_path / "mine" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **fields}))

    done = run(tmp_path, "inference", "--systems", "none", "--checkpoint", "mine", "--seq-len", "64")

    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]
    assert not list(tmp_path.rglob("*.jsonl"))
