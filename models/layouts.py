"""What published checkpoints call their config fields and tensors: one entry of ``LAYOUTS`` a model_type."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast, get_type_hints

import torch
from torch import Tensor

from models.config import Config, config_from_json
from models.retention import log_decays
from models.retnet import RetNetConfig
from models.rotary import inverse_frequencies
from models.transformer import TransformerConfig


class Fields:
    """The fields of a config.json. Every reader raises ValueError that names the field when its value is no good."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def integer(self, name: str, default: int | None = None) -> int:
        """A positive whole number; null counts as absent."""
        value = default if self.values.get(name) is None else self.values[name]
        if value is None:
            raise ValueError(f"{name} is missing")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < 2**31 or value % 1:
            raise ValueError(f"{name} must be a whole number between 1 and 2^31, not {json.dumps(value)}")
        return int(value)

    def number(self, name: str, default: float) -> float:
        """A number that is not negative."""
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a number that is not negative, not {json.dumps(value)}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, not {json.dumps(value)}")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """An object, empty when absent or null."""
        value = self.values.get(name) or {}
        if not isinstance(value, dict):
            raise ValueError(f"{name} must be an object or null, not {json.dumps(value)}")
        return value

    def must_be(self, name: str, value: object) -> None:
        """For a field that repeats what others say: if it is there, it must say ``value``."""
        if self.values.get(name) not in (None, value):
            raise ValueError(f"{name} must be {json.dumps(value)}, not {json.dumps(self.values[name])}")


@dataclass(frozen=True)
class Layout:
    """One kind of checkpoint. In names, {n} stands for the index of a layer."""

    config: Callable[[Fields], Config]
    # Their tensor -> ours; several of theirs may stand for one of ours, by version. None: our own names.
    names: Mapping[str, str] | None
    # Fields that change the model in ways that ours cannot follow, with the values that do not. Absent is fine.
    only: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    # Their tensors that our models compute from the config: they may be there, and must then be what we compute.
    constants: Mapping[str, Callable[[Config], Tensor]] = field(default_factory=dict)

    def tensor_names(self, ours: Iterable[str], n_layers: int) -> dict[str, str]:
        """Their name -> ours for the tensors ``ours`` of a model."""
        if self.names is None:
            return {name: name for name in ours}
        filled = {
            theirs.format(n=n): name.format(n=n)
            for theirs, name in self.names.items()
            for n in _indices(theirs, n_layers)
        }
        known = set(ours)
        return {theirs: name for theirs, name in filled.items() if name in known}

    def constant_tensors(self, config: Config) -> dict[str, Tensor]:
        """Their name -> what our models compute with."""
        return {
            theirs.format(n=n): compute(config)
            for theirs, compute in self.constants.items()
            for n in _indices(theirs, config.n_layers)
        }

    def unsupported(self, fields: Fields) -> list[str]:
        """What ``only`` forbids, in words."""
        return [
            f"{name}: {json.dumps(fields.values[name])} is not supported, only {' or '.join(map(json.dumps, allowed))}"
            for name, allowed in self.only.items()
            if name in fields.values and fields.values[name] not in allowed
        ]


def _indices(name: str, n_layers: int) -> range:
    return range(n_layers) if "{n}" in name else range(1)


# ---- configs

TYPES: Mapping[object, tuple[type, ...]] = {bool: (bool,), int: (int,), float: (float, int)}


def _own_config(fields: Fields) -> Config:
    """What ``save_checkpoint`` wrote."""
    values = {name: value for name, value in fields.values.items() if name != "model_type"}
    try:
        config = config_from_json(json.dumps(values))
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing") from error
    except TypeError as error:
        raise ValueError(f"a field is missing or of the wrong type: {error}") from error
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if type(value) not in TYPES.get(hint, (type(value),)):
            raise ValueError(f"{name} must be of type {hint.__name__}, not {json.dumps(value)}")
    return config


def _fla_retnet_config(fields: Fields) -> Config:
    n_heads = fields.integer("num_heads")
    fields.must_be("num_kv_heads", n_heads)
    return RetNetConfig(
        "retnet",
        n_heads=n_heads,
        value_factor=fields.integer("expand_v", 2),
        gate=fields.flag("use_output_gate", True),
        gamma="eq8",
        group_norm="rmsnorm",
        group_norm_affine=fields.flag("elementwise_affine", True),
        norm_eps=fields.number("norm_eps", 1e-6),
        d_ffn=_fla_d_ffn(fields, hidden_ratio=2),
        **_llama_like(fields),
    )


def _fla_transformer_config(fields: Fields) -> Config:
    n_heads = fields.integer("num_heads")
    return TransformerConfig(
        "transformer-flash",
        attention="flash",
        n_heads=n_heads,
        n_kv_heads=fields.integer("num_kv_heads", n_heads),
        norm_eps=fields.number("norm_eps", 1e-6),
        rope_base=_rope_theta(fields),
        d_ffn=_fla_d_ffn(fields, hidden_ratio=4),
        **_llama_like(fields),
    )


def _llama_config(fields: Fields) -> Config:
    n_heads = fields.integer("num_attention_heads")
    fields.must_be("head_dim", fields.integer("hidden_size") // n_heads)
    return TransformerConfig(
        "transformer-flash",
        attention="flash",
        n_heads=n_heads,
        n_kv_heads=fields.integer("num_key_value_heads", n_heads),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope_base=_rope_theta(fields),
        d_ffn=fields.integer("intermediate_size"),
        **_llama_like(fields),
    )


def _torchscale_config(fields: Fields) -> Config:
    d_model, n_heads = fields.integer("hidden"), fields.integer("heads")
    d_values = fields.integer("value_dim")
    if d_values % d_model:
        raise ValueError(f"value_dim {d_values} must be a multiple of hidden {d_model}")
    fields.must_be("head_dim_qk", d_model // n_heads)
    fields.must_be("head_dim_v", d_values // n_heads)
    scale = 1.0 if fields.flag("no_scale_embedding", True) else math.sqrt(d_model)
    if not math.isclose(fields.number("embed_scale", scale), scale, rel_tol=1e-6):
        raise ValueError(f"embed_scale must be {scale} as no_scale_embedding says, not {fields.values['embed_scale']}")
    return RetNetConfig(
        "retnet",
        d_model=d_model,
        n_layers=fields.integer("layers"),
        n_heads=n_heads,
        vocab_size=fields.integer("vocab"),
        value_factor=d_values // d_model,
        d_ffn=fields.integer("ffn"),
        ffn="swiglu",
        norm="rmsnorm",
        norm_eps=fields.number("layernorm_eps", 1e-6),
        group_norm="rmsnorm",
        gamma="eq8",
        embedding_scale=scale,
        tied_embeddings=fields.flag("share_decoder_input_output_embed", False),
    )


def _llama_like(fields: Fields) -> dict[str, Any]:
    """What fla's models and Llama share: field names, SwiGLU, RMSNorm, half-split rotation."""
    return {
        "d_model": fields.integer("hidden_size"),
        "n_layers": fields.integer("num_hidden_layers"),
        "vocab_size": fields.integer("vocab_size"),
        "tied_embeddings": fields.flag("tie_word_embeddings", False),
        "ffn": "swiglu",
        "norm": "rmsnorm",
        "rotary": "half-split",
        "rope_spacing": "exclusive",
    }


def _fla_d_ffn(fields: Fields, hidden_ratio: int) -> int:
    """fla's rule: two thirds of hidden_ratio * hidden_size, rounded up to a multiple of 256; a null ratio means 4."""
    ratio = fields.integer("hidden_ratio", 4 if "hidden_ratio" in fields.values else hidden_ratio)
    width = int(fields.integer("hidden_size") * ratio * 2 / 3)
    return fields.integer("intermediate_size", -(-width // 256) * 256)


def _rope_theta(fields: Fields) -> float:
    """The rotation's base: a field of its own until transformers 4, part of rope_parameters since 5."""
    base = fields.number("rope_theta", 10000.0)
    for name in ("rope_scaling", "rope_parameters"):
        rope = fields.mapping(name)
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default" or rope.get("partial_rotary_factor", 1) != 1:
            raise ValueError(f"{name}: {json.dumps(rope)} is not supported, only rope_type default")
        inner = Fields(rope).number("rope_theta", base)
        if "rope_theta" in fields.values and inner != base:
            raise ValueError(f"rope_theta is {base} and, in {name}, {inner}")
        base = inner
    return base


# ---- tensors

FLA_NAMES = {
    "model.embeddings.weight": "embedding.weight",
    "model.layers.{n}.attn_norm.weight": "layers.{n}.mixer_norm.weight",
    "model.layers.{n}.attn.q_proj.weight": "layers.{n}.mixer.q_proj.weight",
    "model.layers.{n}.attn.k_proj.weight": "layers.{n}.mixer.k_proj.weight",
    "model.layers.{n}.attn.v_proj.weight": "layers.{n}.mixer.v_proj.weight",
    "model.layers.{n}.attn.g_proj.weight": "layers.{n}.mixer.g_proj.weight",
    "model.layers.{n}.attn.o_proj.weight": "layers.{n}.mixer.out_proj.weight",
    "model.layers.{n}.attn.g_norm_swish_gate.weight": "layers.{n}.mixer.group_norm_weight",
    "model.layers.{n}.attn.g_norm.weight": "layers.{n}.mixer.group_norm_weight",  # without a gate or fuse_norm
    "model.layers.{n}.mlp_norm.weight": "layers.{n}.ffn_norm.weight",
    "model.layers.{n}.mlp.gate_proj.weight": "layers.{n}.ffn.gate_proj.weight",
    "model.layers.{n}.mlp.up_proj.weight": "layers.{n}.ffn.up_proj.weight",
    "model.layers.{n}.mlp.down_proj.weight": "layers.{n}.ffn.down_proj.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "head.weight",
}
LLAMA_NAMES = {
    "model.embed_tokens.weight": "embedding.weight",
    "model.layers.{n}.input_layernorm.weight": "layers.{n}.mixer_norm.weight",
    "model.layers.{n}.self_attn.q_proj.weight": "layers.{n}.mixer.q_proj.weight",
    "model.layers.{n}.self_attn.k_proj.weight": "layers.{n}.mixer.k_proj.weight",
    "model.layers.{n}.self_attn.v_proj.weight": "layers.{n}.mixer.v_proj.weight",
    "model.layers.{n}.self_attn.o_proj.weight": "layers.{n}.mixer.out_proj.weight",
    "model.layers.{n}.post_attention_layernorm.weight": "layers.{n}.ffn_norm.weight",
    "model.layers.{n}.mlp.gate_proj.weight": "layers.{n}.ffn.gate_proj.weight",
    "model.layers.{n}.mlp.up_proj.weight": "layers.{n}.ffn.up_proj.weight",
    "model.layers.{n}.mlp.down_proj.weight": "layers.{n}.ffn.down_proj.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "head.weight",
}
TORCHSCALE_NAMES = {
    "embed_tokens.weight": "embedding.weight",
    "layers.{n}.retention_layer_norm.weight": "layers.{n}.mixer_norm.weight",
    "layers.{n}.retention.q_proj.weight": "layers.{n}.mixer.q_proj.weight",
    "layers.{n}.retention.k_proj.weight": "layers.{n}.mixer.k_proj.weight",
    "layers.{n}.retention.v_proj.weight": "layers.{n}.mixer.v_proj.weight",
    "layers.{n}.retention.g_proj.weight": "layers.{n}.mixer.g_proj.weight",
    "layers.{n}.retention.out_proj.weight": "layers.{n}.mixer.out_proj.weight",
    "layers.{n}.final_layer_norm.weight": "layers.{n}.ffn_norm.weight",
    "layers.{n}.ffn.fc1.weight": "layers.{n}.ffn.gate_proj.weight",  # the branch that is activated
    "layers.{n}.ffn.gate.weight": "layers.{n}.ffn.up_proj.weight",
    "layers.{n}.ffn.fc2.weight": "layers.{n}.ffn.down_proj.weight",
    "layer_norm.weight": "norm.weight",
    "output_projection.weight": "head.weight",
}


def _torchscale_angles(config: Config) -> Tensor:
    frequencies = inverse_frequencies(config, cast(RetNetConfig, config).d_k, torch.device("cpu"))
    return frequencies.repeat_interleave(2)


def _torchscale_decays(config: Config) -> Tensor:
    return log_decays("eq8", cast(RetNetConfig, config).n_heads)


def _llama_frequencies(config: Config) -> Tensor:
    return inverse_frequencies(config, cast(TransformerConfig, config).d_head, torch.device("cpu"))


# ---- the table

NO = (False, None)
PLAIN = {"hidden_act": ("swish", "silu"), "quantization_config": (None,)}
PLAIN_ATTENTION = PLAIN | {
    "attention_bias": NO,
    "qkv_bias": NO,
    "mlp_bias": NO,
    "qk_norm": NO,
    "norm_first": NO,
    "window_size": (None,),
    "sliding_window": (None,),
    "partial_rotary_factor": (1, None),
    "rope_interleaved": NO,
}

LAYOUTS: Mapping[str, Layout] = {
    "retbench": Layout(config=_own_config, names=None),
    "retnet": Layout(
        config=_fla_retnet_config,
        names=FLA_NAMES,
        only=PLAIN | {"expand_k": (1,), "feature_map": (None,), "use_short_conv": NO, "attn": (None,)},
    ),
    "transformer": Layout(config=_fla_transformer_config, names=FLA_NAMES, only=PLAIN_ATTENTION),
    "llama": Layout(
        config=_llama_config,
        names=LLAMA_NAMES,
        only=PLAIN_ATTENTION,
        constants={"model.layers.{n}.self_attn.rotary_emb.inv_freq": _llama_frequencies},
    ),
    "torchscale-retnet": Layout(
        config=_torchscale_config,
        names=TORCHSCALE_NAMES,
        only={
            "activation_fn": ("swish",),
            "layernorm_embedding": NO,
            "decoder_normalize_before": (True,),
            "deepnorm": NO,
            "gamma": ("1-2**(-5-i)",),
            "angle": ("1/10000**linspace(0,1,head_dim_qk//2), interleaved pairs",),
            "position0": (0,),
        },
        constants={"retnet_rel_pos.angle": _torchscale_angles, "retnet_rel_pos.decay": _torchscale_decays},
    ),
}
