"""Loaded checkpoints compute what the projects that made them compute, in every form: oracles and plain equations."""

# B batch, T positions, V vocabulary

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models import load_checkpoint
from models.language_model import LanguageModel
from models.retnet import RetNet
from tests.models.checkpoints import Shape, config_json, plain_logits, random_weights, write
from tests.models.helpers import ends, error, oracle, random_tokens, read, repeatable

FORMS = ("parallel", "chunkwise", "recurrent")
CHUNK_SIZES = (7, 16, 20, 80, 100)  # that divide the lengths 48 and 80, that do not, and that exceed them


def every_reading(model: LanguageModel, tokens: Tensor, pieces: list[int]) -> Iterator[tuple[str, Tensor]]:
    """Logits (B, T, V) by every form and size of chunk: the training form, completed by prefill in pieces + steps."""
    variants: list[tuple[Any, ...]] = [("as it is", 0)]
    if isinstance(model, RetNet):
        variants = [("parallel", 1), ("recurrent", 1), *(("chunkwise", size) for size in CHUNK_SIZES)]
    for form, chunk_size in variants:
        if isinstance(model, RetNet):
            model.form, model.chunk_size = form, chunk_size
        logits = model(tokens).detach()
        yield f"{form} {chunk_size}", logits
        decoded = logits.clone()
        decoded[:, ends(pieces, tokens.shape[1])] = read(model, tokens, pieces)
        yield f"{form} {chunk_size}, prefill and steps", decoded


# ---- oracles


def fla_folder(folder: Path) -> tuple[Path, dict[str, Any]]:
    given = oracle("fla.pt")
    return write(folder, {"model_type": "retnet", **given["config"]}, given["state_dict"]), given


def torchscale_folder(folder: Path, **changes: object) -> tuple[Path, dict[str, Any]]:
    given = oracle("torchscale.pt")
    config = {"model_type": "torchscale-retnet", **given["config"], **changes}
    return write(folder, config, given["state_dict"]), given


@pytest.mark.parametrize(("dtype", "paper_tolerance"), [(torch.float64, 1e-5), (None, 3e-5)])
def test_a_checkpoint_of_fla_gives_its_logits(
    tmp_path: Path, dtype: torch.dtype | None, paper_tolerance: float
) -> None:
    folder, given = fla_folder(tmp_path)
    results, tokens = given["results"], given["tokens"]

    model = load_checkpoint(folder, dtype)

    for how, logits in every_reading(model, tokens, [70]):
        assert error(logits, results["paper_torch.float64"]) < paper_tolerance, how
        assert error(logits, results["chunk"]) < 3e-5, how
        assert error(logits, results["prefill70_then_recurrent"]) < 3e-5, how
        for name in ("parallel", "fused_chunk", "fused_recurrent"):  # two float32 computations, each 3e-5 off
            assert error(logits, results[name]) < 6e-5, (how, name)


def test_a_checkpoint_of_torchscale_without_epsilon_gives_its_logits(tmp_path: Path) -> None:
    folder, given = torchscale_folder(tmp_path, layernorm_eps=0.0)

    model = load_checkpoint(folder, torch.float64)

    for how, logits in every_reading(model, given["tokens"], [20, 11]):
        for name, expected in given["results"]["torch.float64_eps0"].items():
            assert error(logits, expected) < 1e-6, (how, name)


def test_a_checkpoint_of_torchscale_gives_its_logits_up_to_its_epsilon(tmp_path: Path) -> None:
    folder, given = torchscale_folder(tmp_path)
    results = given["results"]["torch.float64"]

    model = load_checkpoint(folder, torch.float64)

    for how, logits in every_reading(model, given["tokens"], [20, 11]):
        assert error(logits, results["paper_unnormalised"]) < 1e-6, how
        assert error(logits, results["recurrent"]) < 2e-5, how
        for name in ("parallel", "chunkwise_8", "chunkwise_16", "chunkwise_20", "chunkwise_48"):
            assert error(logits, results[name]) < 3e-4, (how, name)


def test_a_checkpoint_of_torchscale_gives_its_logits_in_float32(tmp_path: Path) -> None:
    folder, given = torchscale_folder(tmp_path)

    model = load_checkpoint(folder)

    assert model.embedding.weight.dtype == torch.float32
    for how, logits in every_reading(model, given["tokens"], [20, 11]):
        assert error(logits, given["results"]["torch.float32"]["recurrent"]) < 3e-5, how


def test_the_plain_equations_are_those_of_the_oracles() -> None:
    fla, torchscale = oracle("fla.pt"), oracle("torchscale.pt")
    shape = Shape(d=128, values=256, ffn=256, vocab=97, eps=1e-6)
    scaled = replace(shape, scaled=True)

    of_fla = plain_logits("retnet", shape, fla["state_dict"], fla["tokens"])
    of_torchscale = plain_logits("torchscale-retnet", scaled, torchscale["state_dict"], torchscale["tokens"])

    assert error(of_fla, fla["results"]["paper_torch.float64"]) < 1e-5
    assert error(of_torchscale, torchscale["results"]["torch.float64"]["paper_unnormalised"]) < 1e-6


# ---- other weights, other configs

VARIANTS = {
    "retnet": [
        {},
        {"tied": True, "heads": 4},
        {"gate": False},
        {"affine": False, "values": 24},
        {"values": 72, "eps": 1e-3},
    ],
    "transformer": [{}, {"heads": 6, "kv_heads": 3}, {"heads": 4, "kv_heads": 1, "tied": True, "base": 500.0}],
    "llama": [{}, {"heads": 6, "kv_heads": 3, "base": 500000.0}, {"heads": 4, "kv_heads": 1, "tied": True}],
    "torchscale-retnet": [
        {"affine": False},
        {"affine": False, "tied": True, "scaled": True},
        {"affine": False, "values": 24, "heads": 6, "eps": 1e-3},
    ],
}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    ("model_type", "changes"), [(model_type, changes) for model_type in VARIANTS for changes in VARIANTS[model_type]]
)
def test_a_checkpoint_gives_the_logits_of_its_plain_equations(
    tmp_path: Path, model_type: str, changes: dict[str, Any], shards: int
) -> None:
    shape = Shape(**changes)
    weights = random_weights(model_type, shape, seed=shards)
    tokens = random_tokens(2, 48, vocab_size=shape.vocab)
    expected = plain_logits(model_type, shape, weights, tokens)

    model = load_checkpoint(write(tmp_path, config_json(model_type, shape), weights, shards))

    assert model.embedding.weight.dtype == torch.float64
    for how, logits in every_reading(model, tokens, [9, 12]):
        assert error(logits, expected) < 1e-10, how


@pytest.mark.parametrize("model_type", VARIANTS)
@given(seed=st.integers(0, 10**6), length=st.integers(1, 40), data=st.data())
@repeatable
def test_other_weights_of_the_same_shapes_give_the_logits_of_their_plain_equations(
    tmp_path_factory: pytest.TempPathFactory, model_type: str, seed: int, length: int, data: st.DataObject
) -> None:
    shape = Shape(affine=model_type == "retnet")
    weights = random_weights(model_type, shape, seed)
    tokens = random_tokens(2, length, seed, vocab_size=shape.vocab)
    pieces = [data.draw(st.integers(1, length))]
    folder = write(tmp_path_factory.mktemp("checkpoint"), config_json(model_type, shape), weights)
    expected = plain_logits(model_type, shape, weights, tokens)

    model = load_checkpoint(folder)

    assert error(model(tokens).detach(), expected) < 1e-9
    assert error(read(model, tokens, pieces), expected[:, ends(pieces, length)]) < 1e-9
