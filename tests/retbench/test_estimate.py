"""The search for what fits, the operations that a trace counts, and what a cell needs."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import build
from models.flops import forward_flops
from retbench.devices.cpu import DEVICE as CPU
from retbench.environment import ROOT
from retbench.measure.estimate import RESOLUTION, estimate, largest_fitting
from retbench.measure.ledger import Ledger
from retbench.measure.predict import UNCOUNTABLE, Predictor, predict
from retbench.spec import MAX_SEQ_LEN, Cell, Training
from tests.models.helpers import random_tokens, repeatable

pytestmark = pytest.mark.usefixtures("one_thread")

COUNTS = st.integers(0, 10**6)


def cell(system: str, workload: str = "decode", training: Training | None = None, **other: int) -> Cell:
    return Cell(system, "tiny", workload, 64, 2, "fp32", "cuda", 1, training=training, **other)


@repeatable
@given(constant=COUNTS, linear=COUNTS, square=COUNTS, step=st.integers(1, 100), limit=st.integers(0, 10**9))
def test_the_largest_that_fits_is_found_on_any_growing_curve(
    constant: int, linear: int, square: int, step: int, limit: int
) -> None:
    tried = []

    def peak(n: int) -> int:
        tried.append(n)
        return constant + linear * (n // step) + square * (n // step) ** 2

    found = largest_fitting(peak, limit, start=64, most=10**6)
    slack = max(1, found // RESOLUTION)
    assert len(tried) < 60
    assert found == 0 or peak(found) <= limit
    assert found == 10**6 or found + slack > 10**6 or peak(found + slack) > limit


@pytest.mark.parametrize(
    ("peak", "tries"), [(lambda n: 1000 + 7 * n, 6), (lambda n: 50, 6), (lambda n: UNCOUNTABLE, 12)]
)
def test_a_line_a_constant_and_what_never_fits_take_few_tries(peak: Callable[[int], int], tries: int) -> None:
    tried: list[int] = []

    found = largest_fitting(lambda n: tried.append(n) or peak(n), 10_000, start=100, most=10**5)  # type: ignore[func-returns-value]
    assert found == (0 if peak(1) > 10_000 else min(10**5, (10_000 - 1000) // 7 if peak(2) > peak(1) else 10**5))
    assert len(tried) <= tries


def test_flash_attention_counts_the_operations_of_eager_attention_and_its_backward_pass_the_scores_once_more() -> None:
    counts = {}
    for attention in ("eager", "sdpa"):
        model = build("transformer", "tiny", vocab_size=61, attention=attention)
        with Ledger() as forward:
            logits = model(random_tokens(2, 48))
        with Ledger() as backward:
            logits.sum().backward()
        counts[attention] = forward.flops, backward.flops

    scores = 2 * 2 * 128 * 48 * 48 * 2  # operations, of two sequences and two layers
    assert counts["sdpa"][0] == counts["eager"][0]
    assert counts["sdpa"][1] == counts["eager"][1] + scores


def test_operations_of_a_predicted_prefill_are_those_of_the_formula_with_the_pairs_that_are_never_seen() -> None:
    of = cell("transformer-flash", vocab_size=61)

    unseen = 2 * 2 * 128 * (64 * 64 - 64 * 65 // 2)
    model = build("transformer-flash", "tiny", vocab_size=61)
    assert predict(of)["prefill_flops"] == 2 * (forward_flops(model.config, 64, 1) + model.config.n_layers * unseen)


@pytest.mark.parametrize("system", ["hyena", "h3", "lstm", "rwkv"])
def test_every_kind_of_mixer_has_operations(system: str) -> None:
    dense = 2 * 2 * 64 * 2 * 12 * 128**2  # of 2 sequences, 64 positions, 2 layers

    assert predict(cell(system, vocab_size=61))["prefill_flops"] > 0.9 * dense


def test_moved_bytes_are_read_and_written_and_a_view_moves_none() -> None:
    x = torch.ones(8, 4)
    with Ledger() as ledger:
        x.t()[:2].view(2, 8)
    assert ledger.moved == 0

    with Ledger() as ledger:
        x.add_(1.0)
        torch.nn.functional.embedding(torch.tensor([3, 3]), x)
    assert ledger.moved == 2 * x.nbytes + 2 * (2 * 4 * 4)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["retnet", "transformer-flash"])
@pytest.mark.parametrize("workload", ["decode", "prefill", "train_step"])
def test_what_an_estimate_calls_the_largest_fits_and_a_little_more_does_not(system: str, workload: str) -> None:
    training = Training() if workload == "train_step" else None
    memory_bytes = 2**25
    of = cell(system, workload, training, vocab_size=512)
    found = estimate(of, memory_bytes)

    def peak(seq_len: int, batch_size: int) -> int:
        at = Cell(**{**of.to_dict(), "training": training, "seq_len": seq_len, "batch_size": batch_size})
        return predict(at)["prefill_peak_memory_bytes" if workload == "prefill" else "peak_memory_bytes"]

    batch, longest = found["largest_batch_size"], found["longest_seq_len"]
    assert peak(64, batch) <= memory_bytes < peak(64, batch + batch // RESOLUTION + 1)
    if longest < MAX_SEQ_LEN:
        assert peak(longest, 2) <= memory_bytes < peak(longest + longest // RESOLUTION + 1, 2)


def test_a_length_fits_whose_state_can_be_made() -> None:
    memory_bytes, model = 2**24, build("hyena", "tiny", vocab_size=512)
    model.init_state(1, 8)  # what is made once is made

    def made(seq_len: int) -> int:
        peak = CPU.peak_memory(lambda: None, lambda _: model.init_state(2, seq_len))
        return model.weights_bytes() + peak.tensor_bytes

    found = estimate(cell("hyena", vocab_size=512), memory_bytes)
    longest = found["longest_seq_len"]
    assert made(longest) <= memory_bytes < made(longest + longest // RESOLUTION + 1)
    assert found["peak_memory_bytes"] == made(64)


@pytest.mark.slow
def test_a_deep_models_training_is_searched_on_few_layers_and_checked_on_all() -> None:
    of = cell("transformer-flash", "train_step", Training(), vocab_size=512, n_layers=5)
    found = estimate(of, 2**26)

    batch = found["largest_batch_size"]
    peaks = [predict(Cell(**{**of.to_dict(), "training": Training(), "batch_size": n})) for n in (batch, batch + 1)]
    assert peaks[0]["peak_memory_bytes"] <= 2**26 < peaks[1]["peak_memory_bytes"]


def test_parts_of_an_estimate_are_its_peak() -> None:
    kinds = ("weights_bytes", "state_bytes", "gradients_bytes", "optimizer_bytes", "activations_bytes")
    for workload in ("decode", "prefill", "train_step"):
        found = estimate(cell("transformer-flash", workload, vocab_size=512), 2**20)  # the weights alone are larger

        assert sum(found[kind] for kind in kinds) == found["peak_memory_bytes"]
        assert (found["longest_seq_len"], found["largest_batch_size"]) == (0, 0)


@pytest.mark.slow
def test_hyena_is_planned_for_no_text_that_it_cannot_read() -> None:
    of = cell("hyena", vocab_size=512)
    at_most = Predictor(of).config.l_max  # type: ignore[attr-defined]

    longest = estimate(of, 2**40)["longest_seq_len"]
    assert at_most - at_most // RESOLUTION <= longest <= at_most


LARGE = """
import re, sys, time
from retbench.measure.estimate import estimate
from retbench.spec import Cell, Training
system, size, workload, batch_size = sys.argv[1:]
training = Training() if workload == "train_step" else None
cell = Cell(system, size, workload, 8192, int(batch_size), "bf16", "cuda", 1, training=training)
began = time.monotonic()
found = estimate(cell, 80 * 10**9)
print(found["parameters"], time.monotonic() - began)
print(int(re.findall(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[0]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("system", ["retnet", "transformer", "transformer-flash"])
@pytest.mark.parametrize(
    ("size", "workload", "batch_size", "least"), [("13b", "train_step", 1, 12e9), ("6.7b", "decode", 8, 6e9)]
)
def test_the_papers_sizes_are_estimated_in_less_than_a_gigabyte(
    system: str, size: str, workload: str, batch_size: int, least: float
) -> None:
    command = [sys.executable, "-c", LARGE, system, size, workload, str(batch_size)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=240)

    parameters, took_s, high_water = map(float, done.stdout.split())
    print(f"{workload} of {system} {size}: {took_s:.1f} s, {high_water / 1e6:.0f} MB")
    assert parameters > least
    assert high_water < 1e9
