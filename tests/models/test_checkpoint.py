"""Loading is strict, safe and small in memory; what is saved is loaded again, bit for bit."""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from models import CheckpointError, build, checkpoint, load_checkpoint, save_checkpoint, systems
from models.language_model import LanguageModel
from models.layouts import LAYOUTS, Fields
from models.retnet import RetNet, RetNetConfig
from models.transformer import TransformerConfig
from tests.models.checkpoints import MODEL_TYPES, Shape, config_json, random_weights, tensor_shapes, write
from tests.models.helpers import random_model, random_tokens, repeatable
from tests.models.test_catalogue import ROOT, run

Weights = dict[str, Tensor]
SHAPE = Shape(affine=False)


def folder_of(model_type: str, folder: Path, shards: int = 1, **changes: Any) -> Path:
    """A random checkpoint whose config.json has the changes."""
    config = {**config_json(model_type, SHAPE), **changes}
    return write(folder, config, random_weights(model_type, SHAPE), shards)


def refusal(folder: Path) -> str:
    """What ``load_checkpoint`` says of a folder that it must refuse."""
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(folder)
    return str(raised.value)


def weights_of(model: LanguageModel) -> Weights:
    return dict(model.state_dict())


def same(left: Weights, right: Weights) -> bool:
    """Bit for bit, dtypes included."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


# ---- what is saved is loaded

RETNET_FIELDS = {
    "d_model": st.sampled_from([16, 32]),
    "n_heads": st.sampled_from([1, 2, 4]),
    "value_factor": st.integers(1, 3),
    "gamma": st.sampled_from(["linspace", "eq8"]),
    "gate": st.booleans(),
    "group_norm": st.sampled_from(["layernorm", "rmsnorm"]),
    "group_norm_affine": st.booleans(),
    "chunk_size": st.integers(1, 300),
    "form": st.sampled_from(["parallel", "chunkwise", "recurrent"]),
}
TRANSFORMER_FIELDS = {
    "d_model": st.sampled_from([32, 64]),
    "n_heads": st.sampled_from([4, 8]),
    "n_kv_heads": st.sampled_from([1, 2, 4]),
    "attention": st.sampled_from(["eager", "sdpa"]),
    "kv_cache": st.sampled_from(["preallocated", "concatenated"]),
}
SHARED_FIELDS = {
    "n_layers": st.integers(1, 3),
    "vocab_size": st.integers(1, 40),
    "d_ffn": st.integers(1, 40),
    "ffn": st.sampled_from(["gelu", "swiglu"]),
    "norm": st.sampled_from(["layernorm", "rmsnorm"]),
    "norm_eps": st.floats(1e-8, 1e-2),
    "rotary": st.sampled_from(["interleaved", "half-split", "none"]),
    "rope_base": st.floats(10.0, 1e6),
    "rope_spacing": st.sampled_from(["inclusive", "exclusive"]),
    "tied_embeddings": st.booleans(),
    "embedding_scale": st.floats(0.1, 20.0),
    "seed": st.integers(0, 99),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("system", systems())
def test_every_system_is_loaded_as_it_was_saved(tmp_path: Path, system: str, tied: bool, dtype: torch.dtype) -> None:
    saved = random_model(system, tied_embeddings=tied).to(dtype)

    save_checkpoint(saved, tmp_path)
    loaded = load_checkpoint(tmp_path)

    assert type(loaded) is type(saved)
    assert loaded.config == saved.config
    assert same(weights_of(loaded), weights_of(saved))
    assert loaded.weights_bytes() == saved.weights_bytes()
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize(
    ("system", "fields"),
    [
        ("retnet", RETNET_FIELDS),
        ("transformer", TRANSFORMER_FIELDS),
    ],
)
@given(data=st.data())
@repeatable
def test_every_config_is_loaded_as_it_was_saved(system: str, fields: dict[str, Any], data: st.DataObject) -> None:
    options = data.draw(st.fixed_dictionaries({}, optional={**SHARED_FIELDS, **fields}))
    saved = build(system, "tiny", **{"vocab_size": 16, "n_heads": 4, **options})
    tokens = random_tokens(1, 5, vocab_size=saved.config.vocab_size)

    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(saved, folder)
        loaded = load_checkpoint(folder)

    assert loaded.config == saved.config
    assert same(weights_of(loaded), weights_of(saved))
    assert torch.equal(loaded(tokens), saved(tokens))


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    save_checkpoint(build("retnet", "tiny", vocab_size=16, tied_embeddings=True), tmp_path)

    loaded = load_checkpoint(tmp_path)

    assert "head.weight" not in load_file(tmp_path / "model.safetensors")
    assert loaded.head.weight is loaded.embedding.weight


def test_a_loaded_model_outlives_its_files(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path)
    loaded = load_checkpoint(folder)
    before = {name: tensor.clone() for name, tensor in weights_of(loaded).items()}

    (folder / "model.safetensors").write_bytes(b"")

    assert same(weights_of(loaded), before)


def test_weights_of_a_loaded_model_are_aligned_like_those_of_a_built_one(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path)

    loaded = load_checkpoint(folder)

    assert {parameter.data_ptr() % 64 for parameter in loaded.parameters()} == {0}


def test_weights_are_read_in_pieces_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of("retnet", tmp_path, elementwise_affine=False)
    whole = load_checkpoint(folder)

    for piece_bytes in (1, 1000, 4096):
        monkeypatch.setattr("models.tensor_files.PIECE_BYTES", piece_bytes)

        assert same(weights_of(load_checkpoint(folder)), weights_of(whole))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_weights_are_cast_to_the_dtype_that_is_asked_for(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = folder_of("llama", tmp_path)
    stored = load_checkpoint(folder)

    cast = load_checkpoint(folder, dtype)

    assert same(weights_of(cast), weights_of(stored.to(dtype)))


def test_weights_of_several_dtypes_become_the_one_that_holds_all(tmp_path: Path) -> None:
    weights = {name: tensor.bfloat16() for name, tensor in random_weights("llama", SHAPE).items()}
    weights["model.norm.weight"] = weights["model.norm.weight"].float()

    loaded = load_checkpoint(write(tmp_path, config_json("llama", SHAPE), weights))

    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_a_dtype_that_weights_cannot_have_is_an_error(tmp_path: Path, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=rf"dtype must be one of torch\.float64, .*bfloat16, not {dtype}"):
        load_checkpoint(folder_of("llama", tmp_path), dtype)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_weights_are_loaded_to_the_device_that_is_asked_for(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path)

    loaded = load_checkpoint(folder, device="cuda")

    assert {parameter.device.type for parameter in loaded.parameters()} == {"cuda"}
    assert same(weights_of(loaded.cpu()), weights_of(load_checkpoint(folder)))


def test_the_loader_is_imported_without_torch() -> None:
    code = "import sys, models; print('torch' in sys.modules, models.load_checkpoint.__name__, 'torch' in sys.modules)"

    assert run(code) == "False load_checkpoint True"


# ---- saving


def test_saving_replaces_a_checkpoint_and_leaves_other_files(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    save_checkpoint(build("retnet", "tiny", vocab_size=16), tmp_path)
    second = build("transformer", "tiny", vocab_size=8, seed=1)

    save_checkpoint(second, tmp_path)

    assert same(weights_of(load_checkpoint(tmp_path)), weights_of(second))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_a_save_that_fails_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build("retnet", "tiny", vocab_size=16)
    save_checkpoint(first, tmp_path)

    def full_disk(weights: Weights, path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half of")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(build("transformer", "tiny", vocab_size=8), tmp_path)

    assert same(weights_of(load_checkpoint(tmp_path)), weights_of(first))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_a_save_that_stops_between_its_files_leaves_nothing_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(build("retnet", "tiny", vocab_size=16, gamma="eq8"), tmp_path)
    replace = Path.replace

    def killed_before_the_config(path: Path, target: Path) -> Path:
        if target.name == "config.json":
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", killed_before_the_config)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(build("retnet", "tiny", vocab_size=16), tmp_path)

    assert "config.json: there is no such file" in refusal(tmp_path)


def test_saved_files_can_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_checkpoint(build("retnet", "tiny", vocab_size=16), tmp_path)
    finally:
        os.umask(before)

    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


# ---- tensors


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_all_missing_unknown_and_mis_shaped_tensors_are_listed(tmp_path: Path, model_type: str, shards: int) -> None:
    weights = random_weights(model_type, SHAPE)
    names = list(weights)
    weights["surplus.weight"] = torch.zeros(3, 5)
    weights[names[1]] = torch.zeros(7)
    missing = weights.pop(names[2])

    said = refusal(write(tmp_path, config_json(model_type, SHAPE), weights, shards))

    assert f"missing: {names[2]} {tuple(missing.shape)}" in said
    assert "unknown: surplus.weight (3, 5)" in said
    assert f"shape: {names[1]} (7,) must be (24,)" in said
    assert len(said.splitlines()) == 4


def test_a_long_list_of_problems_is_capped(tmp_path: Path) -> None:
    weights = random_weights("llama", SHAPE)
    surplus = {f"surplus.{n}": torch.zeros(1) for n in range(25)}

    said = refusal(write(tmp_path, config_json("llama", SHAPE), {**weights, **surplus}))

    assert said.count("unknown: surplus.") == 20
    assert said.endswith("... and 5 more")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_tensors_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = random_weights("llama", SHAPE)
    weights["model.norm.weight"] = weights["model.norm.weight"].to(dtype)

    said = refusal(write(tmp_path, config_json("llama", SHAPE), weights))

    assert "dtype: model.norm.weight (24,) is " in said
    assert "not one of F64, F32, F16, BF16" in said


@pytest.mark.parametrize(
    ("model_type", "head"), [("llama", "lm_head.weight"), ("torchscale-retnet", "output_projection.weight")]
)
def test_a_tied_head_that_is_stored_must_equal_the_embedding(tmp_path: Path, model_type: str, head: str) -> None:
    shape = Shape(tied=True, affine=False)
    weights = random_weights(model_type, shape)
    embedding = next(name for name in weights if "embed" in name)
    folder = write(tmp_path, config_json(model_type, shape), {**weights, head: weights[embedding].clone()})

    loaded = load_checkpoint(folder)
    write(folder, config_json(model_type, shape), {**weights, head: weights[embedding] * 1.01})

    assert loaded.head.weight is loaded.embedding.weight
    assert f"values: {head} (29, 24) must be those of {embedding} (29, 24)" in refusal(folder)


def test_two_tensors_for_one_weight_must_be_equal(tmp_path: Path) -> None:
    shape = Shape()
    weights = random_weights("retnet", shape)
    weights["model.layers.1.attn.g_norm.weight"] = weights["model.layers.1.attn.g_norm_swish_gate.weight"] + 1

    said = refusal(write(tmp_path, config_json("retnet", shape), weights))

    assert "g_norm.weight (24,) must be those of model.layers.1.attn.g_norm_swish_gate.weight" in said


TORCHSCALE_CONSTANTS = {
    "retnet_rel_pos.angle": torch.tensor([10000.0 ** -(j / 5) for j in range(6) for _ in range(2)]),
    "retnet_rel_pos.decay": torch.tensor([1 - 1 / 32, 1 - 1 / 64]).log(),
}
LLAMA_CONSTANTS = {
    f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.tensor([10000.0 ** -(j / 6) for j in range(6)])
    for n in range(2)
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("model_type", "constants"), [("torchscale-retnet", TORCHSCALE_CONSTANTS), ("llama", LLAMA_CONSTANTS)]
)
def test_stored_decays_and_angles_must_be_those_that_our_model_computes_with(
    tmp_path: Path, model_type: str, constants: Weights, dtype: torch.dtype
) -> None:
    weights = random_weights(model_type, SHAPE)
    kept = {name: tensor.to(dtype) for name, tensor in constants.items()}
    folder = write(tmp_path, config_json(model_type, SHAPE), {**weights, **kept})

    loaded = load_checkpoint(folder)

    assert loaded.embedding.weight.dtype == torch.float64
    for name, tensor in kept.items():
        write(folder, config_json(model_type, SHAPE), {**weights, **kept, name: tensor * 1.1})
        assert f"values: {name} {tuple(tensor.shape)} are not those that our model computes with" in refusal(folder)


# ---- files


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere").endswith("nowhere: there is no such folder")


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    file = folder_of("llama", tmp_path) / "model.safetensors"

    assert refusal(file).endswith("model.safetensors: there is no such folder")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (folder_of("llama", tmp_path) / "model.safetensors").unlink()

    assert "holds neither model.safetensors nor model.safetensors.index.json" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "is not JSON that can be read"),
        ("", "is not JSON that can be read"),
        ("\ufeff{}", "is not JSON that can be read"),
        ("[" * 100_000, "is not JSON that can be read"),
        ("[]", "is not a JSON object"),
        ("null", "is not a JSON object"),
        ("{}", "unknown model_type None; model types are retbench, retnet, transformer, llama, torchscale-retnet"),
        ('{"model_type": "retnt"}', "unknown model_type 'retnt'; model types are retbench, retnet"),
        ('{"model_type": ["llama"]}', "unknown model_type ['llama']; model types are"),
        ('{"model_type": "llama"}', "config.json: num_attention_heads is missing"),
        ('{"model_type": "retbench"}', "config.json: system is missing"),
        ('{"model_type": "retbench", "system": "retnet"}', "a field is missing or of the wrong type: "),
        ('{"model_type": "retbench", "system": "retnt"}', "unknown system 'retnt'; systems are"),
    ],
)
def test_a_config_that_says_nothing_usable_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    (folder_of("llama", tmp_path) / "config.json").write_text(text, encoding="utf-8")

    assert expected in refusal(tmp_path)


def test_a_config_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (folder_of("llama", tmp_path) / "config.json").write_bytes(b"\xff\xfe\x00")

    assert "config.json: is not JSON that can be read" in refusal(tmp_path)


def cut(data: bytes) -> bytes:
    return data[:-100]


def cut_in_the_header(data: bytes) -> bytes:
    return data[:50]


def lengthen(data: bytes) -> bytes:
    return data + b"more"


def blank(data: bytes) -> bytes:
    return b""


def pickle(data: bytes) -> bytes:
    return b"\x80\x02}q\x00." * 20


def overlap(data: bytes) -> bytes:
    return data.replace(b'"data_offsets":[0,', b'"data_offsets":[8,', 1)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("damage", [cut, cut_in_the_header, lengthen, blank, pickle, overlap])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes], shards: int) -> None:
    folder = folder_of("llama", tmp_path, shards)
    file = sorted(folder.glob("*.safetensors"))[-1]
    file.write_bytes(damage(file.read_bytes()))

    said = refusal(folder)

    assert f"{file.name}: is not a whole safetensors file" in said


def reindexed(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The folder of shards after a change to its index."""
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    change(index)
    path.write_text(json.dumps(index), encoding="utf-8")
    return folder


def test_an_index_that_names_missing_shards_is_refused(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path, shards=3)
    for file in ("model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"):
        (folder / file).unlink()

    said = refusal(folder)

    assert "shard model-00001-of-00003.safetensors is missing" in said
    assert "shard model-00003-of-00003.safetensors is missing" in said


@pytest.mark.parametrize("file", ["../model.safetensors", "/model.safetensors", "..", ".", "", "a/b", "..\\model"])
def test_an_index_that_leaves_the_folder_is_refused(tmp_path: Path, file: str) -> None:
    save_file({"model.norm.weight": torch.zeros(24)}, tmp_path / "model.safetensors")
    folder = folder_of("llama", tmp_path / "inside", shards=2)

    reindexed(folder, lambda index: index["weight_map"].update({"model.norm.weight": file}))

    assert f"{file!r} is not the name of a file in this folder" in refusal(folder)


@pytest.mark.parametrize("named", [None, {}, [], {"model.norm.weight": 3}])
def test_an_index_without_a_map_is_refused(tmp_path: Path, named: object) -> None:
    folder = folder_of("llama", tmp_path, shards=2)

    reindexed(folder, lambda index: index.update(weight_map=named))

    assert "weight_map must be an object: tensor name -> file name" in refusal(folder)


def test_an_index_that_names_the_wrong_shard_is_refused(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path, shards=2)
    right, wrong = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"

    reindexed(folder, lambda index: index["weight_map"].update({"model.embed_tokens.weight": wrong}))

    assert f"model.embed_tokens.weight (29, 24) is in {right}, but the index says {wrong}" in refusal(folder)


def test_an_index_that_names_a_tensor_that_no_shard_holds_is_refused(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path, shards=2)

    reindexed(folder, lambda index: index["weight_map"].update({"extra": "model-00002-of-00002.safetensors"}))

    assert "extra is not in model-00002-of-00002.safetensors, but the index says so" in refusal(folder)


def test_a_tensor_in_a_shard_that_the_index_does_not_know_is_refused(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path, shards=2)
    file = folder / "model-00002-of-00002.safetensors"

    save_file({**load_file(file), "surplus": torch.zeros(2)}, file)

    assert "unknown: surplus (2,)" in refusal(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path, shards=2)
    first, second = (load_file(file) for file in sorted(folder.glob("*.safetensors")))

    save_file({**second, next(iter(first)): torch.zeros(2)}, folder / "model-00002-of-00002.safetensors")

    assert "is in model-00002-of-00002.safetensors, but the index says model-00001-of-00002" in refusal(folder)


def test_files_may_be_links_to_elsewhere(tmp_path: Path) -> None:
    elsewhere = folder_of("llama", tmp_path / "elsewhere", shards=2)
    (tmp_path / "links").mkdir()

    for file in elsewhere.iterdir():
        (tmp_path / "links" / file.name).symlink_to(file)

    assert same(weights_of(load_checkpoint(tmp_path / "links")), weights_of(load_checkpoint(elsewhere)))


@pytest.mark.parametrize("parts", [1, 2])
def test_a_pickle_is_refused_with_the_command_that_converts_it(tmp_path: Path, parts: int) -> None:
    folder = folder_of("llama", tmp_path / "a folder's name")
    expected = weights_of(load_checkpoint(folder))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for n in range(parts):
        named = {name: weights[name] for name in list(weights)[n::parts]}
        torch.save(named, folder / ("pytorch_model.bin" if parts == 1 else f"pytorch_model-{n + 1}-of-{parts}.bin"))

    said = refusal(folder)
    _, command = said.split("Convert it once:\n")
    words = shlex.split(command)
    subprocess.run([sys.executable, *words[1:]], check=True, cwd=ROOT)

    assert words[0] == "python"
    assert same(weights_of(load_checkpoint(folder)), expected)


class Tripwire:
    """Unpickling it creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path)
    (folder / "model.safetensors").unlink()

    torch.save(Tripwire(tmp_path / "unpickled"), folder / "pytorch_model.bin")

    assert "which is never read" in refusal(folder)
    assert not (tmp_path / "unpickled").exists()


# ---- configs

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("retnet", {"attn": {"layers": [1], "num_heads": 2}}, 'attn: {"layers": [1], "num_heads": 2} is not supported'),
    ("retnet", {"use_short_conv": True}, "use_short_conv: true is not supported, only false or null"),
    ("retnet", {"feature_map": "relu"}, 'feature_map: "relu" is not supported, only null'),
    ("retnet", {"expand_k": 0.5}, "expand_k: 0.5 is not supported, only 1"),
    ("retnet", {"expand_v": 1.5}, "expand_v must be a whole number between 1 and 2^31, not 1.5"),
    ("retnet", {"num_kv_heads": 1}, "num_kv_heads must be 2, not 1"),
    ("retnet", {"hidden_act": "gelu"}, 'hidden_act: "gelu" is not supported, only "swish" or "silu"'),
    ("retnet", {"elementwise_affine": "no"}, 'elementwise_affine must be true or false, not "no"'),
    ("transformer", {"window_size": 512}, "window_size: 512 is not supported, only null"),
    ("transformer", {"qkv_bias": True}, "qkv_bias: true is not supported"),
    ("transformer", {"qk_norm": True}, "qk_norm: true is not supported"),
    ("transformer", {"norm_first": True}, "norm_first: true is not supported"),
    ("transformer", {"rope_theta": None}, "rope_theta must be a number that is not negative, not null"),
    ("transformer", {"num_kv_heads": 3}, "n_kv_heads must divide n_heads: 3 does not divide 2"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, 'rope_scaling: {"type": "linear", "factor": 2.0}'),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 32.0}}, "only rope_type default"),
    ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "only rope_type default"),
    ("llama", {"rope_parameters": {"rope_theta": 1e5}}, "rope_theta is 10000.0 and, in rope_parameters, 100000.0"),
    ("llama", {"rope_scaling": 2}, "rope_scaling must be an object or null, not 2"),
    ("llama", {"head_dim": 16}, "head_dim must be 12, not 16"),
    ("llama", {"attention_bias": True}, "attention_bias: true is not supported"),
    ("llama", {"mlp_bias": True}, "mlp_bias: true is not supported"),
    ("llama", {"hidden_act": "gelu"}, 'hidden_act: "gelu" is not supported'),
    ("llama", {"sliding_window": 64}, "sliding_window: 64 is not supported"),
    ("llama", {"rope_interleaved": True}, "rope_interleaved: true is not supported"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5 is not supported"),
    ("llama", {"quantization_config": {"bits": 4}}, 'quantization_config: {"bits": 4} is not supported'),
    ("llama", {"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number that is not negative, not NaN"),
    ("llama", {"num_attention_heads": 0}, "num_attention_heads must be a whole number between 1 and 2^31, not 0"),
    ("llama", {"num_attention_heads": 5}, "n_heads must divide d_model: 5 does not divide 24"),
    ("llama", {"hidden_size": "24"}, 'hidden_size must be a whole number between 1 and 2^31, not "24"'),
    ("llama", {"hidden_size": True}, "hidden_size must be a whole number between 1 and 2^31, not true"),
    ("llama", {"vocab_size": None}, "vocab_size is missing"),
    ("llama", {"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false, not 1"),
    ("llama", {"num_hidden_layers": 10**9}, "says 1000000000 layers, but the files hold only 21 tensors"),
    ("torchscale-retnet", {"deepnorm": True}, "deepnorm: true is not supported"),
    ("torchscale-retnet", {"decoder_normalize_before": False}, "decoder_normalize_before: false is not supported"),
    ("torchscale-retnet", {"layernorm_embedding": True}, "layernorm_embedding: true is not supported"),
    ("torchscale-retnet", {"activation_fn": "gelu"}, 'activation_fn: "gelu" is not supported, only "swish"'),
    ("torchscale-retnet", {"gamma": "linspace"}, 'gamma: "linspace" is not supported, only "1-2**(-5-i)"'),
    ("torchscale-retnet", {"position0": 1}, "position0: 1 is not supported, only 0"),
    ("torchscale-retnet", {"value_dim": 36}, "value_dim 36 must be a multiple of hidden 24"),
    ("torchscale-retnet", {"head_dim_qk": 8}, "head_dim_qk must be 12, not 8"),
    ("torchscale-retnet", {"embed_scale": 2.0}, "embed_scale must be 1.0 as no_scale_embedding says, not 2.0"),
]


@pytest.mark.parametrize(("model_type", "changes", "expected"), REFUSED)
def test_a_config_field_that_we_cannot_follow_is_refused(
    tmp_path: Path, model_type: str, changes: dict[str, Any], expected: str
) -> None:
    assert expected in refusal(folder_of(model_type, tmp_path, **changes))


def test_all_fields_that_we_cannot_follow_are_listed(tmp_path: Path) -> None:
    said = refusal(folder_of("llama", tmp_path, attention_bias=True, mlp_bias=True, hidden_act="gelu"))

    assert len(said.splitlines()) == 4
    assert all(name in said for name in ("attention_bias", "mlp_bias", "hidden_act"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"colour": "red"}, "retnet has no config field colour"),
        ({"gate": "false"}, 'gate must be of type bool, not "false"'),
        ({"n_layers": 2.0}, "n_layers must be of type int, not 2.0"),
        ({"norm_eps": "1e-6"}, "of the wrong type|must be of type float"),
        ({"d_model": "128"}, "of the wrong type"),
        ({"d_model": 3}, "n_heads must divide d_model"),
        ({"n_layers": 3}, "missing: layers.2.mixer.q_proj.weight"),
        ({"gamma": "eq9"}, "gamma must be one of linspace, eq8, single, none, not 'eq9'"),
        ({"vocab_size": 10**30}, "describes a model that cannot be"),
    ],
)
def test_a_config_of_ours_that_was_changed_is_refused(
    tmp_path: Path, changes: dict[str, object], expected: str
) -> None:
    save_checkpoint(build("retnet", "tiny", vocab_size=16), tmp_path)
    path = tmp_path / "config.json"

    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")

    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("retnet", {"num_kv_heads": None, "attn": None, "feature_map": None, "hidden_act": "silu", "use_cache": False}),
        ("retnet", {"num_kv_heads": 2, "expand_k": 1.0, "attn_mode": "parallel", "share_conv_kernel": True}),
        ("transformer", {"num_kv_heads": None, "window_size": None, "attention_bias": False, "fuse_norm": True}),
        ("llama", {"head_dim": 12, "rope_scaling": None, "num_key_value_heads": None, "pretraining_tp": 1}),
        ("llama", {"rope_scaling": {"rope_type": "default"}, "torch_dtype": "bfloat16", "architectures": ["A"]}),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "rope_interleaved": False}),
        ("torchscale-retnet", {"head_dim_qk": 12, "head_dim_v": 24, "embed_scale": 1.0, "subln": True}),
    ],
)
def test_fields_that_change_nothing_are_accepted(tmp_path: Path, model_type: str, changes: dict[str, Any]) -> None:
    plain = load_checkpoint(folder_of(model_type, tmp_path))

    loaded = load_checkpoint(folder_of(model_type, tmp_path, **changes))

    assert loaded.config == plain.config


def test_the_base_of_the_rotation_may_stand_in_rope_parameters(tmp_path: Path) -> None:
    config = {**config_json("llama", SHAPE), "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
    del config["rope_theta"]

    loaded = load_checkpoint(write(tmp_path, config, random_weights("llama", SHAPE)))

    assert loaded.config.rope_base == 500000.0


@pytest.mark.parametrize(
    ("model_type", "size", "ratio", "d_ffn"),
    [
        ("retnet", 2048, {"hidden_ratio": 2}, 2816),  # fla-hub/retnet-1.3B-100B
        ("retnet", 2560, {}, 3584),
        ("retnet", 48, {"hidden_ratio": None}, 256),
        ("retnet", 96, {"hidden_ratio": None}, 256),
        ("retnet", 200, {"hidden_ratio": None}, 768),
        ("transformer", 2048, {"hidden_ratio": 4}, 5632),
        ("transformer", 384, {}, 1024),
    ],
)
def test_an_intermediate_size_of_null_follows_the_rule_of_fla(
    tmp_path: Path, model_type: str, size: int, ratio: dict[str, object], d_ffn: int
) -> None:
    config = {**config_json(model_type, SHAPE), **ratio, "hidden_size": size, "intermediate_size": None}

    said = refusal(write(tmp_path, config, random_weights(model_type, SHAPE)))

    assert f"shape: model.layers.0.mlp.gate_proj.weight (40, 24) must be ({d_ffn}, {size})" in said


def test_the_config_of_the_published_retnet_gives_its_model() -> None:
    published = {
        "model_type": "retnet",
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_heads": 8,
        "expand_k": 1.0,
        "expand_v": 2.0,
        "hidden_ratio": 2,
        "intermediate_size": None,
        "norm_eps": 1e-6,
        "vocab_size": 32000,
    }

    config = LAYOUTS["retnet"].config(Fields(published))
    with torch.device("meta"):
        model = RetNet(cast(RetNetConfig, config))

    assert config.d_ffn == 2816
    assert (model.d_rotary, model.init_state(1, 1).nbytes) == (256, 24 * 8 * 256 * 512 * 4)
    assert len(model.state_dict()) == 267
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_351_727_104


def test_published_transformers_run_on_fused_attention(tmp_path: Path) -> None:
    loaded = load_checkpoint(folder_of("llama", tmp_path))

    assert isinstance(loaded.config, TransformerConfig)
    assert (loaded.config.system, loaded.config.attention) == ("transformer-flash", "flash")


# ---- memory

LAYERS = Shape(d=2048, layers=8, heads=8, values=4096, ffn=2816, vocab=32000)
ONE_TENSOR = Shape(d=2048, layers=1, heads=8, values=4096, ffn=2816, vocab=220_000, tied=True)
LOAD_AND_MEASURE = """
import json, sys, torch, models.checkpoint, models.retnet
def read():
    lines = (line.split() for line in open("/proc/self/status"))
    return {line[0]: int(line[1]) * 1024 for line in lines if line[0] in ("VmHWM:", "VmRSS:", "RssAnon:")}
before = read()
model = models.load_checkpoint(sys.argv[1], getattr(torch, sys.argv[2]))
after = read()
print(json.dumps({
    "peak": after["VmHWM:"] - before["VmRSS:"],
    "anonymous": after["RssAnon:"] - before["RssAnon:"],
    "weights": model.weights_bytes(),
}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
@pytest.mark.parametrize(
    ("shape", "shards", "dtype", "growth"),
    [(LAYERS, 1, "bfloat16", 1), (LAYERS, 3, "bfloat16", 1), (ONE_TENSOR, 1, "bfloat16", 1), (LAYERS, 1, "float32", 2)],
)
def test_the_peak_of_loading_is_the_model_and_little_more(
    tmp_path: Path, shape: Shape, shards: int, dtype: str, growth: int
) -> None:
    weights = {
        name: torch.full(size, 0.01, dtype=torch.bfloat16) for name, size in tensor_shapes("retnet", shape).items()
    }
    write(tmp_path, config_json("retnet", shape), weights, shards)
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))

    command = [sys.executable, "-c", LOAD_AND_MEASURE, str(tmp_path), dtype]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    measured = json.loads(printed)

    assert size > 10**9
    assert measured["weights"] == pytest.approx(growth * size, rel=0.01)
    assert measured["peak"] <= (growth + 0.15) * size
    assert growth * size * 0.99 <= measured["anonymous"] <= (growth + 0.05) * size
