"""Linear Transformer: its forms against a plain evaluation of the equations and against other projects' results."""

# B batch, H heads, T positions, K key dim, V value dim of a head

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models import build, linear_transformer
from models.linear_transformer import EPSILON, LinearTransformer, LinearTransformerConfig
from tests.models.helpers import (
    TOLERANCE,
    VOCAB_SIZE,
    error,
    gradient_error,
    gradients,
    oracle,
    random_model,
    random_tokens,
    read,
    repeatable,
    shared_model,
)

Inputs = tuple[Tensor, Tensor, Tensor]


def random_inputs(batch_size: int, length: int, scale: float = 1.0) -> Inputs:
    """q, k (B, 2, T, 4), v (B, 2, T, 6) in float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch_size, 2, length, dim) for dim in (4, 4, 6)]
    q, k, v = (scale * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return q, k, v


def empty(inputs: Inputs) -> Tensor:
    """S and z of no token (B, H, K, V + 1)."""
    _, k, v = inputs
    return torch.zeros(*k.shape[:2], k.shape[-1], v.shape[-1] + 1, dtype=k.dtype)


def equations(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All scores at once: y_n = sum over m <= n of phi(q_n) . phi(k_m) v_m / (the same without v_m + epsilon)."""
    scores = ((F.elu(q) + 1) @ (F.elu(k) + 1).mT).tril()  # (B, H, T, T)
    return scores @ v / (scores.sum(-1, keepdim=True) + EPSILON)


def steps(inputs: Inputs, memory: Tensor) -> Tensor:
    positions = zip(*(x.unbind(2) for x in inputs), strict=True)
    return torch.stack([linear_transformer.step_(q, k, v, memory) for q, k, v in positions], dim=2)


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(length=st.integers(1, 40), chunk_size=st.integers(1, 50), batch_size=st.integers(1, 3))
@repeatable
def test_chunks_and_steps_compute_the_equations(
    dtype: torch.dtype, length: int, chunk_size: int, batch_size: int
) -> None:
    exact = random_inputs(batch_size, length)
    q, k, v = (x.to(dtype) for x in exact)
    stepped, memory = empty((q, k, v)), empty((q, k, v))

    out, memory = linear_transformer.chunkwise(q, k, v, memory, chunk_size)

    assert out.dtype == dtype
    assert error(out, equations(*exact)) < TOLERANCE[dtype]
    assert error(steps((q, k, v), stepped), equations(*exact)) < TOLERANCE[dtype]
    assert error(memory, stepped) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(length=st.integers(2, 30), chunk_size=st.integers(1, 32), batch_size=st.integers(1, 3))
@repeatable
def test_chunks_have_the_gradients_of_the_equations(
    dtype: torch.dtype, length: int, chunk_size: int, batch_size: int
) -> None:
    def found(q: Tensor, k: Tensor, v: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        return torch.autograd.grad(y, (q, k, v), weight.to(y.dtype))

    exact = tuple(x.requires_grad_() for x in random_inputs(batch_size, length))
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in exact)

    actual = found(q, k, v, linear_transformer.chunkwise(q, k, v, empty((q, k, v)), chunk_size)[0])

    for gradient, expected in zip(actual, found(*exact, equations(*exact)), strict=True):
        assert error(gradient, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("name", "prefix", "tolerance"),
    [("linear_attention_idiap", "", 1e-9), ("fla_naive", "linattn_", 3e-5)],  # float64 and float32
)
@pytest.mark.parametrize("chunk_size", [16, 48, 256])
def test_outputs_and_states_equal_those_of_other_projects(
    name: str, prefix: str, tolerance: float, chunk_size: int
) -> None:
    theirs = oracle(f"mixers/{name}.pt")
    q, k, v = (theirs[x].transpose(1, 2) for x in "qkv")
    stepped = empty((q, k, v))

    out, memory = linear_transformer.chunkwise(q, k, v, empty((q, k, v)), chunk_size)
    decoded = steps((q, k, v), stepped)

    assert error(out.transpose(1, 2), theirs[f"{prefix}y"]) < tolerance
    assert error(decoded.transpose(1, 2), theirs[f"{prefix}y"]) < tolerance
    for found in (memory, stepped):
        assert error(found[..., :-1], theirs[f"{prefix}S"]) < tolerance
        assert error(found[..., -1], theirs[f"{prefix}z"].reshape(found.shape[:-1])) < tolerance


@pytest.mark.parametrize("length", [1, 127, 128, 129, 300])
def test_gradients_do_not_depend_on_the_chunk_size(length: int) -> None:
    tokens = random_tokens(2, length)
    whole, chunked = (random_model("linear-transformer", chunk_size=size) for size in (300, 128))

    assert gradient_error(gradients(chunked, tokens), gradients(whole, tokens)) < 1e-10


@pytest.mark.parametrize("value", [-1e3, -30.0, 0.0, 30.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_and_large_activations_stay_finite_and_right(dtype: torch.dtype, value: float) -> None:
    exact = [torch.full((1, 1, 40, dim), value, dtype=torch.float64) for dim in (4, 4, 6)]
    q, k, v = (x.to(dtype).requires_grad_() for x in exact)

    out, _ = linear_transformer.chunkwise(q, k, v, empty((q, k, v)).float(), 16)
    found = torch.autograd.grad(out.float().sum(), (q, k, v))

    assert ((out.double() - equations(*exact)).abs() <= 0.02 * abs(value)).all()
    assert all(gradient.isfinite().all() for gradient in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_feature_map_keeps_small_values(dtype: torch.dtype) -> None:
    x = torch.linspace(-12, 3, 301, dtype=torch.float64).to(dtype)
    expected = torch.where(x.double() > 0, x.double() + 1, x.double().exp())

    assert ((linear_transformer.feature_map(x).double() - expected).abs() <= torch.finfo(dtype).eps * expected).all()


def test_the_feature_map_has_the_gradient_of_elu_at_zero_too() -> None:
    x = torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)

    (actual,) = torch.autograd.grad(linear_transformer.feature_map(x).sum(), x)
    (expected,) = torch.autograd.grad(F.elu(x).sum(), x)

    assert torch.allclose(actual, expected, rtol=1e-12)


def test_the_state_is_float32_in_place_and_does_not_grow() -> None:
    model = build("linear-transformer", "tiny", vocab_size=VOCAB_SIZE).to(torch.bfloat16)
    state = model.init_state(3, 100_000)
    addresses = [tensor.data_ptr() for tensor in state.tensors()]
    expected = 2 * 3 * 2 * 64 * (64 + 1) * 4  # layers, batch, heads, key dim, value dim and normaliser, bytes

    read(model, random_tokens(3, 20), [7, 6], state)

    assert state.nbytes == state.sized(10).nbytes == expected
    assert state.step_bytes() == 2 * expected
    assert [tensor.data_ptr() for tensor in state.tensors()] == addresses
    assert {tensor.dtype for tensor in state.tensors()} == {torch.float32}


def test_heads_and_matching_are_the_transformers() -> None:
    small, large = (LinearTransformerConfig("linear-transformer", d_model=d, n_layers=1) for d in (768, 2048))

    assert (small.n_heads, small.d_head, small.d_ffn) == (12, 64, 4 * 768)
    assert (large.n_heads, large.d_head, large.d_ffn) == (16, 128, 4 * 2048)


def test_the_record_says_how_it_computes() -> None:
    model = shared_model("linear-transformer", torch.float64)

    assert isinstance(model, LinearTransformer)
    assert (model.backend, model.decode_form) == ("torch", "recurrent")
