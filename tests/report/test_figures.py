"""The figures: complete, deterministic, without warnings (warnings are errors in the tests)."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from retbench.record import Record
from retbench.report import figures
from retbench.report.figures import figure1, figure6, save
from retbench.report.paper import inference_paper
from retbench.report.style import COLUMN_WIDTH, PAGE_WIDTH
from tests.report.factory import SYSTEMS, cell, failed, record, sweep

PAPER = inference_paper()
DRAW: list[Callable[..., Figure]] = [figure1.draw, figure6.draw]


def words(figure: Figure) -> str:
    """All text of a figure."""
    return "\n".join(text.get_text() for text in figure.findobj(Text))  # type: ignore[attr-defined]


def failures() -> list[Record]:
    dead = [failed(cell("transformer"), "oom", "too large"), failed(cell("transformer-flash"), "timeout", "too slow")]
    return [one for one in sweep() if (one.cell.system, one.cell.batch_size) not in
            {("transformer", 8), ("transformer-flash", 8)}] + dead  # fmt: skip


@pytest.mark.parametrize("draw", DRAW)
@pytest.mark.parametrize("width", [COLUMN_WIDTH, PAGE_WIDTH])
def test_a_figure_names_every_system_with_the_same_bytes_each_time(
    tmp_path: Path, draw: Callable[..., Figure], width: float
) -> None:
    systems = (*SYSTEMS, "rwkv", "brand-new")
    paths = [save(draw(sweep(systems), PAPER, width), tmp_path / name, "figure") for name in "ab"]
    drawn = words(draw(sweep(systems), PAPER))

    assert [path.name for path in paths[0]] == ["figure.png", "figure.svg", "figure.pdf"]
    for first, second in zip(*paths, strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert all(system in drawn for system in systems)
    assert "dc:date" not in paths[0][1].read_text(encoding="utf-8")
    assert b"/CreationDate" not in paths[0][2].read_bytes()


@pytest.mark.parametrize("draw", DRAW)
def test_failed_cells_are_marked_with_their_status(draw: Callable[..., Figure]) -> None:
    drawn = words(draw(failures(), PAPER))

    assert drawn.count("× oom") == 3, "once in each panel"
    assert drawn.count("× timeout") == 3


@pytest.mark.parametrize("draw", DRAW)
@pytest.mark.parametrize(
    "records",
    [
        sweep(lengths=(64,), batches=(1,)),
        sweep(("transformer",)),
        sweep(("retnet", "transformer"), lengths=(1, 100_000)),
        [record()],
        [record(metrics={"tpot_ms": 3.0})],
        [failed(cell(system), "skipped", "no room") for system in SYSTEMS],
        [replace(one, environment={}) for one in failures()],
        sweep(("retnet", "a $\\frac{x$ | name_^")),
    ],
)
def test_odd_records_are_drawn_and_saved_without_a_warning(
    tmp_path: Path, draw: Callable[..., Figure], records: list[Record]
) -> None:
    paths = save(draw(records, PAPER), tmp_path, "figure")

    assert all(path.stat().st_size > 1000 for path in paths)


@pytest.mark.parametrize("draw", DRAW)
def test_nothing_to_draw_is_refused(draw: Callable[..., Figure]) -> None:
    with pytest.raises(ValueError, match="no records to draw"):
        draw([], PAPER)


@pytest.mark.parametrize("draw", DRAW)
def test_the_conditions_of_both_sides_stand_below(draw: Callable[..., Figure]) -> None:
    below = " ".join(words(draw(sweep(), PAPER)).split())

    assert "bf16, 2 threads" in below
    assert PAPER.setting.words in below


def test_figure6_puts_the_papers_transformer_on_ours_at_the_largest_common_length() -> None:
    figure = figure6.draw(sweep(), PAPER)
    left, right = next((ax, twin) for ax in figure.axes for twin in figure.axes
                       if twin.get_ylabel() == "paper: GB" and ax.get_title(loc="left").startswith("(a)"))  # fmt: skip
    scale = right.get_ylim()[1] / left.get_ylim()[1]
    theirs = PAPER.panels["memory"].curve("transformer")
    ours = next(one for one in sweep() if one.cell.system == "transformer" and one.cell.batch_size == 8)

    assert theirs is not None
    assert ours.metrics["peak_memory_bytes"] / 2**30 * scale == pytest.approx(theirs.at(8192))


def test_figure6_says_where_the_paper_has_no_points() -> None:
    below = " ".join(words(figure6.draw(sweep(lengths=(512,)), PAPER)).split())

    assert "The paper has no points in the range of (a), (b)." in below
    assert "paper: GB" not in below


def test_figure6_prefers_the_cell_whose_length_a_depth_is() -> None:
    records = sweep(("retnet",), lengths=(2048, 8192), batches=(8,))
    shorter = replace(records[0], contexts=[{**point, "tpot_ms": 1.0} for point in records[0].contexts])
    figure = figure6.draw([shorter, records[1]], PAPER)
    throughput = next(ax for ax in figure.axes if ax.get_title(loc="left").startswith("(b)"))
    line = next(line for line in throughput.get_lines() if len(line.get_xdata()) > 4)
    points = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))

    assert points[2048] == pytest.approx(8000)
    assert points[8192] == pytest.approx(records[1].metrics["tokens_per_s"])


def test_figure1_shows_retnets_advantage_and_the_papers_beside() -> None:
    drawn = words(figure1.draw(sweep(), PAPER))

    assert "12.0×" in drawn
    assert all(f"{claim.ratio.value:g}×" in drawn for claim in PAPER.claims.values())


def test_saving_over_a_file_replaces_it_and_leaves_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "figure1.svg").write_text("old", encoding="utf-8")
    save(figure1.draw(sweep(), PAPER), tmp_path, "figure1")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure1.pdf", "figure1.png", "figure1.svg"]
    assert re.search("<svg", (tmp_path / "figure1.svg").read_text(encoding="utf-8"))


def test_a_figure_that_fails_to_save_leaves_the_old_one_and_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr(figures, "_print", full)
    (tmp_path / "figure1.png").write_text("old", encoding="utf-8")
    with pytest.raises(RuntimeError):
        save(Figure(), tmp_path, "figure1")

    assert [path.name for path in tmp_path.iterdir()] == ["figure1.png"]
    assert (tmp_path / "figure1.png").read_text(encoding="utf-8") == "old"
