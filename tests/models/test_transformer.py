"""The Transformer: training form, prefill and steps agree; its KV caches, their growth and their bytes."""

# B batch, T positions, G key-value heads, K head dim

from typing import cast

import pytest
import torch

from models.language_model import LanguageModel, State
from models.transformer import ConcatenatedCache, KVCache
from tests.models.helpers import (
    ends,
    error,
    random_model,
    random_tokens,
    read,
    shared_model,
)

SYSTEMS = ("transformer", "transformer-flash", "transformer-concat-cache")


def caches(state: State) -> list[KVCache]:
    return [cast(KVCache, layer) for layer in state.layers]


def addresses(state: State) -> list[int]:
    return [tensor.data_ptr() for tensor in state.tensors()]


def grouped_model(system: str = "transformer") -> LanguageModel:
    """2 layers, 4 query heads, 2 key-value heads of dim 32, float64."""
    return random_model(system, n_heads=4, n_kv_heads=2)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("system", SYSTEMS)
def test_grouped_heads_equal_the_same_heads_repeated(system: str, n_kv_heads: int) -> None:
    grouped = random_model(system, n_heads=4, n_kv_heads=n_kv_heads, d_ffn=64)
    full = random_model(system, n_heads=4, d_ffn=64)
    weights = grouped.state_dict()
    for name, weight in weights.items():
        if "k_proj" in name or "v_proj" in name:
            heads = weight.view(n_kv_heads, 32, 128)
            weights[name] = heads.repeat_interleave(4 // n_kv_heads, dim=0).flatten(0, 1)
    full.load_state_dict(weights)
    tokens = random_tokens(2, 15)

    assert error(grouped(tokens).detach(), full(tokens).detach()) < 1e-10
    assert error(read(grouped, tokens, [6, 4]), read(full, tokens, [6, 4])) < 1e-10


def test_a_preallocated_cache_is_written_in_place_through_its_last_token() -> None:
    model = grouped_model()
    tokens = random_tokens(2, 12)
    state = model.init_state(2, 12)
    before = addresses(state)

    model.prefill(tokens[:, :5], state)
    for n in range(5, 12):
        model.step(tokens[:, n], state)

        assert addresses(state) == before
    assert state.position == 12


def test_a_full_cache_doubles_and_stays_right() -> None:
    model = grouped_model()
    tokens = random_tokens(2, 30)
    state = model.init_state(2, 7)
    expected = model(tokens).detach()

    capacities = []
    for n, token in enumerate(tokens.unbind(1)):
        logits, _ = model.step(token, state)
        capacities.append(caches(state)[0].keys.shape[2])

        assert error(logits, expected[:, n]) < 1e-10
    assert capacities == [7] * 7 + [14] * 7 + [28] * 14 + [56] * 2


def test_a_long_piece_grows_the_cache_as_far_as_it_needs() -> None:
    model = grouped_model()
    state = model.init_state(1, 4)

    model.prefill(random_tokens(1, 19), state)

    assert caches(state)[0].keys.shape[2] == 19


def test_a_concatenated_cache_equals_a_preallocated_one() -> None:
    tokens = random_tokens(2, 14)
    states = [model.prefill(tokens)[1] for model in (grouped_model(), grouped_model("transformer-concat-cache"))]

    for preallocated, concatenated in zip(*map(caches, states), strict=True):
        assert type(concatenated) is ConcatenatedCache
        assert torch.equal(preallocated.keys, concatenated.keys)
        assert torch.equal(preallocated.values, concatenated.values)


def test_a_concatenated_cache_holds_the_tokens_read_and_copies_them_at_every_step() -> None:
    model = grouped_model("transformer-concat-cache")
    state = model.init_state(2, 50)

    assert state.nbytes == 0
    model.prefill(random_tokens(2, 6), state)
    before = list(state.tensors())
    model.step(random_tokens(2, 1)[:, 0], state)

    assert [cache.keys.shape for cache in caches(state)] == [(2, 2, 7, 32)] * 2
    assert not {tensor.data_ptr() for tensor in before} & set(addresses(state))


def test_a_cache_can_forget_by_setting_the_position_back() -> None:
    for model in (grouped_model(), grouped_model("transformer-concat-cache")):
        tokens = random_tokens(1, 20)
        _, state = model.prefill(tokens[:, :15])
        state.position = 9
        expected = model(tokens[:, :10]).detach()[:, -1]

        assert error(model.step(tokens[:, 9], state)[0], expected) < 1e-10


@pytest.mark.parametrize(("dtype", "itemsize"), [(torch.float64, 8), (torch.float32, 4), (torch.bfloat16, 2)])
def test_the_bytes_of_a_cache_are_keys_and_values_of_every_layer(dtype: torch.dtype, itemsize: int) -> None:
    model = grouped_model().to(dtype)
    state = model.init_state(3, 100)
    state.fill_(40)

    one_token = 2 * 2 * 3 * 2 * 32 * itemsize  # keys and values, layers, batch, heads, head dim

    assert state.nbytes == 100 * one_token
    assert state.step_bytes() == 41 * one_token  # 40 tokens are read and one is written


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_filled_cache_holds_random_tokens_up_to_its_position(system: str) -> None:
    model = grouped_model(system)
    state = model.init_state(2, 20)

    state.fill_(12)

    assert state.position == 12
    for cache in caches(state):
        assert cache.keys[:, :, :12].abs().min() > 0
        assert cache.keys.shape[2] == (12 if system == "transformer-concat-cache" else 20)
        assert not cache.keys[:, :, 12:].any()
    assert model.step(random_tokens(2, 1)[:, 0], state)[0].isfinite().all()
    assert state.position == 13


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_shorter_state_in_the_same_memory_is_dense_and_right(system: str) -> None:
    model = grouped_model(system)
    long = model.init_state(2, 40)
    long.fill_(39)
    long_bytes, long_addresses = long.nbytes, addresses(long)
    tokens = random_tokens(2, 15)
    expected = model(tokens).detach()

    short = long.sized(15)
    short_addresses = addresses(short)
    logits = read(model, tokens, [9, 2], short)

    assert short_addresses == long_addresses
    assert short.nbytes == long_bytes * 15 // caches(long)[0].keys.shape[2]
    assert all(tensor.is_contiguous() for tensor in short.tensors())
    assert error(logits, expected[:, ends([9, 2], 15)]) < 1e-10


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_state_can_be_sized_for_one_token_more_than_it_was_filled_with(system: str) -> None:
    model = grouped_model(system)
    state = model.init_state(2, 20)
    state.fill_(19)

    same = state.sized(20)
    same.position = 19
    same_logits, _ = model.step(random_tokens(2, 1)[:, 0], same)

    assert addresses(state.sized(20)) == addresses(state)
    assert torch.equal(same_logits, model.step(random_tokens(2, 1)[:, 0], state)[0])


def test_the_record_can_name_what_computes_prefill_and_decode() -> None:
    backends = {system: shared_model(system, torch.float32).backend for system in SYSTEMS}

    assert backends == {"transformer": "eager", "transformer-flash": "sdpa", "transformer-concat-cache": "eager"}
    assert {shared_model(system, torch.float32).decode_form for system in SYSTEMS} == {"kv-cache"}
