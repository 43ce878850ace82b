"""What every system owes as a language model, and every shared option: contract, bytes, seeds, gradients."""

# B batch, T positions, V vocabulary

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import build, systems
from models.catalogue import paper_systems
from models.language_model import LanguageModel
from tests.models.helpers import (
    TOLERANCE,
    VOCAB_SIZE,
    Reading,
    ends,
    error,
    gradients,
    random_model,
    random_tokens,
    read,
    readings,
    repeatable,
    shared_model,
)

OPTIONS: dict[str, dict[str, object]] = {
    "rmsnorm": {"norm": "rmsnorm"},
    "swiglu": {"ffn": "swiglu"},
    "half-split rotary": {"rotary": "half-split"},
    "exclusive rope spacing": {"rope_spacing": "exclusive", "rope_base": 500.0},
    "no rotary": {"rotary": "none"},
    "tied embeddings": {"tied_embeddings": True},
    "embedding scale": {"embedding_scale": 11.3},
    "own widths": {"d_model": 48, "n_layers": 3, "d_ffn": 56, "vocab_size": 17},
    "today's model": {"norm": "rmsnorm", "ffn": "swiglu", "rotary": "half-split", "tied_embeddings": True},
}
ROTATION = {"rotary", "rope_spacing", "rope_base"}


def options_of(system: str, option: str) -> dict[str, object]:
    """The option's fields, less those of the rotation where the system rotates nothing; skips when none is left."""
    rotates = shared_model(system, torch.float32).d_rotary > 0
    options = {name: value for name, value in OPTIONS[option].items() if rotates or name not in ROTATION}
    if not options:
        pytest.skip(f"{system} rotates nothing")
    return options


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("system", systems())
def test_every_system_keeps_the_contract(system: str, dtype: torch.dtype) -> None:
    model = shared_model(system, dtype)
    tokens = random_tokens(2, 17)

    logits = model(tokens)
    last, state = model.prefill(tokens[:, :11])
    stepped, same_state = model.step(tokens[:, 11], state)

    assert logits.shape == (2, 17, VOCAB_SIZE)
    assert last.shape == stepped.shape == (2, VOCAB_SIZE)
    assert same_state is state
    assert state.position == 12
    assert error(last, logits[:, 10].detach()) < TOLERANCE[dtype]
    assert error(stepped, logits[:, 11].detach()) < TOLERANCE[dtype]
    assert logits.requires_grad
    assert not last.requires_grad


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("system", systems())
@given(reading=readings, room=st.integers(1, 80), chunk_size=st.integers(1, 32))
@repeatable
def test_prefill_in_pieces_then_steps_equals_the_training_form(
    system: str, dtype: torch.dtype, reading: Reading, room: int, chunk_size: int
) -> None:
    batch_size, pieces, steps = reading
    tokens = random_tokens(batch_size, sum(pieces) + steps)
    reference = shared_model(system, dtype)
    with torch.no_grad():
        whole = reference(tokens)
    expected = whole[:, ends(pieces, tokens.shape[1])]
    model = in_chunks(system, dtype, chunk_size)

    assert error(model(tokens).detach(), whole) < TOLERANCE[dtype]
    assert error(read(model, tokens, pieces), expected) < TOLERANCE[dtype]
    assert error(read(model, tokens, pieces, model.init_state(batch_size, room)), expected) < TOLERANCE[dtype]


def in_chunks(system: str, dtype: torch.dtype, chunk_size: int) -> LanguageModel:
    """The shared model with chunks of that size where its config has one."""
    shared = shared_model(system, dtype)
    if not hasattr(shared.config, "chunk_size"):
        return shared
    model = build(system, "tiny", vocab_size=VOCAB_SIZE, chunk_size=chunk_size).to(dtype)
    model.load_state_dict(shared.state_dict())
    return model


@pytest.mark.parametrize("length", [2, 128, 129, 256, 257, 513])  # chunks and blocks are of 128, 256 and 512
@pytest.mark.parametrize("system", systems())
def test_equal_tokens_are_read_right_around_the_borders_of_chunks(system: str, length: int) -> None:
    model, tokens = shared_model(system, torch.float64), torch.full((1, length), 7)

    whole = model(tokens).detach()
    split = read(model, tokens, [length - 1])

    assert whole.isfinite().all()
    assert error(split, whole[:, -2:]) < 1e-9


@pytest.mark.parametrize("system", systems())
def test_one_token_is_a_text(system: str) -> None:
    model, token = shared_model(system, torch.float64), random_tokens(2, 1)

    logits = model(token).detach()[:, 0]
    stepped, _ = model.step(token[:, 0], model.init_state(2, 1))

    assert error(model.prefill(token)[0], logits) < 1e-9
    assert error(stepped, logits) < 1e-9


@pytest.mark.parametrize(
    ("system", "decoding"),
    [("h3", False), ("hyena", False), ("linear-transformer", False), ("linear-transformer", True), ("lstm", False),
     ("lstm", True)],
)  # fmt: skip
def test_the_bf16_error_does_not_grow_with_position(system: str, decoding: bool) -> None:
    rounded = build(system, "tiny", vocab_size=64).to(torch.bfloat16)
    reference = build(system, "tiny", vocab_size=64)
    reference.load_state_dict(rounded.state_dict())
    tokens = random_tokens(1, 1024 if decoding else 4096, vocab_size=64)
    with torch.no_grad():
        expected = reference(tokens)
        actual = read(rounded, tokens, [], rounded.init_state(1, 1)) if decoding else rounded(tokens)
    distance = (actual.float() - expected).abs().mean(dim=(0, 2))  # (T,)

    assert distance[-256:].mean() <= 1.3 * distance[256:512].mean()


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("system", systems())
def test_every_option_gives_prefill_and_steps_equal_to_the_training_form(system: str, option: str) -> None:
    model = random_model(system, **options_of(system, option))
    tokens = random_tokens(2, 20, vocab_size=17)
    expected = model(tokens).detach()

    actual = read(model, tokens, [7, 1, 8])

    assert error(actual, expected[:, ends([7, 1, 8], 20)]) < 1e-10


@pytest.mark.parametrize("option", [name for name in OPTIONS if name not in ("swiglu", "own widths", "today's model")])
@pytest.mark.parametrize("system", paper_systems())  # a twin has some of the options already
def test_every_option_changes_the_logits(system: str, option: str) -> None:
    tokens = random_tokens(1, 20)
    default = random_model(system)
    changed = random_model(system, **options_of(system, option))
    changed.load_state_dict(default.state_dict(), strict=False)

    assert error(changed(tokens).detach(), default(tokens).detach()) > 1e-3


@pytest.mark.parametrize("system", systems())
def test_no_position_sees_what_comes_after_it(system: str) -> None:
    model = shared_model(system, torch.float64)
    tokens = random_tokens(1, 20)
    changed = tokens.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % VOCAB_SIZE

    before, after = model(tokens).detach(), model(changed).detach()

    assert error(after[:, :12], before[:, :12]) < 1e-10  # an FFT spreads its rounding over all positions
    assert not torch.isclose(before[:, 12:], after[:, 12:]).all(-1).any()


@pytest.mark.parametrize("system", systems())
def test_sequences_of_a_batch_do_not_touch_each_other(system: str) -> None:
    model = shared_model(system, torch.float64)
    tokens = random_tokens(3, 15)

    together = read(model, tokens, [8, 4])
    alone = torch.cat([read(model, tokens[b : b + 1], [8, 4]) for b in range(3)])

    assert error(together, alone) < 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("system", systems())
def test_gradients_of_every_parameter_are_finite_and_not_all_zero(system: str, dtype: torch.dtype) -> None:
    model = random_model(system).to(dtype)  # as initialised, a projection of zeros may keep gradients from others

    found = gradients(model, random_tokens(2, 600))

    assert all(gradient.isfinite().all() and gradient.any() for gradient in found.values())
    assert {gradient.dtype for gradient in found.values()} - {torch.float32} == {dtype} - {torch.float32}


@pytest.mark.parametrize("system", systems())
def test_a_model_that_has_decoded_can_still_be_trained_and_cast(system: str) -> None:
    tokens = random_tokens(2, 12)
    model = build(system, "tiny", vocab_size=VOCAB_SIZE)
    with torch.inference_mode():
        read(model, tokens, [6])

    trained = gradients(model, tokens)
    cast = model.double()
    fresh = build(system, "tiny", vocab_size=VOCAB_SIZE).double()

    assert all(gradient.isfinite().all() for gradient in trained.values())
    assert torch.equal(cast(tokens), fresh(tokens))


def random_matrices(weights: dict[str, torch.Tensor]) -> list[str]:
    """Names of the matrices that do not start as zeros."""
    return [name for name, weight in weights.items() if weight.ndim == 2 and weight.any()]


@pytest.mark.parametrize("system", systems())
def test_the_same_seed_builds_the_same_model_whatever_the_global_seed(system: str) -> None:
    def weights(seed: int, global_seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(global_seed)
        return dict(build(system, "tiny", vocab_size=8, seed=seed).state_dict())

    first, again, other = weights(0, 1), weights(0, 2), weights(1, 1)

    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in random_matrices(first))


@pytest.mark.parametrize("system", systems())
def test_the_layers_of_a_model_start_with_different_weights(system: str) -> None:
    first, second = (layer.state_dict() for layer in build(system, "tiny", vocab_size=8).layers)

    assert first.keys() == second.keys()
    assert not any(torch.equal(first[name], second[name]) for name in random_matrices(first))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("dtype", "itemsize"), [(torch.float32, 4), (torch.bfloat16, 2)])
@pytest.mark.parametrize("system", ["retnet", "transformer"])
def test_weights_bytes_count_every_weight_once(system: str, dtype: torch.dtype, itemsize: int, tied: bool) -> None:
    model = build(system, "tiny", vocab_size=1000, tied_embeddings=tied).to(dtype)

    matrices, norms = 2 * 12 * 128**2, (2 * 2 + 1) * 2 * 128  # 12 d^2 a layer; weight and bias of 5 norms
    table = 1000 * 128

    assert model.weights_bytes() == itemsize * (matrices + norms + (1 if tied else 2) * table)
    assert model.step_weights_bytes() == itemsize * (matrices + norms + table)


@pytest.mark.parametrize("system", systems())
def test_a_filled_state_stands_at_its_position_and_repeats_with_its_seed(system: str) -> None:
    model = shared_model(system, torch.float32)

    def filled(seed: int) -> list[torch.Tensor]:
        state = model.init_state(2, 9)
        state.fill_(9, seed)

        assert state.position == 9
        return list(state.tensors())

    first, again, other = filled(0), filled(0), filled(1)

    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert not all(torch.equal(*pair) for pair in zip(first, other, strict=True))


def test_tied_embeddings_share_one_table_with_the_gradient_of_both() -> None:
    model = build("retnet", "tiny", vocab_size=VOCAB_SIZE, tied_embeddings=True)

    assert model.head.weight is model.embedding.weight
    assert [name for name, _ in model.named_parameters() if name.startswith(("embedding", "head"))] == [
        "embedding.weight"
    ]


@pytest.mark.parametrize("system", systems())
def test_prefill_of_no_token_is_an_error(system: str) -> None:
    model = shared_model(system, torch.float32)

    with pytest.raises(ValueError, match="at least one token"):
        model.prefill(torch.empty(1, 0, dtype=torch.int64))


@pytest.mark.parametrize(("batch_size", "max_seq_len"), [(0, 8), (1, 0), (-1, 8)])
def test_a_state_of_nothing_is_an_error(batch_size: int, max_seq_len: int) -> None:
    model = shared_model("retnet", torch.float32)

    with pytest.raises(ValueError, match="batch_size and max_seq_len must be positive"):
        model.init_state(batch_size, max_seq_len)


def test_notes_hold_the_chunk_size_where_there_are_chunks() -> None:
    retnet = build("retnet", "tiny", vocab_size=VOCAB_SIZE, chunk_size=32)
    chunked = build("linear-transformer", "tiny", vocab_size=VOCAB_SIZE)

    assert retnet.notes["chunk_size"] == 32
    assert chunked.notes["chunk_size"] == chunked.config.chunk_size  # type: ignore[attr-defined]
    retnet.form = "parallel"  # type: ignore[attr-defined]
    assert "chunk_size" not in retnet.notes | build("rwkv", "tiny", vocab_size=VOCAB_SIZE).notes


@pytest.mark.parametrize("system", paper_systems())
def test_picked_rows_of_a_state_go_on_by_themselves(system: str) -> None:
    model = shared_model(system, torch.float64)
    prefixes, ends = random_tokens(2, 9), random_tokens(3, 5, seed=1)
    owners = torch.tensor([1, 0, 1])
    _, state = model.prefill(prefixes)
    hidden, _ = model.read_hidden(ends, state.picked(owners))
    expected = model(torch.cat((prefixes[owners], ends), dim=1))[:, 9:]

    assert error(model.head(hidden).detach(), expected.detach()) < TOLERANCE[torch.float64]
    assert (
        error(model.read_hidden(ends[:2], state)[0], model.read_hidden(ends[:2], model.prefill(prefixes)[1])[0]) < 1e-12
    )
