"""Parameters that stay float32 in a bf16 or fp16 model, however it was cast, built or loaded."""

from pathlib import Path

import pytest
import torch

from models import build, load_checkpoint, save_checkpoint
from models.language_model import LanguageModel
from models.precision import Float32Module
from tests.models.helpers import random_tokens

SYSTEMS = ("h3", "hyena")
HALF = (torch.bfloat16, torch.float16)


def kept(model: LanguageModel) -> dict[str, torch.Tensor]:
    """The parameters inside modules that keep them float32."""
    return {
        f"{name}.{inner}": parameter
        for name, module in model.named_modules()
        if isinstance(module, Float32Module)
        for inner, parameter in module.named_parameters()
    }


def dtypes(model: LanguageModel) -> tuple[set[torch.dtype], set[torch.dtype]]:
    """Of the parameters that are kept, and of the others."""
    inside = kept(model)
    others = {parameter.dtype for name, parameter in model.named_parameters() if name not in inside}
    return {parameter.dtype for parameter in inside.values()}, others


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_cast_to_half_precision_leaves_them_as_they_were_to_the_bit(system: str, dtype: torch.dtype) -> None:
    model = build(system, "tiny", vocab_size=8)
    before = {name: parameter.detach().clone() for name, parameter in kept(model).items()}

    model.to(dtype)

    assert dtypes(model) == ({torch.float32}, {dtype})
    assert before
    assert all(torch.equal(parameter, before[name]) for name, parameter in kept(model).items())


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_other_cast_is_followed(system: str) -> None:
    model = build(system, "tiny", vocab_size=8)

    assert dtypes(model.double()) == ({torch.float64}, {torch.float64})
    assert dtypes(model.half()) == ({torch.float32}, {torch.float16})
    assert dtypes(model.float()) == ({torch.float32}, {torch.float32})
    assert {parameter.device.type for parameter in model.to("meta").parameters()} == {"meta"}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_default_dtype_of_half_precision_builds_the_model_of_a_cast(system: str, dtype: torch.dtype) -> None:
    cast = build(system, "tiny", vocab_size=8).to(dtype)
    torch.set_default_dtype(dtype)
    try:
        built = build(system, "tiny", vocab_size=8)
        with torch.no_grad():
            logits = built(random_tokens(1, 9, vocab_size=8))
    finally:
        torch.set_default_dtype(torch.float32)

    assert dtypes(built) == ({torch.float32}, {dtype})
    assert logits.dtype == dtype
    assert all(built.state_dict()[name].dtype == weight.dtype for name, weight in cast.state_dict().items())


@pytest.mark.parametrize("dtype", [None, torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_checkpoint_is_loaded_in_the_dtypes_of_a_cast_model(
    tmp_path: Path, system: str, dtype: torch.dtype | None
) -> None:
    saved = build(system, "tiny", vocab_size=8).to(torch.bfloat16)
    save_checkpoint(saved, tmp_path)

    loaded = load_checkpoint(tmp_path, dtype)
    expected = saved if dtype is None else saved.to(dtype)

    assert dtypes(loaded) == dtypes(expected)
    assert all(torch.equal(weight, expected.state_dict()[name]) for name, weight in loaded.state_dict().items())


@pytest.mark.parametrize("system", SYSTEMS)
def test_states_of_a_bf16_model_are_float32_and_complex64_and_stay_so(system: str) -> None:
    model = build(system, "tiny", vocab_size=8).to(torch.bfloat16)
    state = model.init_state(2, 12)

    model.prefill(random_tokens(2, 10, vocab_size=8), state)
    logits, _ = model.step(random_tokens(2, 1, vocab_size=8)[:, 0], state)

    assert logits.dtype == torch.bfloat16
    assert {tensor.dtype for tensor in state.tensors()} <= {torch.float32, torch.complex64}
