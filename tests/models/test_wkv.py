"""The WKV operator: its formula, the chunkwise form against the recurrence, keys of any size."""

# B batch, T positions, D channels

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from models import wkv
from tests.models.helpers import error, repeatable

WIDTH = 8
KEY_STDS = (0.0, 1.0, 30.0, 100.0)


@dataclass(frozen=True)
class Inputs:
    """k, v (B, T, D), w and u (D,) and the state of what was read before."""

    k: Tensor
    v: Tensor
    w: Tensor
    u: Tensor
    before: Tensor

    def to(self, dtype: torch.dtype) -> "Inputs":
        return Inputs(*(x.to(dtype) for x in (self.k, self.v, self.w, self.u, self.before)))

    def recurrent(self) -> tuple[Tensor, Tensor]:
        return wkv.recurrent(self.k, self.v, self.w, self.u, self.before)

    def chunkwise(self, chunk_size: int | None = None) -> tuple[Tensor, Tensor]:
        return wkv.chunkwise(self.k, self.v, self.w, self.u, self.before, chunk_size)


def random_inputs(batch_size: int, length: int, key_std: float, seed: int = 0) -> Inputs:
    """Unit values, decays from slow to fast as RWKV starts, nothing read before."""
    generator = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, batch_size, length, WIDTH, generator=generator, dtype=torch.float64)
    w = -torch.linspace(-5, 3, WIDTH, dtype=torch.float64).exp()
    u = torch.randn(WIDTH, generator=generator, dtype=torch.float64)
    return Inputs(k * key_std, v, w, u, wkv.empty_state(batch_size, WIDTH, torch.float64, k.device))


def with_gradients(inputs: Inputs, chunk_size: int | None) -> dict[str, Tensor]:
    """y and the gradients of a random weighting of it; a chunk size of None is the recurrence."""
    k, v, w, u = (x.detach().clone().requires_grad_() for x in (inputs.k, inputs.v, inputs.w, inputs.u))
    leaves = Inputs(k, v, w, u, inputs.before)
    y, _ = leaves.recurrent() if chunk_size is None else leaves.chunkwise(chunk_size)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = torch.autograd.grad((y * weight.to(y.dtype)).sum(), (k, v, w, u), materialize_grads=True)
    return dict(zip(("y", "k", "v", "w", "u"), (y.detach(), *found), strict=True))


def largest_error(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Each relative to its largest value, or to 1: the size of values and of the weighting."""
    assert actual.keys() == expected.keys()
    return max(
        ((actual[name].double() - wanted).abs().max() / max(wanted.abs().max().item(), 1.0)).item()
        for name, wanted in expected.items()
    )


@pytest.mark.parametrize("key_std", KEY_STDS)
def test_the_recurrence_is_the_formula(key_std: float) -> None:
    inputs = random_inputs(2, 19, key_std)
    distance = (torch.arange(19)[:, None] - torch.arange(19))[..., None]  # (T, T, 1), t - i
    past = (distance - 1) * inputs.w + inputs.k[:, None]  # (B, T, T, D)
    exponents = torch.where(distance == 0, inputs.u + inputs.k[:, None], past).masked_fill(distance < 0, -torch.inf)

    y, _ = inputs.recurrent()

    assert error(y, (exponents.softmax(2) * inputs.v[:, None]).sum(2)) < 1e-12


@given(
    length=st.integers(1, 70),
    chunk_size=st.integers(1, 80),
    batch_size=st.integers(1, 3),
    read=st.integers(0, 20),
    key_std=st.sampled_from(KEY_STDS),
)
@repeatable
def test_chunkwise_equals_recurrent_in_outputs_gradients_and_state(
    length: int, chunk_size: int, batch_size: int, read: int, key_std: float
) -> None:
    inputs = random_inputs(batch_size, length, key_std)
    if read:
        _, before = random_inputs(batch_size, read, key_std, seed=1).recurrent()
        inputs = Inputs(inputs.k, inputs.v, inputs.w, inputs.u, before)

    actual, expected = with_gradients(inputs, chunk_size), with_gradients(inputs, None)

    assert largest_error(actual, expected) < 1e-9
    torch.testing.assert_close(inputs.chunkwise(chunk_size)[1], inputs.recurrent()[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("key_std", KEY_STDS)
@pytest.mark.parametrize("length", [1, 511, 512, 513, 1100])
def test_lengths_around_the_borders_of_chunks(length: int, key_std: float) -> None:
    inputs = random_inputs(1, length, key_std)

    assert wkv.CHUNK_TOKENS == 512  # the size that is taken by itself
    assert largest_error(with_gradients(inputs, 512), with_gradients(inputs, None)) < 1e-9
    assert error(inputs.chunkwise()[0], inputs.recurrent()[0]) < 1e-9


# In float32 a difference of keys of size 300 has an error of 3e-5, in the exponent.
@pytest.mark.parametrize(("key_std", "tolerance"), [(0.0, 1e-5), (1.0, 1e-5), (30.0, 3e-5), (100.0, 5e-5)])
def test_float32_is_right_and_finite_for_keys_of_any_size(key_std: float, tolerance: float) -> None:
    inputs = random_inputs(2, 1200, key_std).to(torch.float32)
    expected = with_gradients(inputs.to(torch.float64), 64)

    chunkwise = with_gradients(inputs, 64)

    assert {x.dtype for x in chunkwise.values()} == {torch.float32}
    assert all(x.isfinite().all() for x in chunkwise.values())
    assert largest_error(chunkwise, expected) < tolerance
    assert error(inputs.recurrent()[0], expected["y"]) < 1e-4  # it rounds at every position


@pytest.mark.parametrize("key", [-1e4, 0.0, 1e4])
def test_equal_values_come_out_as_they_are(key: float) -> None:
    inputs = random_inputs(2, 100, 0.0).to(torch.float32)
    equal = Inputs(inputs.k + key, torch.full_like(inputs.v, 0.7), inputs.w, inputs.u, inputs.before)

    found = with_gradients(equal, 16)

    assert torch.allclose(found["y"], torch.tensor(0.7), rtol=1e-6, atol=0)
    assert all(x.isfinite().all() for x in found.values())
    assert max(found[name].abs().max().item() for name in ("k", "w", "u")) < 1e-3  # equal values need no other weights


@given(length=st.integers(1, 60), key_std=st.floats(0, 1000), seed=st.integers(0, 99))
@repeatable
def test_an_average_lies_between_its_values(length: int, key_std: float, seed: int) -> None:
    inputs = random_inputs(1, length, key_std, seed).to(torch.float32)

    y, _ = inputs.chunkwise(16)

    low, high = inputs.v.cummin(1).values, inputs.v.cummax(1).values
    assert ((low - 1e-5 <= y) & (y <= high + 1e-5)).all()


def test_a_larger_key_in_the_future_changes_nothing_before_it() -> None:
    inputs = random_inputs(1, 90, 1.0)
    louder = inputs.k.clone()
    louder[:, 50:] += 500.0

    y, _ = inputs.chunkwise(32)
    changed, _ = Inputs(louder, inputs.v, inputs.w, inputs.u, inputs.before).chunkwise(32)

    assert torch.equal(y[:, :50], changed[:, :50])
    assert not torch.isclose(y[:, 51:], changed[:, 51:]).all()


@pytest.mark.parametrize("decay", [1e-2, 1e-3])
def test_the_float32_error_of_slow_decays_does_not_grow_with_position(decay: float) -> None:
    inputs = random_inputs(1, 20_000, 1.0)
    w = torch.full((WIDTH,), -decay, dtype=torch.float64)
    slow = Inputs(inputs.k, inputs.v, w, inputs.u, inputs.before).to(torch.float32)
    expected, _ = slow.to(torch.float64).chunkwise()

    y, _ = slow.chunkwise()

    assert error(y[:, -3000:], expected[:, -3000:]) < 2e-4  # a decay of e^-0.001 rounds off by 3e-5 of itself
    assert error(y[:, -3000:], expected[:, -3000:]) < 1.5 * error(y[:, 3000:6000], expected[:, 3000:6000])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trace_on_fake_tensors_gives_the_shapes_and_dtypes_of_a_run(dtype: torch.dtype) -> None:
    def run() -> list[tuple[torch.Size, torch.dtype]]:
        k, v = (torch.zeros(2, 40, WIDTH, dtype=dtype, requires_grad=True) for _ in range(2))
        w, u = (torch.full((WIDTH,), -1.0, requires_grad=True) for _ in range(2))
        state = wkv.empty_state(2, WIDTH, torch.float32, k.device)
        y, after = wkv.chunkwise(k, v, w, u, state, chunk_size=16)
        gradients = torch.autograd.grad(y.sum(), (k, v, w, u))
        return [(tensor.shape, tensor.dtype) for tensor in (y, after, *gradients)]

    with FakeTensorMode():
        traced = run()

    assert traced == run()
