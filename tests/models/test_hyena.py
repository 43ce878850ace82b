"""Hyena: the reference project's outputs and gradients, its forms against each other, its cache and its l_max."""

# B batch, T positions, D model dim, L capacity of a cache

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from models import build, hyena
from models.hyena import HyenaConfig, HyenaMixer, HyenaState
from models.language_model import LanguageModel, State
from retbench.devices.cpu import DEVICE as CPU
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
REFERENCES = ("default", "pile")


def our_names(theirs: Weights) -> Weights:
    """The reference's weights, or gradients, as ours: it names one frequency after each sine, and trains its table."""
    network = "filter_fn.implicit_filter"
    projections = {name: weight for name, weight in theirs.items() if name.startswith(("in_proj", "out_proj"))}
    hidden = {
        f"filter.hidden.{n}.{kind}": theirs[f"{network}.{2 * n}.{kind}"]
        for n in range(3)
        for kind in ("weight", "bias")
    }
    return {
        **projections,
        **hidden,
        "short.weight": theirs["short_filter.weight"],
        "short.bias": theirs["short_filter.bias"],
        "filter.frequency": theirs[f"{network}.1.freq"][0],
        "filter.output.weight": theirs[f"{network}.6.weight"],
        "filter.D": theirs["filter_fn.bias"],
    }


def safari(name: str, patch: pytest.MonkeyPatch) -> tuple[LanguageModel, HyenaMixer, dict[str, Any]]:
    """A model whose one mixer has the reference's weights and float32 table, that mixer, the reference's results."""
    theirs = oracle(f"mixers/hyena_safari_{name}.pt")
    weights = theirs["state_dict"]
    table, time = weights["filter_fn.pos_emb.z"][0], weights["filter_fn.pos_emb.t"][0, :, 0]
    rates = -weights["filter_fn.modulation.deltas"].flatten()

    def features(n_features: int, l_max: int, position: Tensor) -> tuple[Tensor, Tensor]:
        return table[position.long()], time[position.long()]

    patch.setattr(hyena, "position_features", features)
    patch.setattr(hyena, "window_rates", lambda d_model, device: rates)
    sizes = {"d_model": 16, "n_layers": 1, "d_ffn": 8, "filter_width": 16, "filter_features": table.shape[1]}
    model = build("hyena", "tiny", vocab_size=8, l_max=64, **sizes).double()
    mixer = cast(HyenaMixer, model.blocks[0].mixer)
    mixer.load_state_dict(our_names(weights))
    return model, mixer, theirs


@pytest.mark.parametrize("name", REFERENCES)
def test_outputs_and_gradients_equal_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, mixer, theirs = safari(name, monkeypatch)
    x, length = theirs["x"].clone().requires_grad_(), theirs["x"].shape[1]

    y = mixer(x, model.positions(0, length))
    (y * theirs["loss_weight"]).sum().backward()
    found = {name: cast(Tensor, parameter.grad) for name, parameter in mixer.named_parameters()}
    filter = mixer.filter(length).detach()
    filter[:, 0] -= mixer.filter.D.detach()

    assert error(filter, theirs["filter"][0].mT) < 1e-9
    assert error(y.detach(), theirs["y"]) < 1e-9
    assert error(cast(Tensor, x.grad), theirs["grad_x"]) < 1e-9
    assert gradient_error(found, our_names(theirs["grad_params"])) < 1e-9


@pytest.mark.parametrize("name", REFERENCES)
def test_the_table_equals_that_of_the_reference_which_is_float32(name: str) -> None:
    weights = oracle(f"mixers/hyena_safari_{name}.pt")["state_dict"]
    theirs, cpu = weights["filter_fn.pos_emb.z"][0], torch.device("cpu")

    table, time = hyena.position_features(theirs.shape[1], 64, torch.arange(64, dtype=torch.float64))

    assert error(table, theirs) < 2e-5  # angles up to 94
    assert error(time, weights["filter_fn.pos_emb.t"][0, :, 0]) < 1e-6
    assert error(-hyena.window_rates(16, cpu), weights["filter_fn.modulation.deltas"].flatten()) < 1e-6


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("pieces", [[30], [], [1, 20, 9], [50]])
def test_decode_equals_the_training_form_of_the_reference(
    name: str, pieces: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, theirs = safari(name, monkeypatch)

    y, _ = mix(model, theirs["x"], pieces, max_seq_len=64)

    assert error(y, theirs["y"]) < 1e-9


@pytest.mark.parametrize("case", ["all equal", "one token", "large"])
def test_adversarial_inputs_stay_finite_and_right(case: str) -> None:
    model = random_model("hyena", embedding_scale=1e4 if case == "large" else 1.0)
    tokens = torch.zeros(1, 300, dtype=torch.int64) if case == "all equal" else random_tokens(1, 40)
    tokens = tokens[:, :1] if case == "one token" else tokens
    pieces = [1] if case == "one token" else [tokens.shape[1] - 3]

    in_float64 = model(tokens).detach()
    steps = read(model, tokens, pieces)
    in_float32 = gradients(model.float(), tokens)

    assert in_float64.isfinite().all()
    assert error(steps, in_float64[:, ends(pieces, tokens.shape[1])]) < 1e-9
    assert all(gradient.isfinite().all() for gradient in in_float32.values())


# ---- the cache


def caches(state: State) -> list[HyenaState]:
    return [cast(HyenaState, layer) for layer in state.layers]


def addresses(state: State) -> list[int]:
    return [tensor.data_ptr() for tensor in state.tensors()]


def test_a_preallocated_cache_is_written_in_place_through_its_last_token() -> None:
    model = random_model("hyena")
    tokens = random_tokens(2, 12)
    state = model.init_state(2, 12)
    before = addresses(state)

    read(model, tokens, [5], state)

    assert addresses(state) == before
    assert state.position == 12


def test_a_full_cache_doubles_up_to_l_max_and_stays_right() -> None:
    model = random_model("hyena", l_max=40)
    tokens = random_tokens(2, 40)
    state = model.init_state(2, 7)
    expected = model(tokens).detach()

    capacities = []
    for n, token in enumerate(tokens.unbind(1)):
        logits, _ = model.step(token, state)
        capacities.append(caches(state)[0].capacity)

        assert error(logits, expected[:, n]) < 1e-10
    assert capacities == [7] * 7 + [14] * 7 + [28] * 14 + [40] * 12


@pytest.mark.parametrize("length", [1, 4, 5, 11, 12, 40])
def test_a_caches_filter_is_made_in_segments_and_is_the_whole_one_newest_last(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hyena, "SEGMENT", 4)
    monkeypatch.setattr(hyena, "MOST_SEGMENTS", 5)
    model = random_model("hyena")
    mixer = cast(HyenaMixer, model.blocks[0].mixer)

    filter = caches(model.init_state(2, length))[0].filter

    assert error(filter, mixer.filter(length).detach().flip(-1)) < 1e-12


def test_making_a_cache_takes_little_more_memory_than_the_cache() -> None:
    model = build("hyena", "tiny", vocab_size=64)
    model.init_state(1, 8)  # what is made once is made
    length = 2 * hyena.MOST_SEGMENTS * hyena.SEGMENT
    nbytes = model.init_state(1, length).nbytes

    made = CPU.peak_memory(lambda: None, lambda _: model.init_state(1, length)).tensor_bytes

    assert made < nbytes + nbytes / 4  # a filter that is computed as a whole takes most of nbytes again


def test_the_bytes_of_a_cache_are_all_inputs_and_the_filter_in_float32() -> None:
    model = build("hyena", "tiny", vocab_size=64).to(torch.bfloat16)
    state = model.init_state(3, 100)
    state.fill_(40)

    one_token, past = 2 * (3 + 1) * 128 * 4, 2 * 3 * 128 * 3 * 2 * 4  # layers, sequences and filter, channels, bytes

    assert state.nbytes == 100 * one_token + past
    assert state.step_bytes() == 41 * one_token + 2 * past
    assert state.sized(30).nbytes == 30 * one_token + past


def test_a_step_does_not_read_the_weights_of_the_filter() -> None:
    model = build("hyena", "tiny", vocab_size=64)
    network = 33 * 64 + 64 + 2 * (64 * 64 + 64) + 64 + 64 * 128 + 128

    assert model.step_weights_bytes() == model.weights_bytes() - 4 * (64 * 128 + 2 * network)


def test_a_filled_cache_holds_random_tokens_up_to_its_position_and_no_more_than_fit() -> None:
    model = random_model("hyena")
    state = model.init_state(2, 20)
    filters = [cache.filter.clone() for cache in caches(state)]

    state.fill_(12)

    for cache, filter in zip(caches(state), filters, strict=True):
        assert cache.read[..., :12].abs().min() > 0
        assert not cache.read[..., 12:].any()
        assert torch.equal(cache.filter, filter)
    assert model.step(random_tokens(2, 1)[:, 0], state)[0].isfinite().all()
    with pytest.raises(ValueError, match="21 tokens do not fit in a cache of 20"):
        state.fill_(21)


def test_a_shorter_state_in_the_same_memory_is_dense_and_right() -> None:
    model = random_model("hyena")
    long = model.init_state(2, 40)
    tokens = random_tokens(2, 15)
    expected = model(tokens).detach()

    short = long.sized(15)
    logits = read(model, tokens, [9, 2], short)

    assert [c.read.data_ptr() for c in caches(short)] == [c.read.data_ptr() for c in caches(long)]
    assert all(cache.read.is_contiguous() and cache.capacity == 15 for cache in caches(short))
    assert error(logits, expected[:, ends([9, 2], 15)]) < 1e-10


# ---- l_max


def test_nothing_is_read_beyond_l_max() -> None:
    model = random_model("hyena", l_max=20)
    tokens = random_tokens(1, 21)
    message = "hyena reads at most l_max = 20 tokens, not 21; l_max is a field of its config"
    _, state = model.prefill(tokens[:, :20])
    before = [tensor.clone() for tensor in state.tensors()]

    with pytest.raises(ValueError, match=message):
        model(tokens)
    with pytest.raises(ValueError, match=message):
        model.prefill(tokens)
    with pytest.raises(ValueError, match=message):
        model.init_state(1, 21)
    with pytest.raises(ValueError, match=message):
        model.step(tokens[:, 20], state)

    assert state.position == 20
    assert all(torch.equal(*pair) for pair in zip(state.tensors(), before, strict=True))


def test_l_max_is_part_of_the_function_but_of_no_weight() -> None:
    short, long = random_model("hyena", l_max=64), random_model("hyena", l_max=2**20)
    tokens = random_tokens(1, 30)

    assert short.weights_bytes() == long.weights_bytes()
    assert error(short(tokens).detach(), long(tokens).detach()) > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"l_max": 1}, "l_max must be at least 2 and filter_width positive, not 1 and 64"),
        ({"filter_width": 0}, "l_max must be at least 2 and filter_width positive, not 32768 and 0"),
        ({"filter_features": 4}, "filter_features must be odd and at least 3, not 4"),
        ({"filter_features": 1}, "filter_features must be odd and at least 3, not 1"),
    ],
)
def test_sizes_that_do_not_fit_are_an_error(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("hyena", "tiny", **options)


def test_the_ffn_takes_what_the_mixer_leaves_and_the_record_names_the_decode() -> None:
    assert HyenaConfig("hyena", d_model=1024, n_layers=1).d_ffn == 4048
    assert build("hyena", "tiny", vocab_size=8).decode_form == "cached-convolution"
    assert build("h3", "tiny", vocab_size=8).decode_form == "recurrent"
