"""Tasks: which are chosen, what of their files is checked, and what lm-eval is told of them."""

import json
from pathlib import Path

import pytest

from retbench.errors import UsageError
from retbench.evaluate.tasks import TASKS, Data, definition, find_tasks, local_task, read_data

DOCUMENT = {"query": "2 + 2 =", "choices": ["4", "5"], "label": 0}


def write(folder: Path, name: str, split: str, *documents: object) -> Path:
    path = folder / f"{name}.{split}.jsonl"
    path.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    return path


def test_paper_and_substitute_stand_for_groups_of_tasks(tmp_path: Path) -> None:
    for name in ("sums", "piqa"):
        write(tmp_path, name, "validation", DOCUMENT)

    assert [task.name for task in find_tasks("paper", None)] == [task.name for task in TASKS]
    assert [task.name for task in find_tasks("substitute", tmp_path)] == ["sums"]
    assert [task.name for task in find_tasks("piqa,sums,piqa", tmp_path)] == ["piqa", "sums"]
    assert "substitute" in find_tasks("sums", tmp_path)[0].note


@pytest.mark.parametrize(
    ("names", "words"),
    [("hellaswagg", "did you mean 'hellaswag'"), ("substitute", r"takes NAME.validation.jsonl from --data-dir")],
)
def test_a_task_that_is_not_there_is_named_with_what_is(names: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        find_tasks(names, tmp_path)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"query": "a", "label": 0}', r"sums.validation.jsonl:2: field 'choices' is missing; it needs query, choices"),
        ('{"query": 1, "choices": ["a", "b"], "label": 0}', "2: field 'query' must be a string"),
        ('{"query": "a", "choices": ["a"], "label": 0}', "2: field 'choices' must be a list of at least two"),
        ('{"query": "a", "choices": ["a", "b"], "label": 2}', "2: field 'label' must be .* 0 to 1"),
        ('{"query": "a", "choices": ["a", "b"], "label": true}', "2: field 'label' must be"),
        ('{"query": ', "2: not JSON"),
        ("[1]", "2: not a JSON object"),
    ],
)
def test_a_bad_document_is_named_by_file_line_and_field(line: str, words: str, tmp_path: Path) -> None:
    with write(tmp_path, "sums", "validation", DOCUMENT).open("a") as file:
        file.write(line + "\n")

    with pytest.raises(UsageError, match=words):
        read_data(local_task("sums"), tmp_path, shots=0)


def test_too_few_examples_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "sums", "validation", DOCUMENT)
    write(tmp_path, "sums", "train", *[DOCUMENT] * 3)

    with pytest.raises(UsageError, match=r"--num-fewshot 4: sums has a pool of 3 examples"):
        read_data(local_task("sums"), tmp_path, shots=4)


def test_without_a_file_a_task_cannot_be_run_and_says_which(tmp_path: Path) -> None:
    write(tmp_path, "sums", "validation", DOCUMENT)
    task = local_task("sums")

    assert isinstance(read_data(task, tmp_path, shots=0), Data)
    assert read_data(task, tmp_path, shots=1) == f"there is no file {tmp_path / 'sums.train.jsonl'}"


def test_other_data_have_another_digest(tmp_path: Path) -> None:
    task, digests = local_task("sums"), []
    for query in ("one", "two", "one"):
        write(tmp_path, "sums", "validation", {**DOCUMENT, "query": query})
        data = read_data(task, tmp_path, shots=0)
        assert isinstance(data, Data)
        digests.append(data.digest)

    assert digests[0] == digests[2] != digests[1]


def test_a_stock_task_keeps_its_definition_and_gets_local_files(tmp_path: Path) -> None:
    (boolq,) = find_tasks("boolq", None)
    data = Data({"validation": "/data/boolq.validation.jsonl"}, {"validation": 1}, "0")
    online, offline = (definition(boolq, some, Path("/lm_eval/tasks"), tmp_path) for some in (None, data))

    assert online == {"task": "boolq", "include": "/lm_eval/tasks/super_glue/boolq/default.yaml"}
    assert offline["dataset_path"] == "json"
    assert offline["dataset_kwargs"]["data_files"] == data.files
    assert offline["training_split"] is None
    assert "doc_to_text" not in offline
