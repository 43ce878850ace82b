"""A suite of learning cells: trained once, scored, stored, gone on with after a death, shared by experiments."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from models.checkpoint import load_checkpoint
from retbench.devices import find_device
from retbench.errors import UsageError
from retbench.isolate import Outcome
from retbench.learning import child, telling
from retbench.learning.child import learn
from retbench.learning.corpus import Corpus, is_held_out
from retbench.learning.material import Material, bound, read_material
from retbench.learning.presets import find_preset
from retbench.learning.run import checkpoints, claimed, read_metrics
from retbench.learning.suite import Suite
from retbench.learning.vocabulary import Vocabulary
from retbench.spec import Cell
from tests.learning.conftest import BEGIN, BeginningTokenizer, texts, write_jsonl

pytestmark = pytest.mark.usefixtures("one_thread")

SILENT = Console(quiet=True)
Listener = Callable[[dict[str, Any]], None]


def here(request: dict[str, Any], threads: int, timeout_s: float, listener: Listener) -> Outcome:
    """A child's work in this process."""
    return Outcome("ok", None, list(learn(request, listener)))


class KilledError(Exception):
    """Stands in for the end of a child."""


def dead(request: dict[str, Any], threads: int, timeout_s: float, listener: Listener) -> Outcome:
    """A child that was killed in its fourth step."""

    def send(message: dict[str, Any]) -> None:
        if message["made"]["step"] == 4:
            raise KilledError

    with pytest.raises(KilledError):
        list(learn(request, send))
    return Outcome("killed", "killed by SIGKILL", [])


def none(request: dict[str, Any], threads: int, timeout_s: float, listener: Listener) -> Outcome:
    raise AssertionError(f"{request['cell']} was to be stored")


@pytest.fixture
def material(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Material:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    other = f"jsonl:{write_jsonl(tmp_path / 'other.jsonl', texts(60, seed=1))}"
    return read_material(corpus.name, [other], "bytes")


def cells(material: Material, *systems: str, tokens: int = 8 * 64, seeds: int = 1) -> list[Cell]:
    corpus, other = material.corpora
    small = {"tokens": tokens, "seq_len": 32, "batch_size": 2, "excerpt": 300, "contexts": (128, 200), "seeds": seeds}
    preset = replace(find_preset("cpu"), corpus=corpus, others=(other,), **small)  # type: ignore[arg-type]
    shallow = [replace(cell, size="tiny", n_layers=1) for cell in preset.cells(systems, seeds)]
    return bound(shallow, material)


def suite(
    some: list[Cell], material: Material, out: Path, execute: Any = here, experiment: str = "perplexity"
) -> Suite:
    return Suite(experiment, some, find_device("cpu"), material, out, execute=execute)


def test_every_cell_is_trained_scored_and_stored(material: Material, tmp_path: Path) -> None:
    some = cells(material, "unigram", "retnet", "transformer-flash")
    made = suite(some, material, tmp_path)
    unigram, retnet, transformer = made.run(SILENT)
    corpus, other = material.corpora
    again = suite(some, material, tmp_path, none).run(SILENT)

    assert again == [unigram, retnet, transformer]
    assert {record.status for record in again} == {"ok"}
    assert retnet.cell.vocab_size == 256
    assert retnet.metrics["tokens"] == transformer.metrics["tokens"] == 512
    assert retnet.metrics["perplexity"] < 256
    assert set(retnet.notes["scores"]) == {corpus, other}
    assert set(retnet.notes["scores"][corpus]) == {"windows", "carried"}
    assert set(transformer.notes["scores"][corpus]) == set(unigram.notes["scores"][corpus]) == {"windows"}
    assert set(retnet.notes["contexts"]) == {"128", "200"}
    assert [tokens for _, tokens in retnet.notes["scores"][corpus]["windows"]["documents"]] == [
        tokens for _, tokens in unigram.notes["scores"][corpus]["windows"]["documents"]
    ]
    assert len(retnet.notes["curve"]) == 8
    assert load_checkpoint(checkpoints(made.folder(retnet.cell))[-1]).config.n_layers == 1


def test_a_corpus_that_is_only_scored_is_scored_whole_but_for_what_was_trained_on(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    documents = [text for text in texts(20, seed=1) if not is_held_out(text)][:6]
    known = next(corpus.documents(held_out=False))
    other = f"jsonl:{write_jsonl(tmp_path / 'six.jsonl', [*documents, known, documents[0]])}"
    material = read_material(corpus.name, [other], "bytes")
    (record,) = suite(cells(material, "unigram"), material, tmp_path).run(SILENT)
    (few,) = suite([documents_of(cells(material, "unigram")[0], 4)], material, tmp_path).run(SILENT)

    assert [tokens for _, tokens in record.notes["scores"][other]["windows"]["documents"]] == [
        min(len(text.encode()) + 1, 300) for text in documents
    ]
    assert len(few.notes["scores"][other]["windows"]["documents"]) == 4


def documents_of(cell: Cell, count: int) -> Cell:
    """The cell with so many documents of a corpus scored."""
    assert cell.learning is not None
    return replace(cell, learning=replace(cell.learning, documents=count))


def test_bos_is_read_but_not_scored(material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "load_tokenizer", lambda folder: BeginningTokenizer())
    monkeypatch.setattr(
        "retbench.learning.material.find_vocabulary", lambda *_: Vocabulary(BeginningTokenizer(), "bos", None)
    )
    corpus, other = material.corpora
    begun = read_material(corpus, [other], "bos")
    plain, scored = (
        suite(cells(some, "unigram"), some, tmp_path).run(SILENT)[0].notes["scores"][corpus]["windows"]
        for some in (material, begun)
    )

    assert begun.trained.train.ids[0] == BEGIN
    assert [tokens for _, tokens in scored["documents"]] == [
        min(tokens, 299)
        for _, tokens in plain["documents"]  # of the 300 of an excerpt one is BOS
    ]


def test_a_child_that_died_is_a_record_and_goes_on_from_where_it_was(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "TOLD_S", 0.0)
    some = [replace(cells(material, "retnet")[0], seed=3)]
    whole = suite(some, material, tmp_path / "whole").run(SILENT)
    part = suite(some, material, tmp_path / "part", dead).run(SILENT)
    rest = suite(some, material, tmp_path / "part").run(SILENT)
    folders = [suite(some, material, tmp_path / name).folder(some[0]) for name in ("whole", "part")]
    curves = [[(line["step"], line["loss"]) for line in read_metrics(folder)] for folder in folders]

    assert (part[0].status, part[0].reason) == ("killed", "killed by SIGKILL")
    assert rest[0].metrics["loss"] == whole[0].metrics["loss"]
    assert curves[0] == curves[1]


def test_another_experiment_finds_the_same_cell_trained(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = cells(material, "retnet")
    first = suite(some, material, tmp_path).run(SILENT)
    monkeypatch.setattr("retbench.learning.loop.Loop._step", none)
    second = suite(some, material, tmp_path, experiment="ablation").run(SILENT)

    assert second[0].metrics["loss"] == first[0].metrics["loss"]
    assert second[0].experiment == "ablation"


def test_a_run_that_another_process_is_training_is_waited_for_and_found(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = cells(material, "retnet")
    first = suite(some, material, tmp_path)
    trained = first.run(SILENT)
    said = StringIO()
    monkeypatch.setattr("retbench.learning.loop.Loop._step", none)
    with ExitStack() as other:
        other.enter_context(claimed(first.folder(some[0])))

        def waits(request: dict[str, Any], threads: int, timeout_s: float, listener: Listener) -> Outcome:
            def heard(message: dict[str, Any]) -> None:
                listener(message)
                if "waits" in message:
                    other.close()

            return here(request, threads, timeout_s, heard)

        second = suite(some, material, tmp_path, waits, "ablation").run(Console(file=said))

    assert "waiting for another process, which is training this run" in said.getvalue()
    assert second[0].metrics["loss"] == trained[0].metrics["loss"]


def test_a_run_that_another_process_is_training_is_not_made_afresh(material: Material, tmp_path: Path) -> None:
    made = suite(cells(material, "retnet"), material, tmp_path)
    folder = made.folder(made.cells[0])
    with claimed(folder), pytest.raises(UsageError, match="another process is training this run"):
        (folder / "mark").touch()
        made.run(SILENT, fresh=True)

    assert (folder / "mark").exists()


def test_training_afresh_makes_the_steps_again(material: Material, tmp_path: Path) -> None:
    some = cells(material, "retnet")
    made = suite(some, material, tmp_path)
    first = made.run(SILENT)
    (made.folder(some[0]) / "mark").touch()
    second = made.run(SILENT, fresh=True)

    assert not (made.folder(some[0]) / "mark").exists()
    assert second[0].metrics["loss"] == first[0].metrics["loss"]


def test_what_goes_wrong_on_our_side_ends_the_command(material: Material, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="was to be stored"):
        suite(cells(material, "retnet"), material, tmp_path, none).run(SILENT)


@pytest.mark.parametrize(
    "change", [{"learning_rate": 1e-4}, {"tokens": 1024}, {"data": ("", "")}, {"excerpt": 50}, {"documents": 5}]
)
def test_a_run_is_known_by_all_that_decides_its_losses(
    change: dict[str, Any], material: Material, tmp_path: Path
) -> None:
    cell = cells(material, "retnet")[0]
    assert cell.learning is not None
    other = replace(cell, learning=replace(cell.learning, **change))
    made = suite([cell, other], material, tmp_path)

    assert made.folder(cell) != made.folder(other)
    assert Cell.from_dict(cell.to_dict()) == cell
