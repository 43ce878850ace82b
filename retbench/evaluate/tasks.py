"""The tasks of Table 3 and local ones: which files they read, and whether these hold what they must."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retbench.errors import UsageError
from retbench.registry import choose

PAPER, SUBSTITUTE = "paper", "substitute"  # as --tasks: those of Table 3, and all local ones


@dataclass(frozen=True)
class Task:
    """A multiple-choice task: what lm-eval calls it, its splits and the fields that its documents must have."""

    name: str
    fields: tuple[str, ...]
    split: str = "validation"  # whose documents are scored
    shots_split: str | None = "train"  # None: examples come from the scored split, never the document itself
    stock: str | None = None  # lm-eval's own definition, whose prompt and metric are kept; None: a local task
    label: str = ""  # the paper's word
    note: str = ""

    @property
    def splits(self) -> tuple[str, ...]:
        return (self.split,) if self.shots_split is None else (self.split, self.shots_split)

    def file(self, folder: Path, split: str) -> Path:
        return folder / f"{self.name}.{split}.jsonl"


STORY = ("input_sentence_1", "input_sentence_2", "input_sentence_3", "input_sentence_4")
TASKS = (
    Task(
        "hellaswag",
        ("activity_label", "ctx_a", "ctx_b", "endings", "label"),
        stock="hellaswag/hellaswag.yaml",
        label="HellaSwag",
    ),
    Task("boolq", ("passage", "question", "label"), stock="super_glue/boolq/default.yaml", label="BoolQ"),
    Task(
        "copa",
        ("premise", "question", "choice1", "choice2", "label"),
        stock="super_glue/copa/default.yaml",
        label="COPA",
    ),
    Task("piqa", ("goal", "sol1", "sol2", "label"), stock="piqa/piqa.yaml", label="PIQA"),
    Task(
        "wsc273",
        ("text", "options", "pronoun", "pronoun_loc", "label"),
        split="test",
        shots_split=None,
        stock="wsc273/default.yaml",
        label="Winograd",
    ),
    Task(
        "winogrande",
        ("sentence", "option1", "option2", "answer"),
        stock="winogrande/default.yaml",
        label="Winogrande",
    ),
    Task(
        "xstorycloze_en",
        (*STORY, "sentence_quiz1", "sentence_quiz2", "answer_right_ending"),
        split="eval",
        stock="xstorycloze/default_en.yaml",
        label="StoryCloze",
        note="xstorycloze_en is a substitute for StoryCloze of 2016, which is no longer to be had",
    ),
)
LOCAL = ("query", "choices", "label")
CLOZE = Task(
    "cloze",
    LOCAL,
    label="cloze",
    note="cloze is none of the paper's tasks: which of four continuations is the document's own; its intervals take"
    " questions of one document for independent",
)


@dataclass(frozen=True)
class Data:
    """What a task reads: its files by split, how many documents each holds, and a hash of them all."""

    files: Mapping[str, str]
    counts: Mapping[str, int]
    digest: str


def find_tasks(text: str, folder: Path | None) -> list[Task]:
    """The tasks of a comma-separated list; raises UsageError for an unknown one."""
    stock, local = {task.name: task for task in TASKS}, {task.name: task for task in _local_tasks(folder)}
    built = {CLOZE.name: CLOZE}
    if SUBSTITUTE in text.split(",") and not local:
        where = f"{folder} has no such file" if folder else "none was given"
        raise UsageError(f"--tasks {SUBSTITUTE} takes NAME.validation.jsonl from --data-dir: {where}")
    groups = {PAPER: list(stock), SUBSTITUTE: list(local)}
    chosen = choose(text, [*groups, *stock, *built, *local], "task")
    names = dict.fromkeys(name for one in chosen for name in groups.get(one, [one]))
    return [(stock | built | local)[name] for name in names]


def read_data(task: Task, folder: Path, shots: int) -> Data | str:
    """The files of a task once they are checked, or why it cannot be run; raises UsageError for bad documents."""
    splits = task.splits if shots or task.shots_split is None else (task.split,)
    files = {split: task.file(folder, split) for split in splits}
    missing = [str(file) for file in files.values() if not file.is_file()]
    if missing:
        return f"there is no file {missing[0]}"
    counts = {split: sum(1 for _ in _documents(task, file)) for split, file in files.items()}
    pool = counts.get(task.shots_split or "", counts[task.split] - 1)
    if shots > pool:
        raise UsageError(f"--num-fewshot {shots}: {task.name} has a pool of {pool} examples in {folder}")
    digest = hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files.values()))
    return Data({split: str(file.resolve()) for split, file in files.items()}, counts, digest.hexdigest())


def definition(task: Task, data: Data | None, stock_folder: Path, cache: Path) -> dict[str, Any]:
    """What lm-eval reads of a task: its own definition or, in its words, ours; files stand in for downloads."""
    found: dict[str, Any] = {"task": task.name}
    if task.stock:
        found["include"] = str(stock_folder / task.stock)
    else:
        metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
        found |= {
            "output_type": "multiple_choice",
            "validation_split": task.split,
            "training_split": task.shots_split,
            "doc_to_text": "{{query}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "label",
            "metric_list": metrics,
            "metadata": {"version": 1.0},
        }
    if data:
        files = {"data_files": dict(data.files), "cache_dir": str(cache)}
        found |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": files}
        if task.shots_split not in data.files:
            found |= {"training_split": None}
    return found


def find_task(name: str) -> Task:
    """The task of a record or request: one of Table 3's, cloze, or a local one."""
    return {task.name: task for task in (*TASKS, CLOZE)}.get(name) or local_task(name)


def local_task(name: str) -> Task:
    """One that local files define, in the format of query, choices and label."""
    return Task(name, LOCAL, label=name, note=f"{name} is a substitute: none of the paper's tasks")


def _local_tasks(folder: Path | None) -> Iterator[Task]:
    if folder is None:
        return
    if not folder.is_dir():
        raise UsageError(f"--data-dir {folder}: there is no such folder")
    known = {task.name for task in TASKS}
    for file in sorted(folder.glob("*.validation.jsonl")):
        name = file.name.removesuffix(".validation.jsonl")
        if name == CLOZE.name:
            raise UsageError(f"{file}: the task {name} is built of --corpus; a local one needs another name")
        if name not in known:
            yield local_task(name)


def _documents(task: Task, file: Path) -> Iterator[dict[str, Any]]:
    """The documents of a file; raises UsageError with file, line and field where something is wrong."""
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                document = json.loads(line)
            except ValueError as error:
                raise UsageError(f"{file}:{number}: not JSON: {error}") from error
            if not isinstance(document, dict):
                raise UsageError(f"{file}:{number}: not a JSON object with the fields {', '.join(task.fields)}")
            missing = [field for field in task.fields if field not in document]
            if missing:
                raise UsageError(f"{file}:{number}: field {missing[0]!r} is missing; it needs {', '.join(task.fields)}")
            if task.stock is None:
                _check_choices(document, f"{file}:{number}")
            yield document


def _check_choices(document: dict[str, Any], where: str) -> None:
    query, choices, label = (document[field] for field in LOCAL)
    if not isinstance(query, str):
        raise UsageError(f"{where}: field 'query' must be a string")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(choice, str) for choice in choices):
        raise UsageError(f"{where}: field 'choices' must be a list of at least two strings")
    if type(label) is not int or not 0 <= label < len(choices):
        raise UsageError(f"{where}: field 'label' must be the place of the right choice, 0 to {len(choices) - 1}")
