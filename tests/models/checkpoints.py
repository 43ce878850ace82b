"""Published checkpoints in small: config.json, names and random weights of every kind, and what they must compute.

``plain_logits`` evaluates the equations of a checkpoint on its own tensors, head by head, with nothing of ``models``.
"""

# B batch, T positions, D model dim, K key dim, V value dim of a head

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

MODEL_TYPES = ("retnet", "transformer", "llama", "torchscale-retnet")
FLA = {
    "embedding": "model.embeddings.weight",
    "norm1": "model.layers.{n}.attn_norm.weight",
    "q": "model.layers.{n}.attn.q_proj.weight",
    "k": "model.layers.{n}.attn.k_proj.weight",
    "v": "model.layers.{n}.attn.v_proj.weight",
    "g": "model.layers.{n}.attn.g_proj.weight",
    "o": "model.layers.{n}.attn.o_proj.weight",
    "group_norm": "model.layers.{n}.attn.g_norm_swish_gate.weight",
    "norm2": "model.layers.{n}.mlp_norm.weight",
    "active": "model.layers.{n}.mlp.gate_proj.weight",
    "linear": "model.layers.{n}.mlp.up_proj.weight",
    "down": "model.layers.{n}.mlp.down_proj.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
}
NAMES: dict[str, dict[str, str]] = {
    "retnet": FLA,
    "transformer": FLA,
    "llama": {
        "embedding": "model.embed_tokens.weight",
        "norm1": "model.layers.{n}.input_layernorm.weight",
        "q": "model.layers.{n}.self_attn.q_proj.weight",
        "k": "model.layers.{n}.self_attn.k_proj.weight",
        "v": "model.layers.{n}.self_attn.v_proj.weight",
        "o": "model.layers.{n}.self_attn.o_proj.weight",
        "norm2": "model.layers.{n}.post_attention_layernorm.weight",
        "active": "model.layers.{n}.mlp.gate_proj.weight",
        "linear": "model.layers.{n}.mlp.up_proj.weight",
        "down": "model.layers.{n}.mlp.down_proj.weight",
        "norm": "model.norm.weight",
        "head": "lm_head.weight",
    },
    "torchscale-retnet": {
        "embedding": "embed_tokens.weight",
        "norm1": "layers.{n}.retention_layer_norm.weight",
        "q": "layers.{n}.retention.q_proj.weight",
        "k": "layers.{n}.retention.k_proj.weight",
        "v": "layers.{n}.retention.v_proj.weight",
        "g": "layers.{n}.retention.g_proj.weight",
        "o": "layers.{n}.retention.out_proj.weight",
        "norm2": "layers.{n}.final_layer_norm.weight",
        "active": "layers.{n}.ffn.fc1.weight",
        "linear": "layers.{n}.ffn.gate.weight",
        "down": "layers.{n}.ffn.fc2.weight",
        "norm": "layer_norm.weight",
        "head": "output_projection.weight",
    },
}


@dataclass(frozen=True)
class Shape:
    """What a small checkpoint looks like, in words of its own for all kinds."""

    d: int = 24
    layers: int = 2
    heads: int = 2
    kv_heads: int = 2  # attention alone
    values: int = 48  # all heads of retention
    ffn: int = 40
    vocab: int = 29
    eps: float = 1e-5
    base: float = 10000.0
    tied: bool = False
    gate: bool = True
    affine: bool = True
    scaled: bool = False  # torchscale alone: embeddings times sqrt(d)


def config_json(model_type: str, s: Shape) -> dict[str, Any]:
    """The fields of config.json, as the projects write them."""
    if model_type == "torchscale-retnet":
        return {
            "model_type": model_type,
            "hidden": s.d,
            "value_dim": s.values,
            "heads": s.heads,
            "ffn": s.ffn,
            "layers": s.layers,
            "vocab": s.vocab,
            "no_scale_embedding": not s.scaled,
            "layernorm_eps": s.eps,
            "share_decoder_input_output_embed": s.tied,
        }
    heads = {"num_attention_heads": s.heads} if model_type == "llama" else {"num_heads": s.heads}
    config = {
        "model_type": model_type,
        "hidden_size": s.d,
        "num_hidden_layers": s.layers,
        "intermediate_size": s.ffn,
        "vocab_size": s.vocab,
        "tie_word_embeddings": s.tied,
        **heads,
    }
    if model_type == "retnet":
        retention = {"expand_v": s.values / s.d, "use_output_gate": s.gate, "elementwise_affine": s.affine}
        return {**config, **retention, "norm_eps": s.eps}
    kv_heads, eps = ("num_key_value_heads", "rms_norm_eps") if model_type == "llama" else ("num_kv_heads", "norm_eps")
    return {**config, kv_heads: s.kv_heads, eps: s.eps, "rope_theta": s.base}


def tensor_shapes(model_type: str, s: Shape) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor by its name in the file."""
    retention = model_type.endswith("retnet")
    d_kv = s.d if retention else s.d // s.heads * s.kv_heads
    d_v = s.values if retention else d_kv
    roles: dict[str, tuple[int, ...]] = {
        "embedding": (s.vocab, s.d),
        "norm1": (s.d,),
        "q": (s.d, s.d),
        "k": (d_kv, s.d),
        "v": (d_v, s.d),
        "g": (s.values, s.d),
        "o": (s.d, s.values if retention else s.d),
        "group_norm": (s.values // s.heads,),
        "norm2": (s.d,),
        "active": (s.ffn, s.d),
        "linear": (s.ffn, s.d),
        "down": (s.d, s.ffn),
        "norm": (s.d,),
        "head": (s.vocab, s.d),
    }
    absent = {
        "g": not retention or not s.gate,
        "group_norm": model_type != "retnet" or not s.affine,
        "head": s.tied,
    }
    return {
        template.format(n=n): roles[role]
        for role, template in names_of(model_type, s).items()
        if not absent.get(role)
        for n in range(s.layers if "{n}" in template else 1)
    }


def names_of(model_type: str, s: Shape) -> dict[str, str]:
    """What a part is called in the file; fla calls its group norm otherwise when it is not fused with a gate."""
    names = NAMES[model_type]
    return names if s.gate else {**names, "group_norm": "model.layers.{n}.attn.g_norm.weight"}


def random_weights(model_type: str, s: Shape, seed: int = 0) -> dict[str, Tensor]:
    """Float64 weights of unit gain, norms away from 1."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in tensor_shapes(model_type, s).items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        weights[name] = noise * shape[1] ** -0.5 if len(shape) == 2 else 1 + 0.2 * noise
    return weights


def write(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], shards: int = 1) -> Path:
    """A checkpoint folder, in shards with an index when there are several."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if shards == 1:
        save_file(dict(weights), folder / "model.safetensors")
        return folder
    named = {}
    for n in range(shards):
        file = f"model-{n + 1:05}-of-{shards:05}.safetensors"
        part = {name: weights[name] for name in list(weights)[n::shards]}
        save_file(part, folder / file)
        named.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": 1}, "weight_map": named}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


# ---- plain equations


def plain_logits(model_type: str, s: Shape, weights: Mapping[str, Tensor], tokens: Tensor) -> Tensor:
    """(B, T) -> logits (B, T, vocab), float64."""

    def weight(role: str, n: int = 0) -> Tensor:
        return weights[names_of(model_type, s)[role].format(n=n)].double()

    mix = plain_retention if model_type.endswith("retnet") else plain_attention
    x = weight("embedding")[tokens] * (s.d**0.5 if s.scaled else 1.0)
    for n in range(s.layers):
        layer = {role: weight(role, n) for role, name in names_of(model_type, s).items() if name.format(n=n) in weights}
        x = x + mix(plain_norm(x, s.eps) * layer["norm1"], layer, model_type, s) @ layer["o"].T
        h = plain_norm(x, s.eps) * layer["norm2"]
        x = x + (silu(h @ layer["active"].T) * (h @ layer["linear"].T)) @ layer["down"].T
    return plain_norm(x, s.eps) * weight("norm") @ weight("embedding" if s.tied else "head").T


def plain_retention(x: Tensor, layer: Mapping[str, Tensor], model_type: str, s: Shape) -> Tensor:
    """x (B, T, D) -> gated, normalised retention (B, T, values) by the sum over all earlier positions."""
    d_k, d_v, length = s.d // s.heads, s.values // s.heads, x.shape[1]
    distance = torch.arange(length)[:, None] - torch.arange(length)
    out = []
    for i in range(s.heads):
        q, k = (rotated(x @ layer[role][i * d_k : (i + 1) * d_k].T, model_type, s.base) for role in "qk")
        v = x @ layer["v"][i * d_v : (i + 1) * d_v].T
        decay = (1 - 2.0 ** (-5 - i)) ** distance.double() * (distance >= 0)
        o = plain_norm((q @ k.mT) * d_k**-0.5 * decay @ v, s.eps)
        out.append(o * layer["group_norm"] if "group_norm" in layer else o)
    heads = torch.cat(out, dim=-1)
    return heads * silu(x @ layer["g"].T) if "g" in layer else heads


def plain_attention(x: Tensor, layer: Mapping[str, Tensor], model_type: str, s: Shape) -> Tensor:
    """x (B, T, D) -> (B, T, D), causal softmax attention, query heads sharing keys in order."""
    dim, length = s.d // s.heads, x.shape[1]
    future = torch.ones(length, length).triu(1).bool()
    out = []
    for i in range(s.heads):
        j = i // (s.heads // s.kv_heads)
        q = rotated(x @ layer["q"][i * dim : (i + 1) * dim].T, model_type, s.base)
        k = rotated(x @ layer["k"][j * dim : (j + 1) * dim].T, model_type, s.base)
        v = x @ layer["v"][j * dim : (j + 1) * dim].T
        scores = (q @ k.mT * dim**-0.5).masked_fill(future, -torch.inf)
        out.append(scores.softmax(-1) @ v)
    return torch.cat(out, dim=-1)


def rotated(x: Tensor, model_type: str, base: float) -> Tensor:
    """x (B, T, K) with pairs of channels turned as complex numbers."""
    pairs = x.shape[-1] // 2
    torchscale = model_type.startswith("torchscale")
    exponents = torch.arange(pairs).double() / (pairs - 1 if torchscale else pairs)
    angles = torch.arange(x.shape[1])[:, None] * base**-exponents  # (T, K/2)
    turn = torch.polar(torch.ones_like(angles), angles)
    if torchscale:
        turned = torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:-1], pairs, 2)) * turn)
        return turned.flatten(-2)
    product = torch.complex(x[..., :pairs].contiguous(), x[..., pairs:].contiguous()) * turn
    return torch.cat((product.real, product.imag), dim=-1)


def plain_norm(x: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())
