"""Steps in a series are found where they are and nowhere else; the history is told relative to the reference."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retbench import cli
from retbench.errors import UsageError
from retbench.gate_run import Process, Side
from retbench.history import histories, steps
from retbench.record import Record
from retbench.report.figures.history import draw
from retbench.report.history_table import history_table
from retbench.revision import Version
from retbench.spec import Cell
from tests.report.factory import ENVIRONMENT

CELL = Cell("retnet", "tiny", "decode", seq_len=16, batch_size=1, dtype="fp32", device="cpu", threads=1)


def noisy(levels: list[float], seed: int = 0, noise: float = 0.02) -> list[float]:
    generator = np.random.default_rng(seed)
    return [float(level * generator.lognormal(0, noise)) for level in levels]


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([1.0] * 8 + [1.2] * 8, [8]),
        ([1.2] * 8 + [1.0] * 8, [8]),
        ([1.0] * 8 + [1.2] * 8 + [1.5] * 8, [8, 16]),
        ([1.0] * 8 + [1.3] * 8 + [1.0] * 8, [8, 16]),
        ([1.0] * 20 + [1.2] * 20 + [1.21] * 5, [20]),
        ([1.0] * 20, []),
        ([1.0] * 8 + [1.02] * 8, []),
        ([1.0] * 10 + [3.0] + [1.0] * 10, []),
        ([1.0, 2.0, 1.0, 2.0], []),
        ([], []),
    ],
)
def test_steps_are_found_where_they_are(levels: list[float], expected: list[int]) -> None:
    assert steps(noisy(levels)) == expected


def test_noise_alone_hardly_ever_makes_a_step() -> None:
    assert sum(bool(steps(noisy([1.0] * 16, seed, noise=0.15))) for seed in range(30)) <= 2


@pytest.mark.parametrize("unit", [1e-3, 7.0])
def test_the_unit_does_not_matter(unit: float) -> None:
    values = noisy([1.0] * 6 + [1.3] * 6, noise=0.05)

    assert steps(values) == steps([unit * value for value in values])


def run(at: int, factor: float = 1.0, machine_factor: float = 1.0, **other: object) -> Record:
    """The ``at``-th run, on a machine whose speed changes all the time."""
    side = Side(notes={"reference": 1})
    for process in range(6):
        work, reference = 1e6 * (1 + process / 1000) * factor * machine_factor, 5e6 * machine_factor
        side.processes.append(Process([round(work)] * 4, [round(reference)] * 2))
    version = Version("head", Path(), "", {**ENVIRONMENT, "code": str(at), "fingerprint": "f", "commit": f"{at:012}"})
    return replace(side.record("gate", CELL, version), created_at=f"2026-01-{at + 1:02}T00:00:00Z", **other)  # type: ignore[arg-type]


def written(tmp_path: Path, *records: Record) -> Path:
    path = tmp_path / "results" / "lab" / "gate.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(record.to_json() + "\n" for record in records))
    return tmp_path / "results"


def drifting(count: int = 12, step: int = 6) -> list[Record]:
    generator = np.random.default_rng(0)
    return [run(at, 1.3 if at >= step else 1.0, float(generator.lognormal(0, 0.5))) for at in range(count)]


def test_a_step_shows_although_the_machine_drifts(tmp_path: Path) -> None:
    (found,), problems = histories(written(tmp_path, *drifting()))

    assert found.steps == (6,)
    assert found.change(6) == pytest.approx(1.3, rel=1e-3)
    assert (found.machine, found.runs[0].commit, problems) == ("lab-2c", "000000000000", ())
    assert found.runs[0].relative.value == pytest.approx(0.2, rel=0.01)


def test_runs_are_told_in_the_order_of_their_time(tmp_path: Path) -> None:
    (found,), _ = histories(written(tmp_path, run(2), run(0), run(1)))

    assert [run.commit[-1] for run in found.runs] == ["0", "1", "2"]


def test_cells_machines_and_references_are_apart(tmp_path: Path) -> None:
    other_cell = run(1, cell=replace(CELL, workload="prefill"))
    other_machine = replace(run(2), environment={**run(2).environment, "machine": "other"})
    other_reference = replace(run(3), notes={**run(3).notes, "reference": 2})

    found, _ = histories(written(tmp_path, run(0), other_cell, other_machine, other_reference))

    assert [len(history.runs) for history in found] == [1, 1, 1, 1]


def test_failed_runs_are_left_out_and_bad_lines_are_told(tmp_path: Path) -> None:
    folder = written(tmp_path, run(0), run(1, status="oom", reason="too large"))
    with (folder / "lab" / "gate.jsonl").open("a") as file:
        file.write('{"schema_version": 9}\n')

    (found,), problems = histories(folder)

    assert len(found.runs) == 1
    assert any("gate.jsonl:3: skipped" in problem for problem in problems)


def test_nothing_stored_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no runs of a gate"):
        histories(tmp_path)


def test_the_table_marks_the_step(tmp_path: Path) -> None:
    table = history_table(*histories(written(tmp_path, *drifting())))

    marks = [row[-1].text for row in table.rows]
    assert marks == ["", "", "", "", "", "", "+30%", "", "", "", "", ""]


def test_the_figure_has_a_panel_a_cell_and_names_the_step(tmp_path: Path) -> None:
    found, _ = histories(written(tmp_path, *drifting(), run(1, cell=replace(CELL, workload="prefill"))))

    panels = draw(found).axes

    assert [panel.get_title(loc="left").split()[0] for panel in panels] == ["decode", "prefill"]
    assert [text.get_text() for text in panels[0].texts] == ["+30%"]


def test_the_command_shows_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(tmp_path, *drifting())
    monkeypatch.setattr(sys, "argv", ["retbench", "history", str(folder), "--out", str(tmp_path), "--format", "csv"])

    with pytest.raises(SystemExit) as ended:
        cli.main()

    assert not ended.value.code
    assert capsys.readouterr().out.count("\n") == 13
    names = sorted(file.name for file in (tmp_path / "reports" / "history").iterdir())
    assert names == ["history.pdf", "history.png", "history.svg"]
