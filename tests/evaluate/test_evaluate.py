"""The command from end to end: stock tasks from local files, the network blocked; lm-eval's own files; bad input."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from models import build
from models.checkpoint import save_checkpoint
from retbench.environment import ROOT
from retbench.record import Record
from tests.models.helpers import VOCAB_SIZE

pytest.importorskip("lm_eval")

from lm_eval.utils import make_table

STORY = {f"input_sentence_{n}": f"Sentence {n}." for n in range(1, 5)}
PRONOUN = "The cat sat on the mat because it was warm."
STOCK: Mapping[str, tuple[str, dict[str, Any]]] = {  # a document of each, as its data set has them
    "hellaswag": (
        "validation",
        {
            "activity_label": "Cooking",
            "ctx_a": "A man cuts bread.",
            "ctx_b": "he",
            "endings": ["eats.", "runs.", "sings.", "flies."],
            "label": "0",
        },
    ),
    "boolq": ("validation", {"passage": "Cats are animals.", "question": "are cats animals", "label": 1}),
    "copa": (
        "validation",
        {"premise": "It rained.", "question": "effect", "choice1": "It got wet.", "choice2": "It burned.", "label": 0},
    ),
    "piqa": ("validation", {"goal": "Cut bread", "sol1": "use a knife", "sol2": "use a sock", "label": 0}),
    "wsc273": (
        "test",
        {
            "text": PRONOUN,
            "options": ["The cat", "The mat"],
            "pronoun": "it",
            "pronoun_loc": PRONOUN.index(" it ") + 1,
            "label": 1,
        },
    ),
    "winogrande": (
        "validation",
        {"sentence": "Ann told Bea that _ won.", "option1": "Ann", "option2": "Bea", "answer": "2"},
    ),
    "xstorycloze_en": (
        "eval",
        {**STORY, "sentence_quiz1": "The end.", "sentence_quiz2": "No.", "answer_right_ending": 1},
    ),
}
BLOCKED = """
import os, pathlib, socket
pathlib.Path({path!r} + ".blocked").open("a").write(str(os.getpid()) + chr(10))
def refuse(*arguments, **options):
    pathlib.Path({path!r}).open("a").write(repr(arguments) + chr(10))
    raise OSError("the network is blocked")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save_checkpoint(build("retnet", "tiny", vocab_size=256), folder)
    return folder


def evaluate(folder: Path, *arguments: str, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "retbench", "evaluate", "--threads", "1", "--dtype", "fp32", *arguments]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join((str(path), str(ROOT)))}
    command += ["--out", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=variables, cwd=folder)


def records(folder: Path) -> list[Record]:
    return [
        Record.from_json(line)
        for path in folder.glob("results/*/evaluate.jsonl")
        for line in path.read_text().splitlines()
    ]


def write(folder: Path, name: str, split: str, *documents: object) -> None:
    lines = "".join(json.dumps(document) + "\n" for document in documents)
    (folder / f"{name}.{split}.jsonl").write_text(lines, encoding="utf-8")


def stock_data(folder: Path) -> Path:
    """All but COPA, three documents in each split."""
    folder.mkdir()
    for name, (split, document) in STOCK.items():
        if name != "copa":
            for part in {split, "train"} if name != "wsc273" else {split}:
                write(folder, name, part, *({**document, "number": f"{part} {n}"} for n in range(3)))
    return folder


@pytest.mark.slow
def test_the_papers_tasks_run_from_local_files_without_any_network(checkpoint: Path, tmp_path: Path) -> None:
    attempts = tmp_path / "attempts"
    (tmp_path / "sitecustomize.py").write_text(BLOCKED.format(path=str(attempts)))
    data = stock_data(tmp_path / "data")
    arguments = ["--checkpoint", str(checkpoint), "--data-dir", str(data), "--num-fewshot", "0,2"]
    done = evaluate(tmp_path, *arguments, path=tmp_path)
    again = evaluate(tmp_path, *arguments)
    found = records(tmp_path)
    by_task = {str(record.cell.task): record for record in found if record.cell.num_fewshot == 0}

    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "attempts.blocked").read_text().splitlines()) >= 2  # the command and its child
    assert not attempts.exists()
    assert [record.status for record in found[:14]].count("ok") == 12
    assert by_task.keys() == STOCK.keys()
    assert by_task["copa"].reason == f"not run: there is no file {data / 'copa.validation.jsonl'}"
    assert len(by_task["hellaswag"].notes["documents"][0]["loglikelihoods"]) == 4
    assert "xstorycloze_en is a substitute for StoryCloze" in done.stdout
    assert "6 tasks" in done.stdout
    assert again.stderr.count("(stored)") == 12


@pytest.mark.slow
def test_lm_evals_own_files_hold_its_results_and_samples(checkpoint: Path, tmp_path: Path) -> None:
    data = stock_data(tmp_path / "data")
    arguments = ["--tasks", "boolq", "--data-dir", str(data), "--num-fewshot", "0", "--limit", "2"]
    done = evaluate(tmp_path, "--checkpoint", str(checkpoint), *arguments, "--output-path", str(tmp_path / "lm"))
    (results,) = (json.loads(path.read_text()) for path in tmp_path.glob("lm/tiny/results_*.json"))
    (samples,) = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in tmp_path.glob("lm/tiny/samples_boolq_*.jsonl")
    )
    (record,) = records(tmp_path)

    assert results["results"]["boolq"]["acc,none"] * 100 == record.metrics["acc_percent"]
    assert results["n-samples"]["boolq"] == {"original": 3, "effective": 2}
    assert results["results"]["boolq"]["acc_stderr,none"] >= 0
    assert results["config"]["limit"] == record.cell.limit == 2
    assert samples[0]["arguments"]["gen_args_0"] == {
        "arg_0": "Cats are animals.\nQuestion: are cats animals?\nAnswer:",
        "arg_1": " no",
    }
    assert "|boolq|" in make_table(results)
    assert len(samples) == record.metrics["documents"] == 2
    assert "partial: the first 2 documents" in done.stdout


@pytest.mark.slow
def test_cloze_needs_no_data_set_and_no_network(checkpoint: Path, tmp_path: Path) -> None:
    attempts = tmp_path / "attempts"
    (tmp_path / "sitecustomize.py").write_text(BLOCKED.format(path=str(attempts)))
    arguments = ["--checkpoint", str(checkpoint), "--tasks", "cloze", "--corpus", "python:stdlib", "--limit", "12"]
    done = evaluate(tmp_path, *arguments, "--num-fewshot", "0,2", path=tmp_path)
    zero, two = records(tmp_path)

    assert done.returncode == 0, done.stderr
    assert not attempts.exists()
    assert (zero.status, two.status) == ("ok", "ok")
    assert zero.metrics["chance_percent"] == 25.0
    assert (zero.metrics["documents"], zero.notes["corpus"]) == (12, "python:stdlib")
    assert two.metrics["plain_tokens"] > 2 * zero.metrics["plain_tokens"]
    assert "cloze is built of python:stdlib, seed 0" in done.stdout


def test_a_vocabulary_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    save_checkpoint(build("retnet", "tiny", vocab_size=VOCAB_SIZE), tmp_path / "small")
    write(tmp_path, "sums", "validation", {"query": "1 + 1 =", "choices": ["2", "3"], "label": 0})
    arguments = ["--tasks", "sums", "--data-dir", str(tmp_path), "--num-fewshot", "0"]
    done = evaluate(tmp_path, "--checkpoint", str(tmp_path / "small"), *arguments)

    assert done.returncode == 2
    assert f"the tokenizer has 256 tokens, the model {VOCAB_SIZE}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tasks", "piqqa"], "unknown task 'piqqa'; did you mean 'piqa'?"),
        (["--tasks", "sums", "--num-fewshot", "4"], "sums has a pool of 3 examples"),
        (["--tasks", "sums", "--checkpoint", "{checkpoint}"], "two checkpoints would have one name"),
        (["--tasks", "bad"], "bad.validation.jsonl:1: field 'label' is missing"),
        (["--tasks", "sums", "--num-fewshot", "-1"], "numbers from 0 to"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments: list[str], words: str, checkpoint: Path, tmp_path: Path) -> None:
    document = {"query": "1 + 1 =", "choices": ["2", "3"], "label": 0}
    write(tmp_path, "sums", "validation", document)
    write(tmp_path, "sums", "train", *[document] * 3)
    write(tmp_path, "bad", "validation", {"query": "1 + 1 =", "choices": ["2", "3"]})
    given = [argument.format(checkpoint=checkpoint) for argument in arguments]
    done = evaluate(tmp_path, "--checkpoint", str(checkpoint), "--data-dir", str(tmp_path), *given)

    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not records(tmp_path)
