"""Presets: every file is one, its cells are matched, and a budget gives the same tokens to all whenever it is asked."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.catalogue import paper_systems
from models.sizes import SIZES
from retbench.errors import UsageError
from retbench.learning.presets import Preset, find_preset, presets
from retbench.learning.run import Run
from tests.models.helpers import repeatable

CPU = find_preset("cpu")


@pytest.mark.parametrize("name", presets())
def test_a_preset_makes_cells_that_differ_in_system_size_and_seed_alone(name: str) -> None:
    preset = find_preset(name)
    cells = preset.cells([*paper_systems()], 2)
    alike = {replace(cell, system="", size="", seed=0, l_max=None, learning=None) for cell in cells}

    assert len(set(cells)) == len(paper_systems()) * len(preset.sizes) * 2
    assert len(alike) == 1
    assert set(preset.sizes) <= set(SIZES)
    assert {Run.of_cell(cell).tokens for cell in cells} == {
        -(-preset.tokens // preset.step_tokens) * preset.step_tokens
    }
    assert [cell.l_max for cell in cells if cell.system == "hyena"] == [preset.l_max] * len(preset.sizes) * 2
    assert max(preset.contexts, default=0) <= preset.l_max


def test_the_presets_of_the_paper_are_the_papers() -> None:
    small, whole = find_preset("paper-200m"), find_preset("paper")
    runs = [Run.of_cell(preset.cells(["retnet"], 1)[0]) for preset in (small, whole)]

    assert [run.steps for run in runs] == [10_000, 25_000]
    assert [run.step_tokens for run in runs] == [2**19, 2**22]
    assert [run.warm_up for run in runs] == [375, 375]
    assert whole.sizes == {"1.3b": 6e-4, "2.7b": 3e-4, "6.7b": 3e-4}


def test_short_runs_warm_up_for_long_enough() -> None:
    steps = {
        tokens: Run.of_cell(replace(CPU, tokens=tokens).cells(["retnet"], 1)[0]) for tokens in (2**12, 2**17, 2**21)
    }

    assert [(run.steps, run.warm_up) for run in steps.values()] == [(8, 4), (256, 64), (4096, 204)]


@given(st.floats(400, 1e6), st.integers(1, 5))
@repeatable
def test_a_budget_is_used_up_by_whole_steps(budget_s: float, seeds: int) -> None:
    systems = ["unigram", "5-gram", "retnet", "lstm"]
    found = TIMED.within(budget_s, systems, seeds)
    used_s = [seeds * (2 * 10 + tokens * (1 / 8000 + 1 / 2000)) / 2 for tokens in (found.tokens, found.tokens + 1024)]

    assert found.tokens % TIMED.step_tokens == 0
    assert used_s[0] <= budget_s * (1 + 1e-9)
    assert budget_s <= used_s[1] * (1 + 1e-9)
    assert replace(found, tokens=TIMED.tokens) == TIMED


TIMED = replace(CPU, seq_len=256, batch_size=4, tokens_per_s={"retnet": 8000.0, "lstm": 2000.0}, scoring_s=10.0)


def test_a_budget_counts_every_size_at_its_own_speed() -> None:
    speeds = {"retnet tiny": 4000.0, "retnet mini": 1000.0}
    two = replace(TIMED, sizes={"tiny": 3e-3, "mini": 1e-3}, tokens_per_s=speeds)
    used_s = (2 * 10 + two.within(600, ["retnet"], 1).tokens * (1 / 4000 + 1 / 1000)) / 2

    assert used_s == pytest.approx(600, rel=0.01)


def test_a_system_without_a_stated_speed_counts_as_the_slowest() -> None:
    assert TIMED.within(600, ["h3"], 1).tokens == TIMED.within(600, ["lstm"], 1).tokens


@pytest.mark.parametrize(
    ("preset", "budget_s", "words"),
    [
        (TIMED, 1.0, r"--budget 1s is too small: the start, a step and the scoring of all runs \(3\) take about 15"),
        (
            find_preset("paper"),
            1e6,
            "preset paper states no speeds that a budget could be shared out by: give --tokens",
        ),
    ],
)
def test_a_budget_that_cannot_be_is_refused(preset: Preset, budget_s: float, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        preset.within(budget_s, ["retnet"], 3)


def test_the_preset_follows_the_device_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"auto": "cuda", "cuda": "cuda", "cpu": "cpu"}  # a machine with a GPU
    monkeypatch.setattr("retbench.learning.presets.find_device", lambda name: SimpleNamespace(name=asked[name]))

    assert {device: find_preset("auto", device).name for device in asked} == {
        "auto": "paper-200m",
        "cuda": "paper-200m",
        "cpu": "cpu",
    }
    assert find_preset("paper", "cpu").name == "paper"


def test_unknown_presets_get_help() -> None:
    with pytest.raises(UsageError, match="unknown preset 'paper-200'; did you mean 'paper-200m'"):
        find_preset("paper-200")
    with pytest.raises(UsageError, match="an experiment has one preset, not cpu, paper"):
        find_preset("cpu,paper")
