"""Generation: what is chosen, that it repeats by seed, and the command that streams it."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models import build
from models.checkpoint import save_checkpoint
from models.language_model import LanguageModel
from retbench.environment import ROOT
from retbench.generate import choose, generate


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return build("retnet", "tiny", vocab_size=256)


def first(model: LanguageModel, count: int, **options: float) -> list[int]:
    return list(itertools.islice(generate(model, [72, 105], **options), count))  # type: ignore[arg-type]


def test_greedy_generation_is_the_argmax_of_the_training_form(model: LanguageModel) -> None:
    ids = [72, 105]
    for _ in range(8):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))

    assert first(model, 8) == ids[2:]


def test_a_seed_repeats_its_text_and_another_gives_another(model: LanguageModel) -> None:
    once = first(model, 20, temperature=1.0, seed=1)

    assert once == first(model, 20, temperature=1.0, seed=1)
    assert once != first(model, 20, temperature=1.0, seed=2)


def test_sampling_stays_in_the_nucleus_and_follows_its_probabilities() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.3, 0.1]]).log().repeat(4000, 1)
    picked = choose(logits, 1.0, 0.7, torch.Generator().manual_seed(0))
    counts = torch.bincount(picked, minlength=4)

    assert counts[0] == counts[3] == 0
    assert abs(counts[1] / 4000 - 0.5 / 0.8) < 0.03


def test_a_tiny_top_p_is_greedy() -> None:
    logits = torch.randn(50, 99)

    assert torch.equal(choose(logits, 1.0, 1e-9, torch.Generator()), logits.argmax(-1))


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "retbench", "generate", "--checkpoint", str(folder), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_the_command_streams_text_and_ends_with_its_speed(model: LanguageModel, tmp_path: Path) -> None:
    save_checkpoint(model, tmp_path)
    result = run(tmp_path, "--prompt", "Hi", "--max-tokens", "5", "--threads", "1", "--dtype", "fp32")

    assert result.returncode == 0
    assert result.stdout
    assert "prompt 2 tokens, TTFT" in result.stderr
    assert "5 tokens," in result.stderr
    assert "tokens/s" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", ""], "--prompt is empty"),
        (["--prompt", "a", "--top-p", "0"], "above 0 and at most 1"),
        (["--prompt", "a", "--dtype", "int3"], "dtypes are"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    model: LanguageModel, tmp_path: Path, arguments: list[str], words: str
) -> None:
    save_checkpoint(model, tmp_path)
    result = run(tmp_path, *arguments)

    assert result.returncode == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    save_checkpoint(build("retnet", "tiny", vocab_size=64), tmp_path)
    result = run(tmp_path, "--prompt", "z")

    assert result.returncode == 2
    assert "the tokenizer has 256 tokens, the model 64" in result.stderr
