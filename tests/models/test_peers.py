"""A peer gets our weights and is measured only where it computes what its twin computes; here one that is ours."""

from collections.abc import Callable, Iterator
from importlib import metadata
from typing import cast

import pytest
import torch

from models import build, peers
from models.catalogue import Peer
from models.language_model import LanguageModel, State
from models.peers.adapter import PeerModel
from models.peers.equivalence import NotEquivalentError, load_weights
from models.retnet import RetNetConfig
from tests.models.helpers import random_tokens
from tests.models.mirror import Mirror

MIRROR = Peer("mirror", "ours", "tests.models.mirror", (), True, {"stub": ("name",)}, {"mirror": "ours"}, "transformer")


@pytest.fixture(autouse=True)
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the stand-in a peer that is installed, and puts the default dtype back."""
    dtype = torch.get_default_dtype()
    monkeypatch.setattr(Mirror, "distribution", "torch")
    monkeypatch.setattr(peers, "peer_of", {"mirror": MIRROR}.get)
    yield
    torch.set_default_dtype(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_peer_computes_with_the_weights_of_its_twin_in_the_measured_dtype(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    tokens = random_tokens(2, 9)

    peer, twin = peers.build("mirror", "tiny", seed=3), build("transformer", "tiny", seed=3)

    assert torch.equal(peer.prefill(tokens)[0], twin.prefill(tokens)[0])
    assert peer.weights_bytes() == twin.weights_bytes()
    assert peer.step_weights_bytes() == twin.step_weights_bytes()
    assert torch.get_default_dtype() == dtype


def test_a_peer_says_what_it_is_for_the_record() -> None:
    peer = peers.build("mirror", "tiny")

    error = cast(float, peer.notes.pop("logits_error_std"))
    assert peer.backend == f"torch {metadata.version('torch')}"
    assert peer.notes == {"peer": peer.backend, "stubs": ["stub"], "twin": "transformer", "prefill": "as ours"}
    assert error < 1e-12


def test_an_unknown_row_is_refused() -> None:
    with pytest.raises(ValueError, match="no peer has a row 'retnet'"):
        peers.build("retnet", "tiny")


@pytest.mark.parametrize("name", sorted(dict(build("transformer", "tiny").named_parameters())))
def test_a_single_wrong_weight_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_wrongly(model: PeerModel, twin: LanguageModel) -> None:
        load_weights(model, twin)
        right = model.theirs.get_parameter(name)
        noise = torch.randn(right.shape, generator=torch.Generator().manual_seed(0), dtype=right.dtype)
        wrong = noise * right.std() if right.ndim == 2 else right + 0.02 * noise
        model.theirs.load_state_dict({name: wrong}, strict=False, assign=True)

    monkeypatch.setattr(peers, "load_weights", load_wrongly)

    with pytest.raises(NotEquivalentError, match=r"does not compute what transformer computes: .* are off by"):
        peers.build("mirror", "tiny")


def _other_position(model: Mirror) -> None:
    init_state = model.init_state

    def late(batch_size: int, max_seq_len: int) -> State:
        state = init_state(batch_size, max_seq_len + 1)
        state.position = 1
        return state

    model.init_state = late  # type: ignore[method-assign]


def _nan(model: Mirror) -> None:
    model.prefill = lambda tokens: (torch.full((len(tokens), 32000), torch.nan), None)  # type: ignore[method-assign]


@pytest.mark.parametrize("spoil", [_other_position, _nan])
def test_steps_and_prefill_that_compute_something_else_are_caught(
    spoil: Callable[[Mirror], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(model: PeerModel, twin: LanguageModel) -> None:
        load_weights(model, twin)
        spoil(cast(Mirror, model))

    monkeypatch.setattr(peers, "load_weights", load)

    with pytest.raises(NotEquivalentError, match="does not compute"):
        peers.build("mirror", "tiny")


def test_weights_that_do_not_fit_one_to_one_are_listed() -> None:
    config = RetNetConfig("retnet", d_model=16, n_layers=1, vocab_size=8, gate=False)
    twin = build("retnet", "tiny", d_model=16, n_layers=1, vocab_size=9, d_ffn=32)

    with pytest.raises(NotEquivalentError) as caught:
        load_weights(Mirror("mirror", config), twin)

    assert "layers.0.mixer.g_proj.weight has no place in it" in str(caught.value)
    assert "head.weight is (8, 16), not (9, 16)" in str(caught.value)
