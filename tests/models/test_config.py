"""Configs: JSON both ways, errors that say what is allowed, and 12 d_model^2 parameters a layer for every system."""

import json
from dataclasses import FrozenInstanceError, fields

import pytest
import torch

from models import SIZES, build, systems
from models.config import Config, config_from_json
from models.retnet import RetNetConfig
from models.transformer import TransformerConfig


def config(system: str, **options: object) -> Config:
    return build(system, "tiny", **{"vocab_size": 16, **options}).config


@pytest.mark.parametrize(
    "options", [{}, {"norm": "rmsnorm", "ffn": "swiglu", "tied_embeddings": True, "norm_eps": 1e-5, "seed": 7}]
)
@pytest.mark.parametrize("system", systems())
def test_a_config_survives_json(system: str, options: dict[str, object]) -> None:
    written = config(system, **options)

    read = config_from_json(written.to_json())

    assert read == written
    assert type(read) is type(written)


@pytest.mark.parametrize("system", systems())
def test_json_holds_every_field_as_it_was_resolved(system: str) -> None:
    written = config(system)

    loaded = json.loads(written.to_json())

    assert loaded == {field.name: getattr(written, field.name) for field in fields(written)}
    assert loaded["system"] == system
    assert loaded["d_ffn"] > 0


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        config("retnet").d_model = 3  # type: ignore[misc]


def test_the_defaults_are_the_papers() -> None:
    retnet = RetNetConfig("retnet", d_model=2048, n_layers=24)
    transformer = TransformerConfig("transformer", d_model=2048, n_layers=24)

    assert (retnet.n_heads, retnet.d_k, retnet.d_v, retnet.d_ffn) == (8, 256, 512, 4096)
    assert (retnet.gamma, retnet.norm, retnet.ffn, retnet.gate) == ("linspace", "layernorm", "gelu", True)
    assert (retnet.group_norm, retnet.group_norm_affine) == ("layernorm", False)
    assert (transformer.n_heads, transformer.d_head, transformer.n_kv_heads, transformer.d_ffn) == (16, 128, 16, 8192)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("system", systems())
def test_every_layer_has_12_d_model_squared_parameters_within_1_percent(system: str, size: str) -> None:
    with torch.device("meta"):
        model = build(system, size, vocab_size=16)

    assert len(model.layers) == SIZES[size].n_layers
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    for layer in model.layers:
        mixer = sum(parameter.numel() for parameter in layer.mixer.parameters())
        count = sum(parameter.numel() for parameter in layer.parameters())
        assert mixer == model.config.mixer_parameters
        assert count == pytest.approx(12 * SIZES[size].d_model ** 2, rel=0.01)


@pytest.mark.parametrize(
    ("system", "options"),
    [
        ("retnet", {"ffn": "swiglu", "norm": "rmsnorm"}),
        ("retnet", {"gate": False, "value_factor": 1}),
        ("retnet", {"n_heads": 16}),
        ("transformer", {"ffn": "swiglu"}),
        ("transformer", {"n_kv_heads": 3}),
        ("transformer", {"n_heads": 6, "n_kv_heads": 1, "ffn": "swiglu"}),
    ],
)
def test_options_that_move_parameters_keep_the_layer_matched(system: str, options: dict[str, object]) -> None:
    with torch.device("meta"):
        model = build(system, "small", n_layers=1, vocab_size=16, **options)

    layer = sum(parameter.numel() for parameter in model.layers.parameters())
    mixer = sum(
        parameter.numel() for name, parameter in model.layers[0].named_parameters() if name.startswith("mixer.")
    )
    assert layer == pytest.approx(12 * 768**2, rel=0.01)
    assert mixer == model.config.mixer_parameters
    assert model.config.d_ffn % 8 == 0


def test_a_given_d_ffn_is_kept() -> None:
    assert config("retnet", d_ffn=100).d_ffn == 100


def test_an_unknown_system_is_answered_with_the_systems() -> None:
    with pytest.raises(ValueError, match=r"unknown system 'retnt'; systems are .*retnet.*transformer"):
        build("retnt", "tiny")
    with pytest.raises(ValueError, match=r"unknown system 'retnt'; systems are .*retnet.*transformer"):
        config_from_json('{"system": "retnt"}')


def test_an_unknown_size_is_answered_with_the_sizes() -> None:
    with pytest.raises(ValueError, match=r"unknown size 'huge'; sizes are nano, tiny, .*13b"):
        build("retnet", "huge")


@pytest.mark.parametrize("system", systems())
def test_an_unknown_field_is_answered_with_the_fields(system: str) -> None:
    with pytest.raises(ValueError, match=rf"{system} has no config field colour, sise; its fields are d_model, .*norm"):
        build(system, "tiny", sise=3, colour="red")


@pytest.mark.parametrize(
    ("system", "field", "allowed"),
    [
        ("retnet", "norm", "layernorm, rmsnorm"),
        ("retnet", "ffn", "gelu, swiglu"),
        ("retnet", "rotary", "interleaved, half-split, none"),
        ("retnet", "rope_spacing", "inclusive, exclusive"),
        ("retnet", "gamma", "linspace, eq8, single, none"),
        ("retnet", "group_norm", "layernorm, rmsnorm, none"),
        ("retnet", "form", "parallel, chunkwise, recurrent"),
        ("rwkv", "rotary", "none"),
        ("retnet", "retention", "auto, torch, fla"),
        ("transformer", "attention", "eager, flash, sdpa, flash-attn"),
        ("transformer", "kv_cache", "preallocated, concatenated"),
    ],
)
def test_a_bad_choice_is_answered_with_the_choices(system: str, field: str, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be one of {allowed}, not 'other'$"):
        build(system, "tiny", **{field: "other"})


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("field", ["d_model", "n_layers", "vocab_size"])
@pytest.mark.parametrize("system", systems())
def test_a_size_that_is_not_positive_is_an_error(system: str, field: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be positive, not {value}|does not divide"):
        build(system, "tiny", **{field: value})


@pytest.mark.parametrize(
    ("system", "options", "message"),
    [
        ("retnet", {"n_heads": 3}, "n_heads must divide d_model: 3 does not divide 128"),
        ("retnet", {"n_heads": -2}, "n_heads must divide d_model: -2 does not divide 128"),
        ("retnet", {"n_heads": 128}, "key dim of a head must be even for the rotation: 2 does not divide 1"),
        ("retnet", {"chunk_size": 0}, "chunk_size, value_factor and heads_factor must be positive"),
        ("retnet", {"value_factor": 0}, "chunk_size, value_factor and heads_factor must be positive"),
        ("retnet", {"heads_factor": 0}, "chunk_size, value_factor and heads_factor must be positive"),
        ("retnet-small-heads", {"d_model": 300}, "n_heads must divide d_model: 8 does not divide 300"),
        ("retnet-no-groupnorm", {"group_norm_affine": True}, "group_norm_affine needs a group_norm of layernorm"),
        ("linear-transformer", {"n_heads": 3}, "n_heads must divide d_model: 3 does not divide 128"),
        ("linear-transformer", {"n_heads": 128}, "head dim must be even for the rotation: 2 does not divide 1"),
        ("linear-transformer", {"chunk_size": 0}, "chunk_size must be positive, not 0"),
        ("retnet", {"d_ffn": -8}, "d_ffn must be positive, not -8"),
        ("transformer", {"n_heads": 3}, "n_heads must divide d_model: 3 does not divide 128"),
        ("transformer", {"n_heads": 4, "n_kv_heads": 3}, "n_kv_heads must divide n_heads: 3 does not divide 4"),
        ("h3", {"d_model": 12}, "head_dim must divide d_model: 8 does not divide 12"),
        ("h3", {"d_model": 16, "head_dim": 1}, "d_model 16 is too small for h3: its mixer has 6256 parameters"),
        ("hyena", {"d_model": 8}, "d_model 8 is too small for hyena"),
        ("lstm", {"d_model": 2}, r"a whole layer 12 d_model\^2 = 48; take a larger d_model, or set d_ffn"),
        ("transformer", {"n_heads": 128}, "head dim must be even for the rotation: 2 does not divide 1"),
    ],
)
def test_fields_that_contradict_each_other_are_an_error(system: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(system, "tiny", **options)
