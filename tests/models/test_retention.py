"""The three forms of retention against a plain evaluation of eq. 5 and against another project's results."""

# B batch, H heads, T positions, K key dim, V value dim of a head

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models import retention
from tests.models.helpers import TOLERANCE, error, oracle, repeatable

# No memory, the single decay of an ablation, a decay that float32 rounds to 1, and no decay at all.
GAMMAS = (0.0, 127 / 128, 1 - 1e-9, 1.0, 1 - 1 / 32)
K, V = 4, 6

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
Form = Callable[[Inputs, Tensor, int], tuple[Tensor, Tensor]]


def steps(inputs: Inputs, log_gamma: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
    q, k, v, state = inputs
    state = state.clone()
    gamma = log_gamma.exp().to(state.dtype)
    outputs = [
        retention.recurrent_step_(q[:, :, n], k[:, :, n], v[:, :, n], gamma, state)  # (B, H, V)
        for n in range(q.shape[2])
    ]
    return torch.stack(outputs, dim=2), state


def chunkwise(inputs: Inputs, log_gamma: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
    return retention.chunkwise(*inputs[:3], log_gamma, inputs[3], chunk_size)


FORMS: dict[str, Form] = {
    "parallel": lambda inputs, log_gamma, _: retention.parallel(*inputs[:3], log_gamma, inputs[3]),
    "chunkwise": chunkwise,
    "recurrent": lambda inputs, log_gamma, _: retention.recurrent(*inputs[:3], log_gamma, inputs[3]),
    "steps": steps,
}


def random_inputs(batch_size: int, length: int, heads: int = len(GAMMAS), seed: int = 0) -> Inputs:
    """q, k (B, H, T, K), v (B, H, T, V) and a state (B, H, K, V) that is not zero, in float64."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(length, K), (length, K), (length, V), (K, V)]
    q, k, v, state = (
        torch.randn(batch_size, heads, *shape, generator=generator, dtype=torch.float64) for shape in shapes
    )
    return q, k, v, state


def log_of(gammas: tuple[float, ...]) -> Tensor:
    return torch.tensor(gammas, dtype=torch.float64).log()


def equation_5(inputs: Inputs, gammas: tuple[float, ...] = GAMMAS) -> tuple[Tensor, Tensor]:
    """o_n = sum over m <= n of gamma^(n-m) (q_n . k_m) v_m, and what the state adds and becomes, term by term."""
    q, k, v, state = inputs
    length = q.shape[2]
    outputs, states = [], []
    for h, gamma in enumerate(gammas):
        rows = []
        for n in range(length):
            row = gamma ** (n + 1) * torch.einsum("bk,bkv->bv", q[:, h, n], state[:, h])
            for m in range(n + 1):
                row = row + gamma ** (n - m) * (q[:, h, n] * k[:, h, m]).sum(-1, keepdim=True) * v[:, h, m]
            rows.append(row)
        outputs.append(torch.stack(rows, dim=1))
        decays = torch.tensor([gamma ** (length - 1 - m) for m in range(length)], dtype=torch.float64)
        added = torch.einsum("t,btk,btv->bkv", decays, k[:, h], v[:, h])
        states.append(gamma**length * state[:, h] + added)
    return torch.stack(outputs, dim=1), torch.stack(states, dim=1)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("form", FORMS)
@given(length=st.integers(1, 24), chunk_size=st.integers(1, 30), batch_size=st.integers(1, 3), seed=st.integers(0, 99))
@repeatable
def test_every_form_computes_equation_5_after_any_state(
    form: str, dtype: torch.dtype, length: int, chunk_size: int, batch_size: int, seed: int
) -> None:
    inputs = random_inputs(batch_size, length, seed=seed)
    expected, expected_state = equation_5(inputs)
    q, k, v, state = (x.to(dtype) for x in inputs)

    out, new_state = FORMS[form]((q, k, v, state), log_of(GAMMAS), chunk_size)

    assert out.dtype == new_state.dtype == dtype
    assert error(out, expected) < TOLERANCE[dtype]
    assert error(new_state, expected_state) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("form", ["parallel", "chunkwise", "recurrent"])
@given(length=st.integers(1, 12), chunk_size=st.integers(1, 14), batch_size=st.integers(1, 3))
@repeatable
def test_every_form_has_the_gradients_of_equation_5(
    form: str, dtype: torch.dtype, length: int, chunk_size: int, batch_size: int
) -> None:
    def gradients(inputs: Inputs, results: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(3)
        weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in results]
        return torch.autograd.grad(results, inputs, [weight.to(inputs[0].dtype) for weight in weights])

    def leaves(dtype: torch.dtype) -> Inputs:
        q, k, v, state = (x.to(dtype).requires_grad_() for x in random_inputs(batch_size, length))
        return q, k, v, state

    exact, inputs = leaves(torch.float64), leaves(dtype)
    expected = gradients(exact, equation_5(exact))

    actual = gradients(inputs, FORMS[form](inputs, log_of(GAMMAS), chunk_size))

    for found, wanted in zip(actual, expected, strict=True):
        assert error(found, wanted) < TOLERANCE[dtype]


@given(pieces=st.lists(st.integers(1, 40), min_size=1, max_size=5), chunk_size=st.integers(1, 50), data=st.data())
@repeatable
def test_pieces_in_any_mixture_of_forms_equal_the_whole(
    pieces: list[int], chunk_size: int, data: st.DataObject
) -> None:
    inputs = random_inputs(2, sum(pieces))
    expected, expected_state = retention.recurrent(*inputs[:3], log_of(GAMMAS), inputs[3])

    outputs, state, start = [], inputs[3], 0
    for length in pieces:
        form = FORMS[data.draw(st.sampled_from(sorted(FORMS)))]
        q, k, v = (x[:, :, start : start + length] for x in inputs[:3])
        out, state = form((q, k, v, state), log_of(GAMMAS), chunk_size)
        outputs.append(out)
        start += length

    assert error(torch.cat(outputs, dim=2), expected) < 1e-10
    assert error(state, expected_state) < 1e-10


@pytest.mark.parametrize("length", [64, 65, 127, 128, 129, 3 * 64 + 7])
def test_more_chunks_than_a_segment_equal_the_recurrent_form(length: int) -> None:
    chunk_size = 64 // retention.SEGMENT_CHUNKS  # the lengths stand around whole segments
    inputs = random_inputs(2, length)
    expected, expected_state = retention.recurrent(*inputs[:3], log_of(GAMMAS), inputs[3])

    out, state = retention.chunkwise(*inputs[:3], log_of(GAMMAS), inputs[3], chunk_size)

    assert error(out, expected) < 1e-10
    assert error(state, expected_state) < 1e-10


@pytest.mark.parametrize("length", [1, 3, 8, 21])
def test_a_shared_decay_matrix_changes_nothing(length: int) -> None:
    inputs, log_gamma = random_inputs(1, length), log_of(GAMMAS)
    decay = retention.decay_matrix(log_gamma, min(8, length))

    out, state = retention.chunkwise(*inputs[:3], log_gamma, inputs[3], 8)
    shared, shared_state = retention.chunkwise(*inputs[:3], log_gamma, inputs[3], 8, decay=decay)

    assert torch.equal(out, shared)
    assert torch.equal(state, shared_state)


def test_a_step_updates_the_state_in_place() -> None:
    q, k, v, state = random_inputs(2, 1)
    address, before = state.data_ptr(), state.clone()

    retention.recurrent_step_(q[:, :, 0], k[:, :, 0], v[:, :, 0], torch.tensor(GAMMAS, dtype=torch.float64), state)

    assert state.data_ptr() == address
    assert not torch.equal(state, before)


@pytest.mark.parametrize("form", ["parallel", "chunkwise", "recurrent"])
def test_a_long_text_with_strong_decay_stays_finite_in_float32(form: str) -> None:
    # Past 2771 positions an unmasked gamma^(n-m) of the paper's strongest decay overflows float32 above the diagonal.
    gammas = (31 / 32,)
    inputs = random_inputs(1, 4200, heads=len(gammas))
    expected, _ = retention.recurrent(*inputs[:3], log_of(gammas), inputs[3])
    q, k, v, state = (x.float().requires_grad_() for x in inputs)

    out, new_state = FORMS[form]((q, k, v, state), log_of(gammas), 4200)
    gradients = torch.autograd.grad(out.sum() + new_state.sum(), (q, k, v, state))

    assert error(out, expected) < 1e-4
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_linspace_decays_are_those_of_the_papers_experiments() -> None:
    expected = [1 - math.exp(math.log(1 / 32) + i / 3 * (math.log(1 / 512) - math.log(1 / 32))) for i in range(4)]

    log_gamma = retention.log_decays("linspace", 4)

    assert log_gamma.dtype == torch.float64
    assert log_gamma.exp().tolist() == pytest.approx(expected, abs=1e-15)


def test_eq8_decays_stay_below_one_and_apart_at_16_heads() -> None:
    gamma = retention.log_decays("eq8", 16).exp()

    assert gamma.tolist() == pytest.approx([1 - 2.0 ** (-5 - i) for i in range(16)], abs=1e-15)
    assert len(set(gamma.float().tolist())) == 16
    assert gamma.float().max() < 1


def test_decay_matrix_is_a_power_below_the_diagonal_and_zero_above() -> None:
    decay = retention.decay_matrix(log_of((0.0, 0.5)), 3)

    assert decay[0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert decay[1].tolist() == [[1, 0, 0], [0.5, 1, 0], [0.25, 0.5, 1]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["retention", "custom"])
def test_every_form_equals_flash_linear_attention(form: str, name: str) -> None:
    theirs = oracle("mixers/fla_naive.pt")
    q, k, v = (theirs[x].transpose(1, 2) for x in "qkv")  # (B, H, T, K or V)
    log_gamma = theirs["custom_log_gamma"].double() if name == "custom" else retention.log_decays("eq8", q.shape[1])
    state = torch.zeros(theirs[f"{name}_S"].shape)

    out, new_state = FORMS[form]((q * q.shape[-1] ** -0.5, k, v, state), log_gamma, 48)

    assert error(out.transpose(1, 2), theirs[f"{name}_y"]) < 1e-5
    assert error(new_state, theirs[f"{name}_S"]) < 1e-5
