"""Loads checkpoints, published ones too (see ``models.layouts``), into our models, and writes our own.

A checkpoint is a folder with config.json and model.safetensors, or shards of it and model.safetensors.index.json.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor

from models import from_config
from models.config import Config
from models.language_model import LanguageModel
from models.layouts import LAYOUTS, Fields, Layout
from models.parallel import gathered, rank
from models.tensor_files import DTYPES, WEIGHTS, CheckpointError, Stored, read_json, stored_tensors

__all__ = ["CheckpointError", "load_checkpoint", "save_checkpoint"]

CONFIG = "config.json"


def load_checkpoint(
    folder: str | os.PathLike[str], dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> LanguageModel:
    """The model in a checkpoint folder, in ``dtype`` or, without one, in the dtype that is stored.

    Weights stored in several dtypes become the smallest that holds all of them, but for those that a model keeps in
    float32 whatever its dtype. Raises CheckpointError for anything
    that would not give exactly the model that was saved; it lists missing, unknown and mis-shaped tensors.
    """
    folder = Path(folder)
    if dtype not in (None, *DTYPES.values()):
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES.values()))}, not {dtype}")
    if not folder.is_dir():
        raise CheckpointError(folder, ["there is no such folder"])
    layout, config = _read_layout(folder / CONFIG)
    stored = stored_tensors(folder)
    if config.n_layers > len(stored):
        problem = f"{CONFIG} says {config.n_layers} layers, but the files hold only {len(stored)} tensors"
        raise CheckpointError(folder, [problem])
    model = _without_weights(folder / CONFIG, config)
    chosen = _match(folder, layout, model, stored)
    dtypes = _dtypes(model, dtype or _stored_dtype(model, chosen))
    _assign(model, {name: tensor.read(dtypes[name], device) for name, tensor in chosen.items()})
    return model


def save_checkpoint(model: LanguageModel, folder: str | os.PathLike[str]) -> None:
    """Writes config.json and model.safetensors, tied weights once; other files in the folder stay.

    The folder holds the old checkpoint, the new one or, for an instant between them, none that loads: never a mixture.
    Every rank of a model that FSDP has sharded calls it, and the first writes.
    """
    weights = {name: tensor.contiguous() for name, tensor in gathered(_own_tensors(model)).items()}
    if rank() != 0:
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "retbench", **asdict(model.config)}
    with TemporaryDirectory(prefix=".saving-", dir=folder) as temporary:
        new = Path(temporary)
        save_file(weights, new / WEIGHTS, {"format": "pt"})
        (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        shutil.copymode(new / CONFIG, new / WEIGHTS)  # safetensors writes for the owner alone
        _sync(new / WEIGHTS)
        _sync(new / CONFIG)
        (folder / CONFIG).unlink(missing_ok=True)  # so that new weights never stand beside an old config
        (new / WEIGHTS).replace(folder / WEIGHTS)
        (new / CONFIG).replace(folder / CONFIG)
    _sync(folder)


def read_config(folder: str | os.PathLike[str]) -> Config:
    """The config of the model in a checkpoint folder; raises CheckpointError where it cannot be loaded."""
    return _read_layout(Path(folder) / CONFIG)[1]


def _read_layout(path: Path) -> tuple[Layout, Config]:
    values = read_json(path)
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in LAYOUTS:
        raise CheckpointError(path, [f"unknown model_type {model_type!r}; model types are {', '.join(LAYOUTS)}"])
    layout, fields = LAYOUTS[model_type], Fields(values)
    unsupported = layout.unsupported(fields)
    if unsupported:
        raise CheckpointError(path, unsupported)
    try:
        return layout, layout.config(fields)
    except ValueError as error:
        raise CheckpointError(path, [str(error)]) from error


def _without_weights(config_file: Path, config: Config) -> LanguageModel:
    """The model on the meta device, where tensors have shapes but no memory."""
    try:
        with torch.device("meta"):
            model = from_config(config)
    except (RuntimeError, TypeError, OverflowError) as error:
        raise CheckpointError(config_file, [f"describes a model that cannot be: {error}"]) from error
    return model


def _own_tensors(model: LanguageModel) -> dict[str, Tensor]:
    """The tensors of a model by name, tied ones once."""
    tied = ("head.weight",) if model.config.tied_embeddings else ()
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


def _stored_dtype(model: LanguageModel, chosen: Mapping[str, Stored]) -> torch.dtype:
    """The smallest dtype that holds all stored weights but those that a cast of the model leaves in float32."""
    cast = [name for name, dtype in _dtypes(model, torch.float16).items() if dtype == torch.float16]
    return reduce(torch.promote_types, (DTYPES[chosen[name].dtype] for name in cast if name in chosen))


def _dtypes(model: LanguageModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The dtype of each tensor of a model without weights once it is cast to ``dtype``."""
    return {name: tensor.dtype for name, tensor in model.to(dtype).state_dict().items()}


def _assign(model: LanguageModel, weights: Mapping[str, Tensor]) -> None:
    """Makes ``weights``, those of ``_own_tensors``, the model's own without a copy."""
    tied = {"head.weight": weights["embedding.weight"]} if model.config.tied_embeddings else {}
    model.load_state_dict({**weights, **tied}, assign=True)
    if tied:  # assigning made two parameters of one tensor
        model.head.weight = model.embedding.weight


def _match(folder: Path, layout: Layout, model: LanguageModel, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """Our name -> the stored tensor; raises CheckpointError unless each of ours has one and nothing is left over."""
    wanted = {name: tuple(tensor.shape) for name, tensor in _own_tensors(model).items()}
    names = layout.tensor_names(model.state_dict(), model.config.n_layers)  # theirs -> ours
    constants = layout.constant_tensors(model.config)
    theirs = {ours: name for name, ours in reversed(names.items())}  # of several, the first
    chosen = {ours: stored[name] for name, ours in reversed(names.items()) if name in stored and ours in wanted}
    problems = [f"missing: {theirs[ours]} {shape}" for ours, shape in wanted.items() if ours not in chosen]
    problems += [f"unknown: {tensor}" for name, tensor in stored.items() if name not in names and name not in constants]
    for ours, tensor in chosen.items():
        if tensor.shape != wanted[ours]:
            problems.append(f"shape: {tensor} must be {wanted[ours]}")
        if tensor.dtype not in DTYPES:
            problems.append(f"dtype: {tensor} is {tensor.dtype}, not one of {', '.join(DTYPES)}")
    if not problems:
        problems = _contradictions(chosen, names, constants, stored)
    if problems:
        raise CheckpointError(folder, problems)
    return chosen


def _contradictions(
    chosen: Mapping[str, Stored],
    names: Mapping[str, str],
    constants: Mapping[str, Tensor],
    stored: Mapping[str, Stored],
) -> list[str]:
    """Tensors that are not needed, but that say something else than our model computes with."""
    problems = []
    for name, expected in constants.items():
        if name in stored and not _holds(stored[name], expected):
            problems.append(f"values: {stored[name]} are not those that our model computes with")
    for name, ours in names.items():
        same = chosen.get(ours, chosen["embedding.weight"])  # what is not chosen is a tied head
        if name in stored and stored[name] != same and not stored[name].equals(same):
            problems.append(f"values: {stored[name]} must be those of {same}, which is the same weight")
    return problems


def _holds(tensor: Stored, expected: Tensor) -> bool:
    """Whether a tensor holds ``expected`` as exactly as its dtype can, or almost."""
    if tensor.dtype not in DTYPES or tensor.shape != tuple(expected.shape):
        return False
    precision = torch.finfo(DTYPES[tensor.dtype]).eps
    actual = tensor.read(expected.dtype)
    return torch.allclose(actual, expected, rtol=4 * precision, atol=torch.finfo(torch.float32).eps)


def _sync(path: Path) -> None:
    """Returns once a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
