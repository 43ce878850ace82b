"""Linear layers with oneDNN's float32 products: equal to torch's default, in outputs and gradients, or not used."""

# N rows, I input channels, O output channels

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from models import linear
from models.linear import LEAST_ROWS, Linear, onednn, onednn_refusal
from tests.models.helpers import error, gradient_error, gradients, random_tokens, repeatable, shared_model


def always(threads: int) -> None:
    """Takes oneDNN for as much faster as it takes, whatever this processor is."""


def refuse(*_: object) -> torch.Tensor:
    raise AssertionError("oneDNN was asked")


@given(rows=st.integers(1, 70), width=st.integers(1, 40), out=st.integers(1, 40), batch=st.integers(1, 3))
@repeatable
def test_products_and_gradients_equal_those_of_torch(rows: int, width: int, out: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(batch, rows, width, generator=generator, requires_grad=True)
    layer = Linear(width, out, bias=False)
    weighting = torch.randn(batch, rows, out, generator=generator)
    found = {}
    for name, refusal in (("onednn", always), ("torch", lambda _: "no")):
        x.grad = layer.weight.grad = None
        with patch.object(linear, "onednn_refusal", refusal), patch.object(linear, "LEAST_ROWS", 0):
            product = layer(x)
        (product * weighting).sum().backward()
        assert x.grad is not None
        assert layer.weight.grad is not None
        found[name] = [product.detach(), x.grad, layer.weight.grad]

    assert all(
        torch.allclose(*pair, rtol=1e-4, atol=1e-4) for pair in zip(found["onednn"], found["torch"], strict=True)
    )


@pytest.mark.parametrize("system", ["retnet", "transformer-flash"])
def test_a_model_with_onednn_products_has_the_same_logits_and_gradients(system: str) -> None:
    model, tokens = shared_model(system, torch.float32), random_tokens(2, 80)
    with patch.object(linear, "onednn_refusal", lambda _: "no"):
        expected, expected_gradients = model(tokens).detach(), gradients(model, tokens)

    with patch.object(linear, "onednn_refusal", always), patch.object(linear, "onednn", wraps=onednn) as product:
        actual, actual_gradients = model(tokens).detach(), gradients(model, tokens)

    assert product.call_count > 0
    assert error(actual, expected) < 1e-4
    assert gradient_error(actual_gradients, expected_gradients) < 1e-3


@pytest.mark.parametrize(
    ("rows", "dtype"),
    [(LEAST_ROWS - 1, torch.float32), (LEAST_ROWS, torch.float64), (LEAST_ROWS, torch.bfloat16)],
)
def test_few_rows_and_other_dtypes_stay_with_torch(rows: int, dtype: torch.dtype) -> None:
    layer, x = Linear(8, 8, bias=False, dtype=dtype), torch.ones(rows, 8, dtype=dtype)

    with patch.object(linear, "onednn_refusal", always), patch.object(linear, "onednn", refuse):
        assert torch.equal(layer(x), F.linear(x, layer.weight))


@pytest.mark.parametrize(("slowdown", "refused"), [(0.5, True), (3.0, False)])
def test_onednn_is_used_only_where_it_is_faster(slowdown: float, refused: bool) -> None:
    times_s = iter([slowdown, 1.0])

    with patch.object(linear, "_least_s", lambda _: next(times_s)):
        reason = onednn_refusal.__wrapped__(1)

    assert (reason is not None) == refused


def test_a_torch_without_the_operator_and_one_that_computes_wrong_results_are_refused() -> None:
    with patch.object(linear, "onednn", side_effect=AttributeError("no such operator")):
        missing = onednn_refusal.__wrapped__(1)
    with patch.object(linear, "onednn", lambda x, weight: F.linear(x, weight) * 1.01):
        wrong = onednn_refusal.__wrapped__(1)

    assert "no such operator" in str(missing)
    assert "errs by" in str(wrong)
