"""A step whose position is a tensor equals the plain step, and so does its capture, replayed by a stand-in for CUDA."""

# B batch, T positions, V vocabulary

import pytest
import torch
from hypothesis import given

from models import systems
from models.cuda_graph import GraphedStep
from models.language_model import LanguageModel, LayerState, State
from models.retnet import MultiScaleRetention
from tests.models.helpers import (
    Reading,
    error,
    random_model,
    random_tokens,
    read,
    readings,
    repeatable,
    shared_model,
)

MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "retnet of a published checkpoint": (
        "retnet",
        {"gamma": "eq8", "norm": "rmsnorm", "group_norm": "rmsnorm", "group_norm_affine": True, "ffn": "swiglu"},
    ),
    "retnet without gate and rotation": ("retnet", {"gate": False, "rotary": "none", "value_factor": 1}),
    "retnet, fla": ("retnet", {"retention": "fla"}),
    "grouped heads, eager": ("transformer", {"n_heads": 4, "n_kv_heads": 2}),
    "grouped heads, sdpa": ("transformer-flash", {"n_heads": 4, "n_kv_heads": 1, "rotary": "half-split"}),
    "flash-attn": ("transformer", {"attention": "flash-attn", "n_heads": 4, "n_kv_heads": 2}),
    "transformer without rotation": ("transformer", {"rotary": "none", "tied_embeddings": True}),
    **{name: (name, {}) for name in ("h3", "linear-transformer", "lstm", "rwkv")},
}
LENGTH = 20

every_model = pytest.mark.parametrize("name", MODELS)
pytestmark = pytest.mark.usefixtures("cuda_graphs", "flash_attn_package", "fla_package")


def prefilled(model: LanguageModel, tokens: torch.Tensor, capacity: int) -> State:
    state = model.init_state(tokens.shape[0], capacity)
    return model.prefill(tokens, state)[1]


def same(actual: State, expected: State) -> bool:
    """Whether both states hold the same, to 1e-10."""
    views = [[torch.view_as_real(x) if x.is_complex() else x for x in state.tensors()] for state in (actual, expected)]
    pairs = zip(*views, strict=True)
    return actual.position == expected.position and all(error(a, b) < 1e-10 for a, b in pairs)


@every_model
def test_a_step_at_a_position_on_the_device_equals_the_step(name: str) -> None:
    system, options = MODELS[name]
    model, tokens = random_model(system, **options), random_tokens(2, LENGTH)
    plain, placed = (prefilled(model, tokens[:, :11], LENGTH) for _ in range(2))

    for position, token in enumerate(tokens[:, 11:].unbind(1), start=11):
        expected, _ = model.step(token, plain)
        placed.position = position + 1
        logits = model.step_at(token, torch.tensor([position]), placed)

        assert error(logits, expected) < 1e-10
        assert same(placed, plain)


@every_model
def test_a_captured_step_replays_the_plain_step_wherever_it_stands(name: str) -> None:
    system, options = MODELS[name]
    model, tokens = random_model(system, **options), random_tokens(2, LENGTH)
    plain, captured = (prefilled(model, tokens[:, :11], LENGTH) for _ in range(2))

    step = GraphedStep(model, captured)

    assert same(captured, plain)  # capturing ran nothing
    for token in tokens[:, 11:].unbind(1):
        assert error(step(token), model.step(token, plain)[0]) < 1e-10
        assert same(captured, plain)


@given(reading=readings)
@repeatable
@pytest.mark.parametrize("system", ["retnet", "transformer", "transformer-flash"])
def test_a_step_that_was_captured_first_continues_any_prefill(system: str, reading: Reading) -> None:
    batch_size, pieces, steps = reading
    model = shared_model(system, torch.float64)
    tokens = random_tokens(batch_size, sum(pieces) + steps)
    expected = read(model, tokens, pieces)[:, len(pieces) :]
    state = model.init_state(batch_size, tokens.shape[1])
    step = GraphedStep(model, state)
    read(model, tokens[:, : sum(pieces)], pieces, state)

    logits = [step(token) for token in tokens[:, sum(pieces) :].unbind(1)]

    assert state.position == tokens.shape[1]
    assert all(error(actual, expected[:, n]) < 1e-10 for n, actual in enumerate(logits))


def test_a_captured_step_follows_a_position_that_is_set_back() -> None:
    model, tokens = shared_model("transformer", torch.float64), random_tokens(1, 12)
    state = prefilled(model, tokens[:, :8], 12)
    step = GraphedStep(model, state)
    first = [step(token) for token in tokens[:, 8:].unbind(1)]

    state.position = 8
    again = [step(token) for token in tokens[:, 8:].unbind(1)]

    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))


def test_the_weights_are_read_where_they_are_at_replay() -> None:
    model, tokens = random_model("retnet"), random_tokens(1, 9)
    state = prefilled(model, tokens[:, :8], 9)
    step = GraphedStep(model, state)
    with torch.no_grad():
        model.head.weight.mul_(2)

    logits = step(tokens[:, 8])

    assert error(logits, model(tokens)[:, -1].detach()) < 1e-10


def test_a_step_captured_while_measuring_serves_outside_of_inference_mode() -> None:
    model, tokens = shared_model("retnet", torch.float64), random_tokens(1, 9)
    state = prefilled(model, tokens[:, :8], 9)
    with torch.inference_mode():
        step = GraphedStep(model, state)

    logits = step(tokens[:, 8])

    assert error(logits, model(tokens)[:, -1].detach()) < 1e-10


def test_a_full_kv_cache_is_an_error_and_is_left_as_it_is() -> None:
    model, tokens = shared_model("transformer", torch.float64), random_tokens(1, 5)
    state = prefilled(model, tokens, 5)
    step = GraphedStep(model, state)
    before = [tensor.clone() for tensor in state.tensors()]

    with pytest.raises(ValueError, match="room for 5 tokens and 5 were read"):
        step(tokens[:, 0])

    assert all(torch.equal(*pair) for pair in zip(before, state.tensors(), strict=True))


def test_a_step_that_needs_a_value_on_the_host_fails_to_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared_model("retnet", torch.float64)
    step = MultiScaleRetention.step

    def peeks(self: MultiScaleRetention, x: torch.Tensor, positions: object, state: LayerState) -> torch.Tensor:
        return step(self, x * float(x.abs().max() > 0), positions, state)  # type: ignore[arg-type]

    monkeypatch.setattr(MultiScaleRetention, "step", peeks)

    with pytest.raises(RuntimeError, match="capturing"):
        GraphedStep(model, model.init_state(1, 8))


@pytest.mark.parametrize("system", systems())
def test_every_system_replays_its_step_or_says_that_it_cannot_be_captured(system: str) -> None:
    model, tokens = random_model(system), random_tokens(2, LENGTH)
    plain, captured = (prefilled(model, tokens[:, :11], LENGTH) for _ in range(2))
    limits = {block.mixer.capture_limit(layer) for block, layer in zip(model.blocks, captured.layers, strict=True)}

    if limits == {0}:
        with pytest.raises(NotImplementedError, match=f"a step of {system} cannot be captured"):
            GraphedStep(model, captured)
        return
    step = GraphedStep(model, captured)
    for token in tokens[:, 11:].unbind(1):
        assert error(step(token), model.step(token, plain)[0]) < 1e-10
    assert same(captured, plain)
