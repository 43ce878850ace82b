"""RetNet with other projects' weights computes what their own code, fla's and the authors', computed."""

from typing import Any, cast

import pytest
import torch

from models import build
from models.retnet import Form, MultiScaleRetention, RetNet
from tests.models.helpers import FORMS, ends, error, in_form, memories, oracle, read

FLA_NAMES = {
    "model.embeddings": "embedding",
    "model.layers": "layers",
    "attn_norm": "mixer_norm",
    "attn.g_norm_swish_gate.weight": "mixer.group_norm_weight",
    "attn.o_proj": "mixer.out_proj",
    "attn": "mixer",
    "mlp_norm": "ffn_norm",
    "mlp": "ffn",
    "model.norm": "norm",
    "lm_head": "head",
}
TORCHSCALE_NAMES = {
    "embed_tokens": "embedding",
    "output_projection": "head",
    "retention_layer_norm": "mixer_norm",
    "final_layer_norm": "ffn_norm",
    "retention": "mixer",
    "ffn.fc1": "ffn.gate_proj",  # the branch that is activated
    "ffn.gate": "ffn.up_proj",
    "ffn.fc2": "ffn.down_proj",
    "layer_norm": "norm",
}


def rename(name: str, names: dict[str, str]) -> str:
    """``name`` with each whole dotted part in ``names``, the first that fits at a place, replaced by ours."""
    dotted = f".{name}."
    for old, new in names.items():
        if f".{old}." in dotted:
            dotted = dotted.replace(f".{old}.", f".{new}.")
    return dotted.strip(".")


def fla_model(theirs: dict[str, Any], dtype: torch.dtype) -> RetNet:
    config, defaults = theirs["config"], theirs["defaults"]
    model = build(
        "retnet",
        d_model=config["hidden_size"],
        n_layers=config["num_hidden_layers"],
        n_heads=config["num_heads"],
        vocab_size=config["vocab_size"],
        d_ffn=config["intermediate_size"],
        ffn="swiglu",
        norm="rmsnorm",
        norm_eps=defaults["norm_eps"],
        group_norm="rmsnorm",
        group_norm_affine=True,
        gamma="eq8",
        rotary="half-split",
        rope_base=defaults["rope_base"],
        rope_spacing="exclusive",
    )
    model.load_state_dict({rename(name, FLA_NAMES): weight for name, weight in theirs["state_dict"].items()})
    return cast(RetNet, model.to(dtype))


def torchscale_model(theirs: dict[str, Any], norm_eps: float) -> RetNet:
    config = theirs["config"]
    model = build(
        "retnet",
        d_model=config["hidden"],
        n_layers=config["layers"],
        n_heads=config["heads"],
        vocab_size=config["vocab"],
        d_ffn=config["ffn"],
        ffn="swiglu",
        norm="rmsnorm",
        norm_eps=norm_eps,
        group_norm="rmsnorm",
        gamma="eq8",
        embedding_scale=config["embed_scale"],
    )
    weights = {name: weight for name, weight in theirs["state_dict"].items() if "retnet_rel_pos" not in name}
    model.load_state_dict({rename(name, TORCHSCALE_NAMES): weight for name, weight in weights.items()})
    return cast(RetNet, model.double())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 3e-5)])
@pytest.mark.parametrize("form", FORMS)
def test_the_whole_model_equals_flash_linear_attention(form: Form, dtype: torch.dtype, tolerance: float) -> None:
    theirs = oracle("fla.pt")
    model, tokens = in_form(fla_model(theirs, dtype), form, chunk_size=32), theirs["tokens"]
    results = theirs["results"]

    logits = model(tokens).detach()
    decoded = read(model, tokens, [70])

    assert error(logits, results["paper_torch.float64"]) < tolerance  # their angles are float32
    assert error(logits, results["chunk"]) < 3e-5
    assert error(decoded, results["prefill70_then_recurrent"][:, 69:]) < 3e-5


def test_the_final_state_equals_that_of_flash_linear_attention() -> None:
    theirs = oracle("fla.pt")
    model = in_form(fla_model(theirs, torch.float32), "chunkwise", chunk_size=32)

    found = memories(model, theirs["tokens"])

    for memory, expected in zip(found, theirs["results"]["final_state"], strict=True):
        assert error(memory, expected * memory.shape[2] ** -0.5) < 3e-5  # we scale k, they scale q


@pytest.mark.parametrize("form", FORMS)
def test_the_whole_model_equals_the_authors_code_without_epsilon(form: Form) -> None:
    theirs = oracle("torchscale.pt")
    model, tokens = in_form(torchscale_model(theirs, norm_eps=0.0), form, chunk_size=20), theirs["tokens"]

    logits = model(tokens).detach()
    decoded = read(model, tokens, [20, 11])

    for name, expected in theirs["results"]["torch.float64_eps0"].items():
        assert error(logits, expected) < 1e-6, name
        assert error(decoded, expected[:, ends([20, 11], 48)]) < 1e-6, name


@pytest.mark.parametrize("form", FORMS)
def test_the_whole_model_equals_the_authors_code_up_to_its_epsilon(form: Form) -> None:
    theirs = oracle("torchscale.pt")
    model = in_form(torchscale_model(theirs, theirs["config"]["layernorm_eps"]), form, chunk_size=20)
    tokens, results = theirs["tokens"], theirs["results"]["torch.float64"]

    logits = model(tokens).detach()
    decoded = read(model, tokens, [20, 11])

    assert error(logits, results["paper_unnormalised"]) < 1e-6
    assert error(decoded, results["recurrent"][:, ends([20, 11], 48)]) < 2e-5
    assert error(logits, results["recurrent"]) < 2e-5
    for name in ("parallel", "chunkwise_8", "chunkwise_16", "chunkwise_20", "chunkwise_48"):
        assert error(logits, results[name]) < 3e-4, name


@pytest.mark.parametrize("form", FORMS)
def test_one_layer_equals_the_authors_multi_scale_retention(form: Form) -> None:
    theirs = oracle("mixers/torchscale_msr_eps0.pt")
    d_model, n_heads = theirs["x"].shape[-1], theirs["scale"].shape[0]
    options = {"d_model": d_model, "n_heads": n_heads, "group_norm": "rmsnorm", "gamma": "eq8", "norm_eps": 0.0}
    model = in_form(build("retnet", "tiny", vocab_size=8, **options).double(), form, chunk_size=16)
    mixer = cast(MultiScaleRetention, model.blocks[0].mixer)
    mixer.load_state_dict(theirs["state_dict"])
    state = mixer.init_state(theirs["x"].shape[0], 1)

    y = mixer(theirs["x"], model.positions(0, theirs["x"].shape[1]), state).detach()
    row_sums = theirs["scale"].sqrt()[:, None, None]  # they keep S / sqrt(row sum of D), value dim first

    assert error(y, theirs["y_parallel"]) < 1e-6
    assert error(y, theirs["y_chunkwise16"]) < 1e-6
    assert error(y, theirs["y_recurrent"]) < 1e-6
    assert error(state.memory, theirs["prev_key_value"].mT * row_sums) < 1e-5  # and float32 angles
