"""Ranks that share a model out compute the loss and the gradients of the whole model, each with its part of it."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from torch import multiprocessing

from models import build
from models.catalogue import paper_systems
from models.parallel import check_degree
from tests.models import ranks
from tests.models.ranks import Case

D_MODEL, N_LAYERS = 128, 2
WHOLE = {  # parameters of a layer that every rank has, beside the norms
    "rwkv": 3 * D_MODEL,  # of the token shift, which reads all channels
    "h3": D_MODEL,  # the bias of the output
    "hyena": D_MODEL + 34 * 64 + 2 * 65 * 64 + 64,  # that bias, and the network that computes the filter
}
LLAMA = {"norm": "rmsnorm", "ffn": "swiglu", "n_heads": 4, "n_kv_heads": 2, "tied_embeddings": True}
VARIANTS = (
    Case("transformer", tensor=2, options=LLAMA, chunked=True, checkpointing=True),
    Case("retnet", tensor=2, options={"form": "parallel"}, checkpointing=True),
    Case("retnet", tensor=2, options={"form": "recurrent", "gamma": "eq8"}, chunked=True),
    Case("retnet", tensor=2, options={"group_norm_affine": True}),
    Case("transformer", shards=2, options=LLAMA, chunked=True, checkpointing=True),
    Case("retnet", replicas=2, chunked=True, checkpointing=True),
)


def on_ranks(cases: list[Case], world: int = 2) -> list[list[Any]]:
    """What the ranks found of each case."""
    with TemporaryDirectory() as folder:
        multiprocessing.spawn(ranks.run, (world, folder, cases), nprocs=world)  # type: ignore[no-untyped-call]
        found = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(world)]
    return [list(of_case) for of_case in zip(*found, strict=True)]


def check(case: Case, figures: dict[str, float]) -> None:
    """Of one rank: the same results in float64, and exactly its part of the parameters."""
    whole = figures["whole_bytes"] - beside(case)
    errors = {name: value for name, value in figures.items() if name.endswith("error")}

    assert max(errors.values()) < 1e-11, (case, errors)
    assert figures["bytes"] == whole / (case.tensor * case.shards) + beside(case) / case.shards, case


def beside(case: Case) -> int:
    """Bytes of the parameters that tensor parallelism leaves whole, in float64."""
    norms = (2 * N_LAYERS + 1) * D_MODEL * (1 if case.options.get("norm") == "rmsnorm" else 2)
    norms += N_LAYERS * D_MODEL if case.options.get("group_norm_affine") else 0  # one weight of d_v for all heads
    return 8 * (norms + N_LAYERS * WHOLE.get(case.system, 0)) if case.tensor > 1 else 0


def test_two_ranks_compute_what_one_does_with_half_the_parameters() -> None:
    cases = [Case("retnet", tensor=2), Case("hyena", tensor=2), Case("transformer", shards=2), Case("lstm", tensor=2)]
    *computed, refused = on_ranks(cases)

    for case, figures in zip(cases, computed, strict=False):
        for of_rank in figures:
            check(case, of_rank)
    assert "every channel of an LSTM reads all of the last output" in refused[0]


@pytest.mark.slow
def test_two_ranks_compute_what_one_does_in_every_system_and_variant() -> None:
    ways = ("tensor", "shards", "replicas")
    systems = [Case(system, **{way: 2}) for system in paper_systems() for way in ways]  # type: ignore[arg-type]
    cases = [case for case in (*systems, *VARIANTS) if (case.system, case.tensor) != ("lstm", 2)]

    for case, figures in zip(cases, on_ranks(cases), strict=True):
        for of_rank in figures:
            check(case, of_rank)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["shards", "replicas"])
def test_parameters_of_another_dtype_stay_whole_and_their_gradients_are_means_too(way: str) -> None:
    cases = [Case(system, mixed=True, **{way: 2}) for system in ("h3", "hyena")]  # type: ignore[arg-type]

    for figures in on_ranks(cases):
        for of_rank in figures:
            assert max(of_rank["loss_error"], of_rank["gradient_error"]) < 1e-4
            assert (of_rank["bytes"] < of_rank["whole_bytes"]) == (way == "shards")


@pytest.mark.slow
def test_four_ranks_share_heads_and_parameters_both() -> None:
    systems = ("retnet", "transformer", "rwkv", "hyena")
    cases = [Case(system, tensor=2, **{way: 2}) for system in systems for way in ("shards", "replicas")]  # type: ignore[arg-type]

    for case, figures in zip(cases, on_ranks(cases, world=4), strict=True):
        for of_rank in figures:
            check(case, of_rank)


def test_a_degree_that_does_not_divide_the_heads_is_refused_with_those_that_do() -> None:
    model = build("retnet", "tiny", n_heads=2, vocab_size=96)

    with pytest.raises(ValueError, match=r"over 3 ranks does not divide n_heads = 2 of retnet; possible are 1, 2"):
        check_degree(model, 3)


@pytest.mark.parametrize(
    ("option", "value", "name"), [("n_kv_heads", 1, "n_kv_heads"), ("vocab_size", 61, "vocab_size")]
)
def test_everything_that_is_shared_out_must_divide(option: str, value: int, name: str) -> None:
    model = build("transformer", "tiny", **{"n_heads": 2, option: value})

    with pytest.raises(ValueError, match=f"does not divide {name} = {value} of transformer; possible are 1$"):
        check_degree(model, 2)
