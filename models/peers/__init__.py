"""Other projects' models, one file each, made to compute with our weights and measured by the same code as ours.

A file has ``PEER``, a literal that ``models.catalogue`` reads without importing, and ``MODEL``, a ``PeerModel``. It is
imported under an interpreter of its own, where the project is installed.
"""

from dataclasses import replace
from importlib import import_module

import torch

from models import configure, from_config
from models.catalogue import peer_of
from models.peers.adapter import PeerModel
from models.peers.equivalence import check_same_function, load_weights


def build(row: str, size: str, seed: int = 0) -> PeerModel:
    """A peer with the weights of its twin, in torch's default dtype; shown first to compute the twin's function.

    Both are compared in float64 with norms without epsilon, where right code agrees but for what it computes in float32
    whatever the weights. Raises ValueError for an unknown row, ImportError where the project is not installed,
    NotEquivalentError where weights or logits differ.
    """
    peer, dtype = peer_of(row), torch.get_default_dtype()
    if peer is None:
        raise ValueError(f"no peer has a row {row!r}")
    model_class: type[PeerModel] = import_module(peer.module).MODEL
    config = configure(peer.twin, size, seed=seed)
    twin = from_config(replace(config, norm_eps=0.0)).double()  # once drawn in the measured dtype, as in its cell
    torch.set_default_dtype(torch.float32)  # in which the project's own tables are computed
    try:
        model = model_class(row, config)
    finally:
        torch.set_default_dtype(dtype)
    load_weights(model, twin)
    model.cast(torch.float64)
    model.set_norm_eps(0.0)
    error = check_same_function(model, twin)
    model.set_norm_eps(config.norm_eps)
    del twin  # so that each weight is freed as it is cast
    model.cast(dtype)
    model.notes = {
        "peer": model.backend,
        "stubs": list(peer.stubs),
        "twin": peer.twin,
        "logits_error_std": error,
        "prefill": model.prefill_form,
    }
    return model
