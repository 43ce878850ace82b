"""int8 weights: rounded to the nearest, the product is that of the weights made whole, models keep their contract."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from models import build
from models.quantization import MOST_ROWS, Int8Linear, quantize_
from tests.models.helpers import repeatable

SYSTEMS = ("retnet", "transformer", "transformer-flash")


def weights(seed: int, dtype: torch.dtype = torch.float32, inputs: int = 48) -> Tensor:
    return torch.randn(24, inputs, generator=torch.Generator().manual_seed(seed)).to(dtype)


@repeatable
@given(st.integers(0, 2**31), st.sampled_from(list(MOST_ROWS)))
def test_every_weight_is_rounded_to_the_nearest_multiple_of_its_rows_scale(seed: int, dtype: torch.dtype) -> None:
    weight = weights(seed, dtype).double()
    layer = Int8Linear(weight.to(dtype))

    step = layer.scale.double()[:, None]
    error = (layer.quantized * step - weight).abs()
    # The scale is rounded to the dtype, so that the largest weight of a row may lie outside its 127 steps.
    assert (error <= 0.5 * step * (1 + 127 * 2 * torch.finfo(dtype).eps)).all()


@pytest.mark.parametrize("dtype", MOST_ROWS)
@pytest.mark.parametrize("inputs", [40, 48])
@pytest.mark.parametrize("rows", [1, 16, 17])
def test_the_product_is_that_of_the_weights_made_whole(rows: int, inputs: int, dtype: torch.dtype) -> None:
    layer = Int8Linear(weights(0, dtype, inputs))
    x = torch.randn(rows, 2, inputs, generator=torch.Generator().manual_seed(1)).to(dtype)[:, 1]  # strided

    expected = x.double() @ (layer.quantized.double() * layer.scale.double()[:, None]).mT
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(layer(x).double(), expected, rtol=tolerance, atol=tolerance * 10)


def test_a_row_of_zeros_stays_zero() -> None:
    layer = Int8Linear(torch.zeros(3, 8, dtype=torch.bfloat16))

    assert torch.equal(layer(torch.ones(2, 8, dtype=torch.bfloat16)), torch.zeros(2, 3, dtype=torch.bfloat16))


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_quantized_model_prefills_and_steps_as_its_training_form(system: str) -> None:
    model = build(system, "tiny", vocab_size=50)
    quantize_(model)
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))

    with torch.inference_mode():
        expected = model(tokens)[:, -1]
        _, state = model.prefill(tokens[:, :-1])
        logits, _ = model.step(tokens[:, -1], state)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("system", SYSTEMS)
def test_quantizing_changes_the_logits_a_little_and_keeps_embedding_and_norms(system: str) -> None:
    model = build(system, "tiny", vocab_size=50)
    kept = {name: value.clone() for name, value in model.state_dict().items() if "norm" in name or "embedding" in name}
    tokens = torch.arange(40)[None]

    with torch.inference_mode():
        before = model(tokens)
        quantize_(model)
        error = (model(tokens) - before).norm() / before.norm()
    assert 0 < error < 0.03
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    assert all(torch.equal(model.state_dict()[name], value) for name, value in kept.items())


def test_weights_bytes_are_those_of_int8_and_scales() -> None:
    model = build("retnet", "tiny", vocab_size=50)
    other = sum(p.nbytes for name, p in model.named_parameters() if p.ndim == 1) + model.embedding.weight.nbytes
    linears = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    quantize_(model)

    expected = sum(weight.numel() + 4 * weight.shape[0] for weight in linears)
    assert model.weights_bytes() == other + expected
    assert model.step_weights_bytes() == model.weights_bytes() - model.embedding.weight.nbytes


def test_a_tied_head_is_copied_and_then_read_beside_the_embedding() -> None:
    model = build("transformer", "tiny", vocab_size=50, tied_embeddings=True)
    tied_bytes = model.step_weights_bytes()
    table = model.embedding.weight.clone()
    quantize_(model)

    assert tied_bytes > model.step_weights_bytes() == model.weights_bytes() - table.nbytes
    assert torch.equal(model.embedding.weight, table)


def test_float64_is_refused_with_what_is_allowed() -> None:
    model = build("retnet", "tiny", vocab_size=50).double()

    with pytest.raises(NotImplementedError, match="without bias in bfloat16, float16, float32"):
        quantize_(model)
