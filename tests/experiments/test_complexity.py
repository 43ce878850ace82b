"""The complexity experiment: verdicts on known numbers, and the command for real at size tiny."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments import complexity
from models import build
from models.catalogue import paper_systems
from retbench.devices.cpu import DEVICE as CPU
from retbench.measure import forward_backward
from retbench.report.growth import byte_growth
from retbench.statistics import Interval
from tests.experiments.conftest import run, stored
from tests.models.helpers import random_tokens
from tests.report.factory import cell, record


@pytest.mark.parametrize(
    ("low", "high", "order", "expected"),
    [
        (0.0, 0.0, "O(1)", "agrees"),
        (0.95, 1.02, "O(1)", "differs"),
        (1.95, 2.0, "O(N^2)", "agrees"),
        (1.0, 1.0, "O(N^2)", "differs"),
        (0.4, 0.7, "O(N)", "differs"),
        (0.2, 1.7, "O(N)", "undecided"),
        (0.6, 1.3, "O(N)", "undecided"),
    ],
)
def test_a_verdict_needs_the_claimed_order_and_no_other_to_fit(
    low: float, high: float, order: str, expected: str
) -> None:
    found = Interval((low + high) / 2, low, high)

    assert complexity.verdict(found, order, list(complexity.ORDERS), 4096.0, 0.03) == expected


def test_without_a_measurement_the_verdict_is_undecided() -> None:
    assert complexity.verdict(None, "O(1)", ["O(1)"], 4096.0, 0.1) == "undecided"
    assert complexity.parallel_verdict(None, True) == "undecided"


@pytest.mark.parametrize(
    ("share", "claimed", "expected"),
    [(0.9, True, "agrees"), (0.9, False, "differs"), (0.2, False, "agrees"), (0.2, True, "differs"),
     (0.5, True, "undecided"), (0.6, True, "undecided")],
)  # fmt: skip
def test_a_parallel_mixer_takes_about_as_long_for_a_text_as_for_its_positions_side_by_side(
    share: float, claimed: bool, expected: str
) -> None:
    assert complexity.parallel_verdict(Interval(share, share - 0.1, share + 0.1), claimed) == expected


def test_every_row_of_the_papers_table_is_claimed_in_orders_that_we_know() -> None:
    claims = complexity.paper_claims()

    assert len(claims) == 7
    for claim in claims.values():
        assert claim["inference_cost"] in complexity.ORDERS
        assert claim["memory"] in complexity.ORDERS


def test_the_table_shows_measured_exponents_beside_the_papers_and_failures_in_words() -> None:
    lengths = [256 * 2**n for n in range(7)]
    contexts = [
        {"context": n, "decode_ms_groups": [[2.0 + n / 256, 2.0 + n / 256]] * 3, "state_bytes": 64 * n,
         "step_bytes": 64 * n, "train_ms": 1.0, "train_peak_memory_bytes": 10**6 + n * n}
        for n in lengths
    ]  # fmt: skip
    metrics = {"parallel_speedup": 90.0, "parallel_share": 0.9, "parallel_share_low": 0.8, "parallel_share_high": 1.0}
    transformer = record(cell("transformer"), metrics=metrics, contexts=contexts)
    failed = record(cell("retnet"), "killed", reason="killed by SIGKILL")

    claims, exponents = complexity.tables([transformer, failed])

    verdicts = {row[1].value: row[-1].text for row in claims.rows if row[0].text == "transformer"}
    assert verdicts == dict.fromkeys(("training_parallel", "decode", "step_bytes", "train_memory"), "agrees")
    assert [row[-1].text for row in claims.rows if row[0].text == "retnet"] == ["killed"]
    assert any("killed by SIGKILL" in note for note in claims.footnotes)
    assert [entry.text for entry in exponents.rows[0]][:3] == ["transformer", "1.00", "1.00"]
    assert exponents.rows[0][-2].text == "90x"


def test_a_time_that_is_called_constant_has_no_interval_and_a_note_says_what_that_means() -> None:
    contexts = [
        {"context": 256 * 2**n, "decode_ms_groups": [[2.0, 2.0]] * 3, "state_bytes": 64, "step_bytes": 64}
        for n in range(7)
    ]
    claims, _ = complexity.tables([record(cell("retnet"), contexts=contexts)])

    shown = {row[1].value: [entry.text for entry in row[2:]] for row in claims.rows}
    assert shown["decode"] == ["constant", "-", "-", "O(1)", "agrees"]
    assert shown["step_bytes"] == ["constant", "0.00 to 0.00", "0.00", "O(1)", "agrees"]
    assert any("grows by under 25 % over all lengths" in note for note in claims.footnotes)


def test_the_command_measures_every_length_and_draws_the_figure(tmp_path: Path) -> None:
    arguments = ["complexity", "--systems", "retnet,transformer", "--size", "tiny", "--seq-len", "2048"]
    done = run(tmp_path, *arguments, "--dtype", "fp32", "--threads", "1", "--budget", "20s", "--format", "json")

    assert done.returncode == 0, done.stderr
    by_system = {found.cell.system: found for found in stored(tmp_path, "complexity")}
    assert [point["context"] for point in by_system["retnet"].contexts] == [256 * 2**n for n in range(4)]
    states = {name: [point["state_bytes"] for point in found.contexts] for name, found in by_system.items()}
    assert len(set(states["retnet"])) == 1
    assert states["transformer"] == [states["transformer"][0] * 2**n for n in range(4)]
    rows = {row["system"]: row for row in json.loads(done.stdout)["exponents"]["rows"]}
    assert rows["retnet"]["state_exponent"] == rows["retnet"]["step_bytes_exponent"] == 0
    assert rows["transformer"]["state_exponent"] == pytest.approx(1.0, abs=0.02)
    assert rows["retnet"]["parallel_speedup"] > 0
    assert by_system["retnet"].metrics["parallel_share_low"] <= by_system["retnet"].metrics["parallel_share_high"]
    assert (tmp_path / "reports/complexity/complexity.png").stat().st_size > 0
    residuals = ("decode_residual_bytes", "prefill_residual_bytes", "train_residual_bytes")
    shortest, *longer = by_system["retnet"].contexts  # a slow moment may leave no time for all kinds of the longest
    assert [shortest[name] for name in residuals] == [0, 0, 0]
    assert {point.get(name, 0) for name in residuals for point in longer} == {0}


@pytest.mark.parametrize("system", paper_systems())
def test_a_state_does_not_grow_by_a_byte_or_grows_with_every_token(system: str) -> None:
    with torch.device("meta"):
        model = build(system, "mini", vocab_size=8)
    sizes = {}
    for length in (256, 512, 1024, 2048):
        with torch.device("meta"):
            state = model.init_state(1, length)
        for layer in state.layers:  # a concatenated cache starts out empty
            layer.fill_(length, torch.Generator())
        sizes[length] = state.nbytes
    found = byte_growth(sizes)

    assert found is not None
    if model.decode_form == "recurrent":
        assert set(sizes.values()) == {sizes[256]}
    else:
        assert (found.low, found.value, found.high) == pytest.approx((1, 1, 1), abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("system", complexity.SYSTEMS.split(","))
def test_training_bytes_grow_with_an_exponent_that_is_right_to_2_percent(system: str) -> None:
    model = build(system, "tiny", d_model=32, d_ffn=64, n_layers=1, vocab_size=8)
    # Below, the peak is in another place.
    shortest = {"transformer": 512, "transformer-flash": 2048, "h3": 256}.get(system, 1024)

    def train_bytes(length: int) -> int:
        tokens = random_tokens(1, length + 1, vocab_size=8)
        return CPU.peak_memory(lambda: None, lambda _: forward_backward(model, tokens)).tensor_bytes

    train_bytes(shortest)  # makes what is made once
    found = byte_growth({shortest * 2**n: train_bytes(shortest * 2**n) for n in range(4)})

    assert found is not None
    assert found.value == pytest.approx(2 if system == "transformer" else 1, abs=0.02)


def test_a_figure_without_a_single_point_is_still_drawn() -> None:
    failed = record(replace(cell("retnet"), workload="complexity"), "oom")

    assert complexity.figures([failed]).keys() == {"complexity"}
