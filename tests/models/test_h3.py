"""H3: the reference project's outputs and gradients, its forms against each other, exact long decays, its state."""

# B batch, T positions, D model dim, H heads, P channels of a head, M modes

import math
from copy import deepcopy
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from models import build
from models.h3 import DiagonalSSM, H3Config, H3Mixer, H3State
from models.language_model import LanguageModel
from tests.models.helpers import (
    ends,
    error,
    gradient_error,
    gradients,
    mix,
    oracle,
    random_model,
    random_tokens,
    read,
)

Weights = dict[str, Tensor]
HEAD_DIMS = (1, 8)


def our_names(theirs: Weights, head_dim: int) -> Weights:
    """The reference's weights, or gradients, as ours. Its slow path orders the outputs of heads (channel, head)."""
    order = torch.arange(32).view(head_dim, -1).mT.flatten()  # ours is (head, channel)
    projections = {name: weight for name, weight in theirs.items() if name[1:].startswith("_proj")}
    return {
        **projections,
        "out_proj.weight": theirs["output_linear.weight"][:, order],
        "out_proj.bias": theirs["output_linear.bias"],
        "shift.B": theirs["ssm_k_kernel.kernel.B"][:, None],
        "shift.C": theirs["ssm_k_kernel.kernel.C"][0][:, None],
        "shift.D": theirs["ssm_k_D"],
        "ssm.log_dt": theirs["kernel.kernel.log_dt"],
        "ssm.A": torch.stack((theirs["kernel.kernel.inv_A_real"], theirs["kernel.kernel.A_imag"]), dim=-1),
        "ssm.B": theirs["kernel.kernel.B"],
        "ssm.C": theirs["kernel.kernel.C"][0],
        "ssm.D": theirs["D"],
    }


def safari(head_dim: int) -> tuple[LanguageModel, H3Mixer, dict[str, Any]]:
    """A model whose one mixer has the reference's weights, that mixer, and what the reference computed."""
    theirs = oracle(f"mixers/h3_safari_dh{head_dim}.pt")
    model = build("h3", "tiny", d_model=32, n_layers=1, head_dim=head_dim, vocab_size=8, d_ffn=8).double()
    mixer = cast(H3Mixer, model.blocks[0].mixer)
    mixer.load_state_dict(our_names(theirs["state_dict"], head_dim))
    return model, mixer, theirs


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_outputs_and_gradients_equal_the_reference(head_dim: int) -> None:
    model, mixer, theirs = safari(head_dim)
    x = theirs["x"].clone().requires_grad_()

    y = mixer(x, model.positions(0, x.shape[1]))
    (y * theirs["loss_weight"]).sum().backward()
    found = {name: cast(Tensor, parameter.grad) for name, parameter in mixer.named_parameters()}

    assert error(y.detach(), theirs["y"]) < 1e-9
    assert error(cast(Tensor, x.grad), theirs["grad_x"]) < 1e-9
    assert gradient_error(found, our_names(theirs["grad_params"], head_dim)) < 1e-9


@pytest.mark.parametrize("pieces", [[30], [], [1, 20, 9], [50]])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_decode_works_at_every_head_dim_and_equals_the_reference(head_dim: int, pieces: list[int]) -> None:
    model, _, theirs = safari(head_dim)

    y, _ = mix(model, theirs["x"], pieces)

    assert error(y, theirs["y"]) < 1e-9


def test_steps_and_states_equal_the_reference_where_it_can_decode() -> None:
    model, mixer, theirs = safari(1)
    x, ssm = theirs["x"], mixer.ssm

    y, state = mix(model, x, [30])
    _, halfway = mix(model, x[:, :30], [30])
    with torch.no_grad():
        dt = ssm.log_dt.exp()[:, None]
        half_step = torch.complex(-ssm.A[..., 0].exp(), ssm.A[..., 1]) * dt / 2
        input_weight = torch.view_as_complex(ssm.B) * dt / (1 - half_step)  # dB, which we keep with c
    states = [cast(H3State, found) for found in (state, halfway)]
    modes = [torch.view_as_real(kept.modes[:, :, 0, 0] * input_weight) for kept in states]

    expected = torch.view_as_real(theirs["ssm_state"])

    assert error(y, theirs["y_prefill30_then_steps"]) < 1e-9
    assert min(error(m, expected) for m in modes) < 1e-9


def test_the_diagonal_ssm_equals_the_recurrence_that_it_stands_for() -> None:
    ssm = DiagonalSSM(3, 10).double()
    ssm.initialise(torch.Generator().manual_seed(0))
    x = torch.randn(2, 3, 5, 300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    log_decay, c = ssm.discretised()
    decay, modes, expected = log_decay.exp(), torch.zeros(2, 3, 5, 5, dtype=torch.complex128), []
    for now in x.unbind(-1):
        modes = modes * decay[:, None] + now[..., None]
        expected.append(2 * (modes * c[:, None]).sum(-1).real + ssm.D[:, None] * now)

    kernel = ssm.kernel(log_decay, c, 300)
    last = (kernel.flip(-1)[:, None] * x).sum(-1)  # (B, H, P)
    first = ssm.absorb(log_decay, x[..., :170], torch.zeros_like(modes))
    rest = ssm.absorb(log_decay, x[..., 170:], first)

    assert error(last.detach(), expected[-1].detach()) < 1e-10
    assert error(torch.view_as_real(rest).detach(), torch.view_as_real(modes).detach()) < 1e-10


@pytest.mark.parametrize("pieces", [[127], [128], [129], [63, 1, 64], [64, 193], [256], [300], [1, 128, 128, 1]])
def test_lengths_around_blocks_and_the_shift_are_right(pieces: list[int]) -> None:
    model = build("h3", "tiny", vocab_size=61).double()  # as initialised: it remembers for thousands of positions
    tokens = random_tokens(2, sum(pieces) + 2)
    expected = model(tokens).detach()

    assert error(read(model, tokens, pieces), expected[:, ends(pieces, tokens.shape[1])]) < 1e-9


@pytest.mark.parametrize("options", [{"head_dim": 1}, {"head_dim": 32, "d_state": 16}, {"head_dim": 128, "d_state": 2}])
def test_every_head_dim_and_state_gives_equal_forms(options: dict[str, object]) -> None:
    model = random_model("h3", n_layers=1, **options)
    tokens = random_tokens(2, 21)
    expected = model(tokens).detach()

    assert error(read(model, tokens, [9, 8]), expected[:, ends([9, 8], 21)]) < 1e-9


@pytest.mark.parametrize("case", ["all equal", "one token", "large"])
def test_adversarial_inputs_stay_finite_and_right(case: str) -> None:
    model = random_model("h3", embedding_scale=1e4 if case == "large" else 1.0)
    tokens = torch.zeros(1, 300, dtype=torch.int64) if case == "all equal" else random_tokens(1, 40)
    tokens = tokens[:, :1] if case == "one token" else tokens
    pieces = [1] if case == "one token" else [tokens.shape[1] - 3]

    in_float64 = model(tokens).detach()
    steps = read(model, tokens, pieces)
    in_float32 = gradients(model.float(), tokens)

    assert in_float64.isfinite().all()
    assert error(steps, in_float64[:, ends(pieces, tokens.shape[1])]) < 1e-9
    assert all(gradient.isfinite().all() for gradient in in_float32.values())


@pytest.mark.parametrize("log_dt", [-30.0, 30.0])
def test_extreme_step_sizes_and_a_decay_of_zero_stay_finite(log_dt: float) -> None:
    model = random_model("h3")
    ssm = cast(H3Mixer, model.blocks[0].mixer).ssm
    with torch.no_grad():
        ssm.log_dt.fill_(log_dt)
        ssm.log_dt[0], ssm.A[0, :, 0], ssm.A[0, :, 1] = 0.0, math.log(2.0), 0.0  # dt A = -2
    decay = ssm.discretised()[0].exp().abs().detach()
    tokens = random_tokens(1, 40)

    found = gradients(model, tokens)

    assert decay.max() <= 1
    assert decay.min() < 1e-15  # where dt A = -2 the next state forgets this one
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert error(read(model, tokens, [20]), model(tokens).detach()[:, ends([20], 40)]) < 1e-9


def test_a_float32_kernel_is_exact_at_late_positions() -> None:
    ssm = DiagonalSSM(4, 64)
    ssm.initialise(torch.Generator().manual_seed(0))
    kernels = [module.kernel(*module.discretised(), 20000).detach() for module in (ssm, deepcopy(ssm).double())]

    assert kernels[0].dtype == torch.float32
    for last in (100, 20000):
        late = slice(last - 100, last)
        assert error(kernels[0][:, late], kernels[1][:, late]) < 1e-5


def test_the_state_is_updated_in_place_and_does_not_grow_by_a_byte() -> None:
    model = build("h3", "tiny", vocab_size=64).to(torch.bfloat16)
    state = model.init_state(3, 100_000)
    addresses = [tensor.data_ptr() for tensor in state.tensors()]

    past, modes = 128 * 63 * 4, 16 * 8 * 8 * 32 * 8
    computed = 128 * 64 * 4 + 16 * 32 * 8 + 16 * 64 * 4 + 16 * 4  # taps, decays, readout, skip

    assert state.nbytes == 2 * (3 * (past + modes) + computed)
    assert state.step_bytes() == 2 * (2 * 3 * (past + modes) + computed)
    read(model, random_tokens(3, 90, vocab_size=64), [70, 9], state)

    assert [tensor.data_ptr() for tensor in state.tensors()] == addresses
    assert state.sized(10).nbytes == state.nbytes == model.init_state(3, 1).nbytes


def test_a_step_does_not_read_the_weights_that_its_state_stands_for() -> None:
    model = build("h3", "tiny", vocab_size=64)
    per_layer = 128 * (2 * 64 + 1) + 16 * (3 * 64 + 2)

    assert model.step_weights_bytes() == model.weights_bytes() - 4 * (64 * 128 + 2 * per_layer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_dim": 3}, "head_dim must divide d_model: 3 does not divide 128"),
        ({"head_dim": 0}, "head_dim must divide d_model: 0 does not divide 128"),
        ({"d_state": 7}, "d_state holds pairs of modes: 2 does not divide 7"),
        ({"d_state": 0}, "d_state must be positive, not 0"),
    ],
)
def test_sizes_that_do_not_fit_are_an_error(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("h3", "tiny", **options)


def test_the_ffn_takes_what_the_mixer_leaves() -> None:
    config = H3Config("h3", d_model=1024, n_layers=1)

    assert (config.n_heads, config.d_ffn) == (128, 4016)
