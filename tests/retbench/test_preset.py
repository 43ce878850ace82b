"""Presets of reproduce: those that ship, those of users, and every way to get one wrong."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import typer

from retbench.cli import make_app
from retbench.errors import UsageError
from retbench.preset import Command, find_preset, presets

STEP = {"name": '"one"', "command": '"training-cost --fit"', "takes": '"1m"'}
MOST_S = {"cpu": 90 * 60, "smoke": 5 * 60}


@pytest.fixture(scope="module")
def verbs() -> Mapping[str, Command]:
    found: Mapping[str, Command] = typer.main.get_command(make_app()).commands  # type: ignore[attr-defined]
    return found


def step(**changes: str | None) -> str:
    fields = {name: value for name, value in {**STEP, **changes}.items() if value is not None}
    return "\n".join(["[[steps]]", *(f"{name} = {value}" for name, value in fields.items()), ""])


def write(folder: Path, *steps: str, head: str = 'summary = "a test"\n') -> str:
    path = folder / "mine.toml"
    path.write_text(head + "".join(steps))
    return str(path)


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_right_and_fits_its_time(name: str, verbs: Mapping[str, Command]) -> None:
    found = find_preset(name, verbs)

    assert found.summary
    assert found.takes_s <= MOST_S.get(name, math.inf)


def test_a_file_of_the_user_is_read(tmp_path: Path, verbs: Mapping[str, Command]) -> None:
    path = write(
        tmp_path, step(), step(name='"two"', command='"inference --seq-len 1k"', takes='"3m"', budget='"150s"')
    )

    found = find_preset(path, verbs)

    assert (found.name, found.summary, found.takes_s) == ("mine", "a test", 240)
    assert [one.name for one in found.steps] == ["one", "two"]
    assert [one.arguments for one in found.steps] == [
        ["training-cost", "--fit"],
        ["inference", "--seq-len", "1k", "--budget", "150s"],
    ]


def test_a_total_scales_the_budgets_and_leaves_the_rest(tmp_path: Path, verbs: Mapping[str, Command]) -> None:
    path = write(tmp_path, step(), step(name='"two"', command='"inference"', takes='"3m"', budget='"2m"'))

    scaled = find_preset(path, verbs).scaled(180)

    assert [one.takes_s for one in scaled.steps] == [60, 120]
    assert scaled.steps[1].arguments == ["inference", "--budget", "60s"]


def test_a_total_without_time_for_a_budget_is_refused_with_the_least(
    tmp_path: Path, verbs: Mapping[str, Command]
) -> None:
    two = [
        step(name=f'"{name}"', command='"inference"', takes='"1m"', budget=f'"{s}s"')
        for name, s in (("a", 10), ("b", 40))
    ]
    found = find_preset(write(tmp_path, *two), verbs)

    with pytest.raises(UsageError, match=r"--budget 1m10s is too short for mine: at least 1m15s"):
        found.scaled(70)
    assert found.scaled(75).steps[0].budget_s == 1


def test_a_total_for_steps_without_budgets_is_refused(tmp_path: Path, verbs: Mapping[str, Command]) -> None:
    found = find_preset(write(tmp_path, step()), verbs)

    with pytest.raises(UsageError, match="changes nothing: no step of mine that is to run has a budget"):
        found.scaled(70)


def test_an_unknown_preset_is_told_with_those_there_are(verbs: Mapping[str, Command]) -> None:
    with pytest.raises(UsageError, match=r"unknown preset 'smoek'; did you mean 'smoke'\? presets are cpu, smoke, or"):
        find_preset("smoek", verbs)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path, verbs: Mapping[str, Command]) -> None:
    with pytest.raises(UsageError, match=r"preset .*none\.toml cannot be read: No such file or directory"):
        find_preset(str(tmp_path / "none.toml"), verbs)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("summary = ", "cannot be read: Invalid value"),
        ('summary = "a"', "steps is missing; it must be tables"),
        ('summary = "a"\nsteps = []', "summary must be text, and steps tables"),
        ('summary = 1\n[[steps]]\nname = "a"', "summary must be text, and steps tables"),
        ('summary = "a"\nsteps = ["inference"]', "step 1 is no table: write [[steps]]"),
        ('summary = "a"\nstep = 1', "unknown key 'step'; did you mean 'steps'? keys are summary, steps"),
    ],
)
def test_a_file_of_another_shape_is_refused(text: str, said: str, tmp_path: Path, verbs: Mapping[str, Command]) -> None:
    with pytest.raises(UsageError) as caught:
        find_preset(write(tmp_path, head=text), verbs)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": None}, "step 1: name is missing; it must be words of small letters"),
        ({"command": None}, "step 1: command is missing; it must be a verb of retbench"),
        ({"takes": None}, "step 1: takes is missing; it must be a duration"),
        ({"name": '"Figure 6"'}, "step 1: name is 'Figure 6'; it must be words of small letters"),
        ({"takes": "90"}, "step 1: takes is 90; it must be a duration on two cores"),
        ({"minutes": '"1m"'}, "step 1: unknown key 'minutes'; keys are name, command, takes, budget, needs"),
        ({"needs": '"gpu"'}, "step 1 (one): needs is 'gpu'; it must be packages of retbench's extras"),
        ({"takes": '"1 minute"'}, "step 1 (one): takes '1 minute' is not a duration such as 3m"),
        ({"budget": '"soon"'}, "step 1 (one): budget 'soon' is not a duration such as 3m"),
        ({"budget": '"2m"'}, "step 1 (one): budget is 2m, longer than the 1m that the step takes"),
        ({"budget": '"1m"'}, "step 1 (one): training-cost: No such option: --budget"),
        ({"command": '"inference --budget 1m"'}, "step 1 (one): --budget is no argument here: write budget = ..."),
        ({"command": '"inference \'"'}, "step 1 (one): command cannot be split into words: No closing quotation"),
        ({"command": '""'}, "step 1 (one): unknown verb ''; verbs are "),
        ({"command": '"inferense"'}, "step 1 (one): unknown verb 'inferense'; did you mean 'inference'? verbs are "),
        ({"command": '"peers uninstall"'}, "step 1 (one): unknown verb 'uninstall'; did you mean 'install'?"),
        ({"command": '"inference --seqlen 1k"'}, "step 1 (one): inference: No such option: --seqlen"),
        ({"command": '"inference 8192"'}, "step 1 (one): inference: Got unexpected extra argument"),
        ({"command": '"inference --threads two"'}, "step 1 (one): inference: Invalid value for '--threads'"),
        ({"command": '"inference --help"'}, "step 1 (one): inference: its arguments end it before it does anything"),
    ],
)
def test_a_wrong_step_is_named_with_what_is_allowed(
    changes: dict[str, str | None], said: str, tmp_path: Path, verbs: Mapping[str, Command]
) -> None:
    path = write(tmp_path, step(**changes))

    with pytest.raises(UsageError) as caught:
        find_preset(path, verbs)
    assert str(caught.value).startswith(f"preset {path}, {said}")


def test_two_steps_of_one_name_are_refused(tmp_path: Path, verbs: Mapping[str, Command]) -> None:
    with pytest.raises(UsageError, match="two steps are called one"):
        find_preset(write(tmp_path, step(), step()), verbs)
