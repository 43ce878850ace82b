"""LSTM: torch's layer and our step against the equations, its initialisation, its state."""

# B batch, T positions, D model dim

from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models import build
from models.lstm import LSTMMixer, LSTMState
from tests.models.helpers import (
    VOCAB_SIZE,
    error,
    random_model,
    random_tokens,
    read,
    repeatable,
    shared_model,
)


def random_mixer() -> LSTMMixer:
    return cast(LSTMMixer, random_model("lstm").blocks[0].mixer)


def equations(mixer: LSTMMixer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, T, D) -> y (B, T, D) and the last output and cell (B, D), gate by gate from nothing."""
    weights = [matrix.split(mixer.d_model) for matrix in mixer.lstm.all_weights[0]]  # four gates of W, U, b, b
    output = cell = torch.zeros_like(x[:, 0])
    outputs = []
    for x_n in x.unbind(1):
        i, f, g, o = (x_n @ w.T + output @ u.T + b + c for w, u, b, c in zip(*weights, strict=True))
        cell = cell / (1 + torch.exp(-f)) + torch.tanh(g) / (1 + torch.exp(-i))
        output = torch.tanh(cell) / (1 + torch.exp(-o))
        outputs.append(output)
    return torch.stack(outputs, dim=1), output, cell


@given(length=st.integers(1, 20), batch_size=st.integers(1, 3))
@repeatable
def test_training_and_steps_compute_the_equations(length: int, batch_size: int) -> None:
    mixer = random_mixer()
    positions = shared_model("lstm", torch.float64).positions(0, 1)
    x = torch.randn(batch_size, length, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prefilled, stepped = (mixer.init_state(batch_size, 1) for _ in range(2))

    with torch.no_grad():
        y, output, cell = equations(mixer, x)
        trained = mixer(x, positions, prefilled)
        decoded = torch.stack([mixer.step(x_n, positions, stepped) for x_n in x.unbind(1)], dim=1)

    assert error(trained, y) < 1e-10
    assert error(decoded, y) < 1e-10
    for state in (prefilled, stepped):
        assert error(state.output, output) < 1e-10
        assert error(state.cell, cell) < 1e-10


def test_gradients_are_those_of_the_equations() -> None:
    mixer, positions = random_mixer(), shared_model("lstm", torch.float64).positions(0, 1)
    x = torch.randn(2, 9, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 9, 128, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaves = (x, *mixer.parameters())

    actual = torch.autograd.grad(mixer(x, positions), leaves, weight)
    expected = torch.autograd.grad(equations(mixer, x)[0], leaves, weight)

    for found, wanted in zip(actual, expected, strict=True):
        assert error(found, wanted) < 1e-10


def test_forget_gates_start_open_and_the_other_biases_at_zero() -> None:
    mixer = cast(LSTMMixer, build("lstm", "tiny", vocab_size=8).blocks[0].mixer)
    _, _, input_bias, recurrent_bias = mixer.lstm.all_weights[0]
    i, f, g, o = (input_bias + recurrent_bias).detach().split(128)

    assert (f == 1).all()
    assert not torch.cat((i, g, o)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_equal_and_large_activations_stay_finite_and_bounded(dtype: torch.dtype, scale: float) -> None:
    model = build("lstm", "tiny", vocab_size=8).to(dtype)
    mixer = cast(LSTMMixer, model.blocks[0].mixer)
    x = torch.full((1, 300, 128), scale, dtype=dtype, requires_grad=True)

    y = mixer(x, model.positions(0, 300))
    gradients = torch.autograd.grad(y.float().sum(), (x, *mixer.parameters()))

    assert (y.abs() <= 1).all()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_the_state_is_in_place_and_does_not_grow() -> None:
    model = build("lstm", "tiny", vocab_size=VOCAB_SIZE).to(torch.bfloat16)
    state = model.init_state(3, 100_000)
    addresses = [tensor.data_ptr() for tensor in state.tensors()]
    expected = 2 * 3 * 128 * (2 + 4)  # layers, batch, channels, bytes of a bf16 output and a float32 cell

    read(model, random_tokens(3, 20), [7, 6], state)
    layer = cast(LSTMState, state.layers[0])

    assert state.nbytes == state.sized(10).nbytes == expected
    assert state.step_bytes() == 2 * expected
    assert [tensor.data_ptr() for tensor in state.tensors()] == addresses
    assert (layer.output.dtype, layer.cell.dtype) == (torch.bfloat16, torch.float32)


def test_the_config_counts_matrices_and_biases() -> None:
    model = build("lstm", "tiny", vocab_size=8)

    assert model.config.mixer_parameters == 8 * 128**2 + 8 * 128
    assert model.config.d_ffn == 2 * 128
    assert (model.backend, model.decode_form) == ("torch", "recurrent")
