"""RWKV: the reference's own numbers and start, its forms against each other, loud keys, bf16, its state."""

# B batch, T positions, D model dim

from typing import Any, cast

import pytest
import torch
from hypothesis import given

from models import build
from models.language_model import LanguageModel
from models.rwkv import TimeMix, TimeMixState
from tests.models.helpers import (
    VOCAB_SIZE,
    Reading,
    ends,
    error,
    gradients,
    oracle,
    random_model,
    random_tokens,
    read,
    readings,
    repeatable,
)

THEIR_NAMES = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}


def ours(theirs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of RWKV-LM's TimeMix under our names, its (1, 1, D) as (D,)."""
    renamed = {}
    for name, tensor in theirs.items():
        module, _, rest = name.partition(".")
        renamed[f"{THEIR_NAMES.get(module, module)}{'.' if rest else ''}{rest}"] = tensor.squeeze()
    return renamed


def time_mix(model: LanguageModel, layer: int = 0) -> TimeMix:
    return cast(TimeMix, model.blocks[layer].mixer)


def loaded(theirs: dict[str, Any]) -> tuple[LanguageModel, TimeMix]:
    """A model of the reference's width whose first mixer has its weights."""
    model = build("rwkv", "tiny", d_model=theirs["x"].shape[-1], vocab_size=8).double()
    time_mix(model).load_state_dict(ours(theirs["state_dict"]))
    return model, time_mix(model)


def lively_model(key_gain: float = 1.0, **options: object) -> LanguageModel:
    """A float64 model with random matrices, and decays and blends near those that RWKV starts with."""
    model, start = random_model("rwkv", **options), build("rwkv", "tiny", **options)
    with torch.no_grad():
        for layer in range(model.config.n_layers):
            for name, parameter in time_mix(model, layer).named_parameters():
                if parameter.ndim == 1:  # random_model set it to 1 + 0.2 noise
                    parameter.add_(time_mix(start, layer).get_parameter(name) - 1)
            time_mix(model, layer).k_proj.weight.mul_(key_gain)
    return model


def test_outputs_and_gradients_equal_the_reference() -> None:
    theirs = oracle("mixers/rwkv4_timemix.pt")
    model, mixer = loaded(theirs)
    x = theirs["x"].clone().requires_grad_()

    y = mixer(x, model.positions(0, x.shape[1]))
    (y * theirs["loss_weight"]).sum().backward()

    found = {name: parameter.grad for name, parameter in mixer.named_parameters()}
    expected = ours(theirs["grad_params"])
    assert error(y.detach(), theirs["y"]) < 1e-9
    assert error(cast(torch.Tensor, x.grad), theirs["grad_x"]) < 1e-9
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert error(cast(torch.Tensor, gradient), expected[name]) < 1e-9, name


@pytest.mark.parametrize("pieces", [[60], [16, 1, 30], []])
def test_prefill_steps_and_the_state_equal_the_reference(pieces: list[int]) -> None:
    theirs = oracle("mixers/rwkv4_timemix.pt")
    model, mixer = loaded(theirs)
    state, outputs, start = mixer.init_state(2, 1), [], 0
    with torch.no_grad():
        for length in pieces:
            x = theirs["x"][:, start : start + length]
            outputs.append(mixer(x, model.positions(start, length), state))
            start += length
        for x in theirs["x"][:, start:].unbind(1):
            outputs.append(mixer.step(x, model.positions(0, 1), state)[:, None])

    previous, values, weights, exponent = theirs["final_state_xx_aa_bb_pp"].unbind(1)  # (B, D) each
    assert error(torch.cat(outputs, dim=1), theirs["y_rnn"]) < 1e-9
    assert torch.equal(state.previous, previous)
    assert error(state.wkv[:2] * state.wkv[2].exp(), torch.stack((values, weights)) * exponent.exp()) < 1e-9


def test_the_start_of_every_parameter_is_the_references() -> None:
    theirs = ours(oracle("mixers/rwkv4_init_layer5_of16.pt"))
    mixer = time_mix(build("rwkv", "tiny", d_model=32, n_layers=16, vocab_size=8), layer=5)

    found = dict(mixer.named_parameters())

    assert {name for name in found if name.startswith("time_")} == theirs.keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(found[name].detach(), expected, rtol=1e-6, atol=1e-6)
    for projection in (mixer.r_proj, mixer.k_proj, mixer.out_proj):
        assert not projection.weight.any()
    value = mixer.v_proj.weight.detach()
    assert torch.allclose(value @ value.T, torch.eye(32), atol=1e-5)


def test_a_single_layer_starts_as_the_first_of_many() -> None:
    alone = time_mix(build("rwkv", "tiny", n_layers=1, vocab_size=8)).state_dict()
    first = time_mix(build("rwkv", "tiny", n_layers=7, vocab_size=8)).state_dict()

    for name in ("time_decay", "time_first", "time_mix_v"):
        assert torch.equal(alone[name], first[name]), name


@pytest.mark.parametrize("key_gain", [1.0, 30.0, 100.0])
@given(reading=readings)
@repeatable
def test_prefill_in_pieces_then_steps_equals_the_training_form(key_gain: float, reading: Reading) -> None:
    batch_size, pieces, steps = reading
    tokens = random_tokens(batch_size, sum(pieces) + steps)
    model = lively_model(key_gain, vocab_size=VOCAB_SIZE)
    with torch.no_grad():
        expected = model(tokens)

    actual = read(model, tokens, pieces)

    assert error(actual, expected[:, ends(pieces, tokens.shape[1])]) < 1e-9


@pytest.mark.parametrize("text", ["random", "equal"])
@pytest.mark.parametrize("key_gain", [1.0, 30.0, 100.0])
@pytest.mark.parametrize("length", [1, 31, 32, 33, 512, 513])
def test_loud_keys_and_equal_tokens_stay_right_and_finite(length: int, key_gain: float, text: str) -> None:
    model = lively_model(key_gain, vocab_size=VOCAB_SIZE)
    tokens = random_tokens(1, length) if text == "random" else torch.full((1, length), 5)
    expected = read(model, tokens, [], model.init_state(1, 1))

    assert error(model(tokens).detach(), expected) < 1e-9
    for dtype in (torch.float32, torch.bfloat16):
        found = gradients(lively_model(key_gain, vocab_size=VOCAB_SIZE).to(dtype), tokens)

        assert all(gradient.isfinite().all() for gradient in found.values())


def test_gradients_as_initialised_are_finite_in_bf16() -> None:
    model = build("rwkv", "tiny", vocab_size=VOCAB_SIZE).to(torch.bfloat16)

    found = gradients(model, random_tokens(2, 600))

    assert all(gradient.isfinite().all() for gradient in found.values())
    assert all(found[f"layers.{layer}.mixer.out_proj.weight"].any() for layer in range(2))  # it leaves its zeros first


def test_a_token_later_than_every_chunk_reaches_the_last_logits() -> None:
    model = lively_model(vocab_size=VOCAB_SIZE)
    tokens = random_tokens(1, 700)
    changed = tokens.clone()
    changed[:, 600] = (changed[:, 600] + 1) % VOCAB_SIZE

    before, after = model(tokens).detach(), model(changed).detach()

    assert torch.equal(before[:, :600], after[:, :600])
    assert not torch.isclose(before[:, 600:], after[:, 600:], rtol=0, atol=1e-12).all(-1).any()


@pytest.mark.parametrize("stepped", [False, True])
def test_the_bf16_error_does_not_grow_with_position(stepped: bool) -> None:
    rounded = lively_model(vocab_size=64).to(torch.bfloat16)
    reference = lively_model(vocab_size=64).float()
    reference.load_state_dict(rounded.state_dict())
    tokens = random_tokens(2, 1024 if stepped else 4096, vocab_size=64)
    with torch.no_grad():
        if stepped:
            actual, expected = (read(model, tokens, [1]) for model in (rounded, reference))
        else:
            actual, expected = rounded(tokens), reference(tokens)
    distance = (actual.float() - expected).abs().mean(dim=(0, 2))  # (T,)

    assert distance[-256:].mean() <= 1.3 * distance[:256].mean()


def test_steps_update_a_state_in_place_whose_bytes_never_change() -> None:
    model = build("rwkv", "tiny", vocab_size=64).to(torch.bfloat16)
    state = model.init_state(3, 100_000)
    tensors = list(state.tensors())
    addresses = [tensor.data_ptr() for tensor in tensors]
    layer = 3 * 128 * (2 + 3 * 4)  # batch, channels, bytes of the last input in bf16, of sums and exponent in float32

    read(model, random_tokens(3, 50, vocab_size=64), [20, 11], state)

    assert [tensor.data_ptr() for tensor in state.tensors()] == addresses
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16, torch.float32}
    assert state.nbytes == state.sized(10).nbytes == 2 * layer
    assert state.step_bytes() == 2 * 2 * layer  # read and written
    assert state.position == 50


def test_a_filled_state_decodes_to_finite_logits() -> None:
    model = lively_model(vocab_size=64).float()
    state = model.init_state(2, 1)
    state.fill_(1000)

    logits = read(model, random_tokens(2, 20, vocab_size=64), [], state)

    assert logits.isfinite().all()
    assert all(cast(TimeMixState, layer).wkv[1].gt(0).all() for layer in state.layers)
