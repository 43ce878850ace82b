"""The five ablations of RetNet (the paper's table 6): what each changes, and the row scalings without a group norm."""

# B batch, H heads, T positions, K key dim, V value dim of a head

from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models import SIZES, build, configure, retention
from models.retnet import MultiScaleRetention, RetentionState, RetNet, RetNetConfig
from tests.models.helpers import (
    FORMS,
    Form,
    Reading,
    ends,
    error,
    gradient_error,
    gradients,
    in_form,
    oracle,
    random_model,
    random_tokens,
    read,
    readings,
    repeatable,
    shared_model,
)

ABLATIONS = ("retnet-no-gate", "retnet-no-groupnorm", "retnet-no-decay", "retnet-no-multiscale", "retnet-small-heads")


def config(system: str, size: str = "1.3b", **options: object) -> RetNetConfig:
    return cast(RetNetConfig, configure(system, size, **options))


def paper_rows(scores: Tensor, decay: Tensor, v: Tensor) -> Tensor:
    """Section 2.2, as written: (Q K^T) (B, H, T, T), D (H, T, T), v (B, H, T, V) -> o (B, H, T, V)."""
    scaled = scores * decay / decay.sum(-1, keepdim=True).sqrt()
    return scaled / scaled.sum(-1, keepdim=True).abs().clamp(min=1) @ v


@pytest.mark.parametrize("system", ABLATIONS)
@given(length=st.integers(1, 40), chunk_size=st.integers(1, 48), batch_size=st.integers(1, 3))
@repeatable
def test_all_forms_of_an_ablation_are_equal(system: str, length: int, chunk_size: int, batch_size: int) -> None:
    tokens = random_tokens(batch_size, length)
    model = shared_model(system, torch.float64)
    with torch.no_grad():
        recurrent = in_form(model, "recurrent")(tokens)
        parallel = in_form(model, "parallel")(tokens)
        chunkwise = in_form(model, "chunkwise", chunk_size)(tokens)

    assert error(parallel, recurrent) < 1e-9
    assert error(chunkwise, recurrent) < 1e-9


@pytest.mark.parametrize("system", ABLATIONS)
@pytest.mark.parametrize("length", [15, 16, 17, 32, 41])
def test_all_forms_of_an_ablation_have_the_same_gradients(system: str, length: int) -> None:
    tokens = random_tokens(2, length)
    model = shared_model(system, torch.float64)
    recurrent = gradients(in_form(model, "recurrent"), tokens)
    parallel = gradients(in_form(model, "parallel"), tokens)
    chunkwise = gradients(in_form(model, "chunkwise", 16), tokens)

    assert gradient_error(parallel, recurrent) < 1e-9
    assert gradient_error(chunkwise, recurrent) < 1e-9


@pytest.mark.parametrize("system", ABLATIONS)
@given(reading=readings, form=st.sampled_from(FORMS), chunk_size=st.integers(1, 32))
@repeatable
def test_prefill_in_pieces_then_steps_equals_the_training_form(
    system: str, reading: Reading, form: Form, chunk_size: int
) -> None:
    batch_size, pieces, steps = reading
    tokens = random_tokens(batch_size, sum(pieces) + steps)
    model = in_form(shared_model(system, torch.float64), form, chunk_size)
    with torch.no_grad():
        expected = model(tokens)

    assert error(read(model, tokens, pieces), expected[:, ends(pieces, tokens.shape[1])]) < 1e-9


@pytest.mark.parametrize("system", ["retnet-no-groupnorm", "retnet-no-decay"])
@pytest.mark.parametrize("form", ["chunkwise", "recurrent"])
def test_the_bf16_error_of_an_ablation_does_not_grow_with_position(system: str, form: Form) -> None:
    rounded, reference = (build(system, "tiny", vocab_size=64, form=form) for _ in range(2))
    reference.load_state_dict(rounded.to(torch.bfloat16).state_dict())
    tokens = random_tokens(2, 4096, vocab_size=64)
    with torch.no_grad():
        distance = (rounded(tokens).float() - reference(tokens)).abs().mean(dim=(0, 2))  # (T,)

    assert distance[-256:].mean() <= 1.3 * distance[:256].mean()


@pytest.mark.parametrize("gammas", [(0.0, 0.5), (127 / 128, 1.0), (1 - 1e-12, 31 / 32)])
def test_row_scales_are_the_roots_of_the_row_sums_of_the_decay_matrix(gammas: tuple[float, float]) -> None:
    log_gamma = torch.tensor(gammas, dtype=torch.float64).log()
    expected = retention.decay_matrix(log_gamma, 300).sum(-1).sqrt()  # (H, T)

    whole = retention.decay_row_scales(log_gamma, 0, 300)
    part = retention.decay_row_scales(log_gamma, 120, 180)

    assert torch.allclose(whole.T, expected, rtol=1e-12)
    assert torch.equal(part, whole[120:])


@pytest.mark.parametrize("gamma", ["linspace", "none"])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])  # of the scores: no row clamped, some, nearly all
def test_scaled_rows_are_the_papers(scale: float, gamma: str) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 50, dim, generator=generator, dtype=torch.float64) for dim in (4, 4, 6))
    log_gamma, q = retention.log_decays(gamma, 3), (scale * q).requires_grad_()
    state = torch.zeros(2, 3, 4, 7, dtype=torch.float64)
    expected = paper_rows(q @ k.mT, retention.decay_matrix(log_gamma, 50), v)

    out, _ = retention.chunkwise(q, k, retention.with_row_sums(v), log_gamma, state, 16)
    scaled = retention.scale_rows(out.transpose(1, 2), retention.decay_row_scales(log_gamma, 0, 50))
    actual = scaled.transpose(1, 2)
    weight = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    found, wanted = (torch.autograd.grad((y * weight).sum(), q)[0] for y in (actual, expected))

    assert error(actual, expected) < 1e-9
    assert error(found, wanted) < 1e-9


def test_scaled_rows_are_those_of_the_authors_up_to_their_sum_of_absolute_scores() -> None:
    # They divide by max(sum |R|, 1), which is not recurrent, where the paper writes max(|sum R|, 1).
    theirs = oracle("torchscale.pt")["results"]["torch.float64"]["layer0"]
    q, k = theirs["qr"], theirs["kr"]  # (B, H, T, K)
    v = theirs["v"].view(2, 48, 2, 128).transpose(1, 2)  # (B, H, T, V)
    log_gamma = retention.log_decays("eq8", 2)
    scores = q @ k.mT * theirs["D_normalised"]  # (B, H, T, T)
    ratio = scores.sum(-1).abs().clamp(min=1) / scores.abs().sum(-1).clamp(min=1)  # (B, H, T)

    out, _ = retention.parallel(q, k, retention.with_row_sums(v), log_gamma, torch.zeros(2, 2, 64, 129).double())
    actual = retention.scale_rows(out.transpose(1, 2), retention.decay_row_scales(log_gamma, 0, 48))  # (B, T, H, V)

    assert error(actual * ratio.transpose(1, 2)[..., None], theirs["retention_pre_norm"]) < 1e-6
    assert (ratio < 0.99).any()


def test_without_the_group_norm_rows_stay_as_the_scaling_leaves_them() -> None:
    model = in_form(random_model("retnet-no-groupnorm", gate=False, value_factor=1, n_layers=1), "recurrent")
    mixer = cast(MultiScaleRetention, model.blocks[0].mixer)
    x = torch.randn(2, 30, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    positions = model.positions(0, 30)
    q, k, v = mixer._qkv(x, positions)
    rows = paper_rows(q @ k.mT, retention.decay_matrix(positions.log_gamma, 30), v[..., :-1])  # (B, H, T, V)

    expected = mixer.out_proj(rows.transpose(1, 2).flatten(-2))

    assert error(mixer(x, positions).detach(), expected.detach()) < 1e-9


@pytest.mark.parametrize("size", SIZES)
def test_each_ablation_changes_one_thing(size: str) -> None:
    full = config("retnet", size)
    no_gate = config("retnet-no-gate", size)
    small = config("retnet-small-heads", size)

    assert (no_gate.gate, no_gate.d_k, no_gate.d_v, no_gate.d_ffn) == (False, full.d_k, full.d_k, 4 * full.d_model)
    assert (4 * small.d_k, 4 * small.d_v, small.d_ffn) == (full.d_k, full.d_v, full.d_ffn)
    for system in ABLATIONS[1:4]:
        assert (config(system, size).d_k, config(system, size).d_v) == (full.d_k, full.d_v)


def test_small_heads_are_64_and_128_wide_at_the_papers_sizes() -> None:
    small = config("retnet-small-heads")

    assert (small.n_heads, small.d_k, small.d_v) == (32, 64, 128)


@pytest.mark.parametrize(("system", "gamma"), [("retnet-no-decay", 1.0), ("retnet-no-multiscale", 127 / 128)])
def test_gammas_of_an_ablation_are_one_value(system: str, gamma: float) -> None:
    model = cast(RetNet, build(system, "tiny", vocab_size=8, n_heads=4))

    positions = model.positions(0, 1)

    assert positions.gamma.tolist() == [gamma] * 4
    assert torch.allclose(positions.log_gamma.exp(), torch.full((4,), gamma, dtype=torch.float64), rtol=1e-15)


def test_without_decay_the_state_is_the_plain_sum_over_a_long_text() -> None:
    model = in_form(build("retnet-no-decay", "tiny", d_model=16, n_layers=1, vocab_size=8), "chunkwise", 64)
    mixer = cast(MultiScaleRetention, model.double().blocks[0].mixer)
    x = torch.randn(1, 3000, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    positions, state = model.positions(0, 3000), cast(RetentionState, mixer.init_state(1, 1))
    _, k, v = mixer._qkv(x, positions)

    mixer(x, positions, state)

    assert error(state.memory, (k.mT @ v).detach()) < 1e-9


def test_the_row_sums_are_one_more_column_of_the_state() -> None:
    state = build("retnet-no-groupnorm", "tiny", vocab_size=8).init_state(3, 100_000)

    assert state.nbytes == 2 * 3 * 2 * 64 * (128 + 1) * 4  # layers, batch, heads, key dim, value dim and sum, bytes


@pytest.mark.parametrize("option", [{"gamma": "none"}, {"gate": False}, {"group_norm": "none"}, {"heads_factor": 4}])
def test_an_ablation_of_another_system_is_an_error_that_names_its_fields(option: dict[str, object]) -> None:
    for system in ("transformer", "linear-transformer", "lstm"):
        with pytest.raises(ValueError, match=rf"{system} has no config field {next(iter(option))}; its fields are"):
            build(system, "tiny", **option)


@pytest.mark.parametrize("value", [1.0, 100.0])
@pytest.mark.parametrize("system", ABLATIONS)
def test_equal_tokens_and_large_activations_stay_finite(system: str, value: float) -> None:
    model = in_form(build(system, "tiny", vocab_size=8), "chunkwise", 64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(value)
    tokens = torch.zeros(2, 300, dtype=torch.int64)

    found = gradients(model, tokens)

    assert all(gradient.isfinite().all() for gradient in found.values())
    assert read(model, tokens[:, :20], [1, 9]).isfinite().all()
