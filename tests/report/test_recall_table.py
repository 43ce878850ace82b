"""The table and figure of recall: means over seeds, chance, what failed, a warning where attention has not learnt."""

from dataclasses import replace
from typing import Any

from retbench.record import Record
from retbench.report.figures.recall import draw
from retbench.report.recall_table import holds, recall_table
from retbench.spec import Cell, Recall
from tests.report.factory import record

SETTING = Recall(pairs=(4, 8, 16), tokens=3072, step_tokens=3072, learning_rate=3e-3, warm_up_share=0.1)
CELL = Cell("retnet", "tiny", "recall", 48, 64, "fp32", "cpu", threads=1, vocab_size=256, recall=SETTING)


def answered(system: str, seed: int, *shares: float, cell: Cell = CELL) -> Record:
    metrics: dict[str, Any] = {f"accuracy_at_{pairs}": share for pairs, share in zip((4, 8, 16), shares, strict=True)}
    metrics |= {"state_bytes": 2048, "parameters": 400_000}
    return record(replace(cell, system=system, seed=seed), metrics=metrics, notes={"test_queries": 8192})


RECORDS = [
    answered("transformer-flash", 0, 1.0, 1.0, 0.96),
    answered("transformer-flash", 1, 1.0, 1.0, 0.98),
    answered("retnet", 0, 1.0, 0.9, 0.4),
    answered("retnet", 1, 1.0, 0.9, 0.5),
    record(replace(CELL, system="lstm"), "oom"),
]


def texts(records: list[Record]) -> list[list[str]]:
    table = recall_table(records)
    return [[row[at].text for at in table.shown("terminal")] for row in table.rows]


def test_a_row_is_the_mean_over_seeds_and_the_last_one_chance() -> None:
    attention, retnet, lstm, chance = texts(RECORDS)

    assert attention == ["transformer-flash", "1.00 ±0.00", "1.00 ±0.00", "0.97 ±0.01", "16", "2 KiB"]
    assert retnet == ["retnet", "1.00 ±0.00", "0.90 ±0.00", "0.45 ±0.05", "8", "2 KiB"]
    assert lstm[:2] == ["lstm", "oom"]
    assert chance[:4] == ["chance, 1 / pairs", "0.25", "0.12", "0.06"]


def test_one_seed_has_no_spread() -> None:
    assert texts(RECORDS[:1])[0][1] == "1.00"


def test_more_pairs_do_not_count_after_a_gap() -> None:
    assert holds({4: [1.0], 8: [0.5], 16: [0.95]}) == 4
    assert holds({4: [0.5]}) is None


def test_attention_that_has_not_learnt_is_warned_of() -> None:
    weak = [answered("transformer-flash", 0, 1.0, 1.0, 0.5), *RECORDS[2:]]

    assert any("UNDERTRAINED" in note for note in recall_table(weak).footnotes)
    assert not any("UNDERTRAINED" in note for note in recall_table(RECORDS).footnotes)


def test_systems_that_guess_among_the_fewest_pairs_are_named() -> None:
    guessing = [*RECORDS, answered("linear-transformer", 0, 0.26, 0.12, 0.06)]
    (note,) = [note for note in recall_table(guessing).footnotes if "guessing" in note]

    assert note.startswith("linear-transformer: ")
    assert not any("guessing" in note for note in recall_table(RECORDS).footnotes)


def test_the_setting_of_most_tokens_is_shown() -> None:
    longer = replace(CELL, recall=replace(SETTING, tokens=2 * 3072))
    mixed = [answered("retnet", 0, 0.5, 0.5, 0.5, cell=longer), *RECORDS]

    assert [row[0] for row in texts(mixed)] == ["retnet", "chance, 1 / pairs"]


def test_the_figure_has_a_line_a_system_and_one_of_chance() -> None:
    (ax,) = draw(RECORDS).axes
    legend = ax.get_legend()

    assert legend is not None
    assert {text.get_text() for text in legend.get_texts()} == {"transformer-flash", "retnet", "chance"}


def test_without_records_the_table_says_so() -> None:
    assert recall_table([]).footnotes == ("no records",)
