"""An evaluation from the parent's side: records, what is not run again, and children that die. No child is started."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.evaluate import parse_shots, tables
from retbench.checkpoints import Checkpoint
from retbench.devices import find_device
from retbench.errors import UsageError
from retbench.evaluate.run import Evaluation, Job, Settings
from retbench.evaluate.tasks import find_tasks
from retbench.isolate import Outcome
from retbench.record import Record
from retbench.report.tables import to_csv, to_markdown
from retbench.store import Store

pytest.importorskip("lm_eval")

METRICS = {"documents": 4, "truncated_requests": 0, "read_tokens": 10, "plain_tokens": 30, "seconds": 2.0}


def documents(right: list[int]) -> list[dict[str, Any]]:
    return [{"doc": str(at), "target": 0, "loglikelihoods": [-1.0, -2.0], "acc": acc} for at, acc in enumerate(right)]


THREE = "boolq,copa,piqa"


class Child:
    """Answers as a child would: the jobs that it is given, up to one at which it dies."""

    def __init__(self, right: list[int], dies_at: str = "") -> None:
        self.right = right
        self.dies_at = dies_at
        self.asked: list[list[str]] = []

    def run(self, request: dict[str, Any], threads: int, timeout_s: float, listener: Any) -> Outcome:
        self.asked.append([job["task"] for job in request["jobs"]])
        for at, job in enumerate(request["jobs"]):
            if job["task"] == self.dies_at:
                return Outcome("killed", "killed by SIGKILL", [])
            listener({"at": at, "started": True})
            listener({"at": at, "scored": 8, "total": 8})
            listener({"at": at, "metrics": METRICS, "documents": documents(self.right)})
        return Outcome("ok", None, [])


@pytest.fixture
def settings() -> Settings:
    return Settings(find_device("cpu"), "fp32", 1, max_length=64, limit=None, data_dir=None, output_path=None)


def evaluation(folder: Path, settings: Settings, system: str = "retnet:a", tasks: str = THREE) -> Evaluation:
    jobs = [Job(task, 0, None, None) for task in find_tasks(tasks, None)]
    checkpoint = Checkpoint(folder, system, weights=system)
    return Evaluation.prepare(checkpoint, jobs, settings, Store(folder / "evaluate.jsonl"))


def run(what: Evaluation, child: Child) -> list[Record]:
    return what.run(what.store.read().records, Console(file=io.StringIO()), child.run)


def test_every_job_gets_a_record_and_none_is_run_again(tmp_path: Path, settings: Settings) -> None:
    what, child = evaluation(tmp_path, settings), Child([1, 1, 0, 1])
    records = run(what, child)

    assert [record.metrics["acc_percent"] for record in records] == [75.0] * 3
    assert [record.metrics["chance_percent"] for record in records] == [50.0] * 3  # of two choices
    assert [record.cell.task for record in records] == ["boolq", "copa", "piqa"]
    assert run(what, child) == records == list(what.store.read().records)
    assert child.asked == [["boolq", "copa", "piqa"]]


def test_a_child_that_dies_costs_one_task_which_is_tried_again(tmp_path: Path, settings: Settings) -> None:
    what, child = evaluation(tmp_path, settings), Child([1, 0, 0, 1], dies_at="copa")
    records = run(what, child)
    child.dies_at = ""
    again = run(what, child)

    assert [record.status for record in records] == ["ok", "killed", "ok"]
    assert child.asked == [["boolq", "copa", "piqa"], ["piqa"], ["copa"]]
    assert [record.status for record in again] == ["ok"] * 3


def test_other_weights_are_another_evaluation(tmp_path: Path, settings: Settings) -> None:
    child = Child([1, 1, 0, 1])
    for system in ("retnet:a", "retnet:b"):
        run(evaluation(tmp_path, settings, system, "copa"), child)

    assert len(child.asked) == 2


def test_a_checkpoint_that_is_refused_is_bad_input(tmp_path: Path, settings: Settings) -> None:
    def refuse(*arguments: Any, **options: Any) -> Outcome:
        return Outcome("ok", None, [{"refused": "the tokenizer has 300 tokens, the model 256"}])

    with pytest.raises(UsageError, match="--checkpoint the tokenizer has 300 tokens"):
        evaluation(tmp_path, settings).run([], Console(file=io.StringIO()), refuse)


def test_a_task_that_cannot_be_loaded_is_a_row_with_its_reason(tmp_path: Path, settings: Settings) -> None:
    what = evaluation(tmp_path, settings, tasks="boolq")

    def unloadable(request: Any, threads: int, timeout_s: float, listener: Any) -> Outcome:
        listener({"at": 0, "not_run": "no such data set"})
        return Outcome("ok", None, [])

    (record,) = what.run([], Console(file=io.StringIO()), unloadable)

    assert (record.status, record.reason) == ("skipped", "not run: no such data set")
    assert not any(note.startswith("average") for note in tables([record])[0].footnotes)
    assert "not run: no such data set" in to_markdown(tables([record]))


@pytest.fixture
def pair(tmp_path: Path, settings: Settings) -> Iterator[list[Record]]:
    right = {"retnet:a": [1] * 40, "transformer:b": [0, 1] * 20}
    yield [
        record
        for system, answers in right.items()
        for record in run(evaluation(tmp_path, settings, system), Child(answers))
    ]


def test_two_checkpoints_are_compared_beside_the_paper(pair: list[Record]) -> None:
    accuracy, differences = tables(pair)
    rows = {str(row[1].value): row for row in differences.rows}

    assert [row[7].value for row in accuracy.rows[:3]] == [62.2, 77.0, 75.4]  # the paper's RetNet, 0-shot
    assert rows["copa"][2].value == 50.0
    assert rows["copa"][5].value == pytest.approx(8.0)
    assert rows["copa"][6].value == "agrees"


def test_the_average_says_over_how_many_tasks_it_is(pair: list[Record]) -> None:
    averages = [row for row in tables(pair)[0].rows if row[1].value == "average"]

    assert [row[3].value for row in averages] == [100.0, 50.0]
    assert averages[0][6].text == "3 tasks"
    assert averages[0][7].value is None  # the paper's is over seven


def test_an_average_over_some_of_the_tasks_names_them(tmp_path: Path, settings: Settings) -> None:
    records = run(evaluation(tmp_path, settings), Child([1, 0], dies_at="copa"))
    (note,) = [note for note in tables(records)[0].footnotes if note.startswith("average")]

    assert note == "average, 0-shot, retnet:a: over boolq, piqa"


def test_a_limit_stands_in_every_format(tmp_path: Path, settings: Settings) -> None:
    records = run(evaluation(tmp_path, replace(settings, limit=2)), Child([1, 0]))
    table = tables(records)[0]

    assert "partial: the first 2 documents" in to_markdown([table])
    assert [line.rpartition(",")[2] for line in to_csv(table).splitlines()] == ["limit", "2", "2", "2", "2"]


def test_of_several_settings_the_fullest_is_shown_once(tmp_path: Path, settings: Settings) -> None:
    few = replace(settings, limit=2)
    first = run(evaluation(tmp_path, few, tasks="copa"), Child([1, 1]))
    whole = run(evaluation(tmp_path, settings, tasks="copa"), Child([1, 0, 1, 0]))
    boolq = run(evaluation(tmp_path, few, tasks="boolq"), Child([1, 0, 0, 0]))
    again = [replace(whole[0], metrics={**whole[0].metrics, "acc_percent": 25.0})]
    table = tables([*whole, *first, *boolq])[0]
    rows = {str(row[1].value): row for row in table.rows}

    assert len(rows) == len(table.rows) == 3
    assert [rows[task][3].value for task in ("copa", "boolq", "average")] == [50.0, 25.0, 37.5]
    assert [rows[task][-1].text for task in ("copa", "boolq", "average")] == ["", "2", "several"]
    assert rows["average"][6].text == "2 tasks"
    assert any(note.startswith("1 more result of these tasks and checkpoints: ") for note in table.footnotes)
    assert tables([*first, *whole, *again])[0].rows[0][3].value == 25.0, "the last of equals"
    assert "more result" not in to_markdown(tables(whole))


def test_what_ran_and_failed_is_shown_with_its_status(tmp_path: Path, settings: Settings) -> None:
    table = tables(run(evaluation(tmp_path, settings, tasks="copa"), Child([1], dies_at="copa")))[0]

    assert table.rows[0][3].text == "killed"


def test_other_weights_under_one_name_stand_apart(tmp_path: Path, settings: Settings) -> None:
    records = []
    for weights, right in (("1" * 64, [1, 1]), ("2" * 64, [0, 0])):
        what = evaluation(tmp_path, settings, tasks="copa")
        what = replace(what, checkpoint=replace(what.checkpoint, weights=weights))
        records += run(what, Child(right))
    table = tables(records)[0]

    assert [row[2].text for row in table.rows] == [f"retnet:a ({digit * 8})" for digit in "1212"]
    assert [row[3].value for row in table.rows] == [100.0, 0.0, 100.0, 0.0]
    assert {row[6].text for row in table.rows[2:]} == {"1 task"}


def test_shots_are_numbers_from_0_on() -> None:
    assert parse_shots("0, 4,0") == (0, 4)
    for text in ("", "-1", "a", "0,,1", "1000"):
        with pytest.raises(UsageError, match="--num-fewshot"):
            parse_shots(text)
