"""RetNet: its forms against each other, in every option, in bf16 and over 100,000 steps."""

# B batch, T positions, V vocabulary

from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import build, retention
from models.retnet import Form, RetentionState, RetNet
from tests.models.helpers import (
    FORMS,
    TOLERANCE,
    VOCAB_SIZE,
    Reading,
    ends,
    error,
    gradient_error,
    gradients,
    in_form,
    memories,
    random_model,
    random_tokens,
    read,
    readings,
    repeatable,
    shared_model,
)


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(length=st.integers(1, 70), chunk_size=st.integers(1, 80), batch_size=st.integers(1, 3), seed=st.integers(0, 99))
@repeatable
def test_all_forms_give_the_same_logits(
    dtype: torch.dtype, length: int, chunk_size: int, batch_size: int, seed: int
) -> None:
    tokens = random_tokens(batch_size, length, seed)
    with torch.no_grad():
        recurrent = in_form(shared_model("retnet", dtype), "recurrent")(tokens)
        parallel = in_form(shared_model("retnet", dtype), "parallel")(tokens)
        chunkwise = in_form(shared_model("retnet", dtype), "chunkwise", chunk_size)(tokens)

    assert recurrent.shape == (batch_size, length, VOCAB_SIZE)
    assert error(parallel, recurrent) < TOLERANCE[dtype]
    assert error(chunkwise, recurrent) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(length=st.integers(16, 40), chunk_size=st.integers(1, 48), batch_size=st.integers(1, 3))
@repeatable
def test_all_forms_give_the_same_gradients(dtype: torch.dtype, length: int, chunk_size: int, batch_size: int) -> None:
    tokens = random_tokens(batch_size, length)
    recurrent = gradients(in_form(shared_model("retnet", dtype), "recurrent"), tokens)
    parallel = gradients(in_form(shared_model("retnet", dtype), "parallel"), tokens)
    chunkwise = gradients(in_form(shared_model("retnet", dtype), "chunkwise", chunk_size), tokens)

    assert gradient_error(parallel, recurrent) < TOLERANCE[dtype]
    assert gradient_error(chunkwise, recurrent) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("form", FORMS)
@given(reading=readings, chunk_size=st.integers(1, 32))
@repeatable
def test_prefill_in_pieces_then_steps_equals_the_training_form(
    dtype: torch.dtype, form: Form, reading: Reading, chunk_size: int
) -> None:
    batch_size, pieces, steps = reading
    tokens = random_tokens(batch_size, sum(pieces) + steps)
    model = in_form(shared_model("retnet", dtype), form, chunk_size)
    with torch.no_grad():
        expected = model(tokens)

    actual = read(model, tokens, pieces)

    assert error(actual, expected[:, ends(pieces, tokens.shape[1])]) < TOLERANCE[dtype]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gamma", ["linspace", "eq8"])
@pytest.mark.parametrize("group_norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("changes", [{}, {"group_norm_affine": True}, {"gate": False, "value_factor": 1, "n_heads": 4}])
def test_every_retention_option_gives_three_equal_forms(
    form: Form, gamma: str, group_norm: str, changes: dict[str, object]
) -> None:
    model = random_model("retnet", gamma=gamma, group_norm=group_norm, **changes)
    tokens = random_tokens(2, 21)
    with torch.no_grad():
        expected = in_form(model, "recurrent")(tokens)

    in_form(model, form, chunk_size=8)

    assert error(model(tokens).detach(), expected) < 1e-10
    assert error(read(model, tokens, [9, 8]), expected[:, ends([9, 8], 21)]) < 1e-10


def test_the_model_computes_with_the_gammas_that_its_config_names() -> None:
    logits = [random_model("retnet", gamma=gamma)(random_tokens(1, 30)).detach() for gamma in ("linspace", "eq8")]

    assert error(*logits) > 0.1


@pytest.mark.parametrize("group_norm", ["layernorm", "rmsnorm"])
def test_the_group_norm_weight_scales_the_value_channels_of_every_head(group_norm: str) -> None:
    affine = random_model("retnet", group_norm=group_norm, group_norm_affine=True)
    plain = random_model("retnet", group_norm=group_norm)
    weights = affine.state_dict()
    for layer in ("layers.0.mixer", "layers.1.mixer"):
        weight = weights.pop(f"{layer}.group_norm_weight")  # (V,), the same for both heads
        weights[f"{layer}.out_proj.weight"] = weights[f"{layer}.out_proj.weight"] * weight.repeat(2)
    plain.load_state_dict(weights)
    tokens = random_tokens(2, 13)

    assert error(affine(tokens).detach(), plain(tokens).detach()) < 1e-10
    assert error(read(affine, tokens, [5]), read(plain, tokens, [5])) < 1e-10


def test_form_and_chunk_size_come_from_the_config() -> None:
    model = cast(RetNet, build("retnet", "tiny", vocab_size=8, form="parallel", chunk_size=7))

    assert (model.form, model.chunk_size) == ("parallel", 7)


def bf16_and_its_reference(**options: object) -> tuple[RetNet, RetNet]:
    """A bf16 model and the same rounded weights in float32, so that only the arithmetic differs."""
    rounded = build("retnet", "tiny", vocab_size=64, **options).to(torch.bfloat16)
    reference = build("retnet", "tiny", vocab_size=64, **options)
    reference.load_state_dict(rounded.state_dict())
    return cast(RetNet, rounded), cast(RetNet, reference)


@pytest.mark.parametrize("form", ["chunkwise", "recurrent"])
@pytest.mark.parametrize("gamma", ["linspace", "eq8"])
def test_the_bf16_error_does_not_grow_with_position(gamma: str, form: Form) -> None:
    # Gammas rounded to bf16 would make the ratio 13, positions rounded to bf16 41; it is 1.0.
    rounded, reference = bf16_and_its_reference(gamma=gamma, form=form, n_heads=8)
    tokens = random_tokens(2, 4096, vocab_size=64)
    with torch.no_grad():
        distance = (rounded(tokens).float() - reference(tokens)).abs().mean(dim=(0, 2))  # (T,)

    assert distance[-256:].mean() <= 1.3 * distance[:256].mean()


@pytest.mark.parametrize("gamma", ["linspace", "eq8"])
def test_casting_to_bf16_leaves_decays_and_angles_exact(gamma: str) -> None:
    rounded, reference = bf16_and_its_reference(gamma=gamma, n_heads=16)

    late = rounded.positions(8000, 192)
    expected = reference.positions(8000, 192)

    assert late.gamma.dtype == late.cos.dtype == late.sin.dtype == torch.float32
    assert torch.equal(late.log_gamma, retention.log_decays(gamma, 16))
    assert len(set(late.gamma.tolist())) == 16
    assert late.gamma.max() < 1
    assert torch.equal(late.cos, expected.cos)
    assert len({tuple(row) for row in torch.cat((late.cos, late.sin), dim=1).tolist()}) == 192


def test_the_state_of_a_bf16_model_is_float32_and_stays_so() -> None:
    rounded, _ = bf16_and_its_reference()
    tokens = random_tokens(2, 12, vocab_size=64)
    state = rounded.init_state(2, 16)

    before = [tensor.dtype for tensor in state.tensors()]
    logits = read(rounded, tokens, [10], state)

    assert logits.dtype == torch.bfloat16
    assert before == [torch.float32, torch.float32]
    assert [tensor.dtype for tensor in state.tensors()] == before


def test_a_bf16_prefill_keeps_the_state_near_that_of_float32() -> None:
    rounded, reference = bf16_and_its_reference()
    tokens = random_tokens(1, 700, vocab_size=64)

    states = zip(memories(rounded, tokens), memories(reference, tokens), strict=True)

    assert all(error(actual, expected) < 0.1 for actual, expected in states)


def test_steps_update_the_state_in_place() -> None:
    model = in_form(shared_model("retnet", torch.float32), "chunkwise")
    state = model.init_state(2, 1)
    addresses = [tensor.data_ptr() for tensor in state.tensors()]

    read(model, random_tokens(2, 9), [5], state)

    assert [tensor.data_ptr() for tensor in state.tensors()] == addresses
    assert state.position == 9


def test_the_bytes_of_a_state_are_one_float32_matrix_a_head_and_do_not_grow() -> None:
    model = build("retnet", "tiny", vocab_size=64, n_heads=4).to(torch.bfloat16)
    state = model.init_state(3, 100_000)

    matrices = 2 * 3 * 4 * 32 * 64 * 4  # layers, batch, heads, key dim, value dim, bytes

    assert state.nbytes == matrices
    assert state.step_bytes() == 2 * matrices  # read and written
    model.prefill(random_tokens(3, 50, vocab_size=64), state)

    assert state.nbytes == matrices
    assert state.sized(10).nbytes == matrices


def test_the_angle_of_a_late_position_is_exact() -> None:
    positions = build("retnet", "tiny", vocab_size=8).positions(100_000, 1)

    assert positions.cos[0, 0].item() == pytest.approx(
        torch.tensor(100_000.0, dtype=torch.float64).cos().item(), abs=1e-7
    )


@pytest.mark.slow
def test_100000_steps_stay_finite_and_equal_a_chunkwise_prefill() -> None:
    model = in_form(build("retnet", "tiny", d_model=64, n_layers=1, vocab_size=64), "chunkwise")
    tokens = random_tokens(1, 100_000, vocab_size=64)
    state = model.init_state(1, 1)
    stepped = torch.empty(1, 100_000, 64)
    for n, token in enumerate(tokens.unbind(1)):
        stepped[:, n] = model.step(token, state)[0]

    last, prefilled = model.prefill(tokens)
    with torch.no_grad():
        expected = model(tokens)

    memory, expected_memory = (cast(RetentionState, s.layers[0]).memory for s in (state, prefilled))

    assert stepped.isfinite().all()
    assert error(stepped, expected) < 1e-4
    assert error(stepped[:, -1], last) < 1e-4
    assert state.position == prefilled.position == 100_000
    assert error(memory, expected_memory) < 1e-4
