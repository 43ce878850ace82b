"""retbench perplexity: a row for every checkpoint and corpus, and one-line refusals."""

import json
import sys
from pathlib import Path

import pytest
import torch

from models import build
from models.checkpoint import save_checkpoint
from retbench import cli
from retbench.learning.corpus import Corpus, is_held_out
from retbench.learning.token_files import tokenize
from retbench.learning.vocabulary import Vocabulary
from retbench.tokenizer import ByteTokenizer
from tests.learning.conftest import BeginningTokenizer, texts, write_jsonl

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checkpoint(system: str, vocab_size: int = 256) -> str:
    """A model that knows nothing: every token is as likely as any other."""
    model = build(system, "tiny", vocab_size=vocab_size)
    torch.nn.init.zeros_(model.head.weight)  # type: ignore[arg-type]
    save_checkpoint(model, system)
    return system


def perplexity(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["retbench", "perplexity", "--threads", "1", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


def test_every_checkpoint_is_scored_on_every_corpus(
    here: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = f"jsonl:{write_jsonl(here / 'other.jsonl', texts(100, seed=1))}"
    folders = [checkpoint(system) for system in ("retnet", "transformer")]
    where = [option for folder in folders for option in ("--checkpoint", folder)]
    status = perplexity(
        monkeypatch, *where, "--corpus", corpus.name, "--corpus", other, "--context", "64", "--format", "json"
    )
    tables = json.loads(capsys.readouterr().out)
    rows = tables["perplexity"]["rows"]

    assert status in (0, None)
    assert [(row["checkpoint"], row["corpus"]) for row in rows] == [
        (f"{folder}:{folder}", name) for folder in folders for name in (corpus.name, other)
    ]
    assert [row["reading"] for row in rows] == ["whole, carried"] * 2 + ["32 to 64"] * 2
    assert [row["perplexity"] for row in rows] == pytest.approx([256] * 4, rel=1e-4)
    assert all(8 < row["bits_per_byte"] < 8.1 for row in rows)  # a byte, and the end of each text
    assert rows[0]["tokens"] == rows[2]["tokens"]
    assert tables["positions"]["rows"][0]["perplexity_from_0"] == pytest.approx(256, rel=1e-4)


def test_a_corpus_of_six_documents_is_scored_whole(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    six = [text for text in texts(20) if not is_held_out(text)][:6]
    where = ("--checkpoint", checkpoint("retnet"), "--corpus", f"jsonl:{write_jsonl(here / 'six.jsonl', six)}")
    status = perplexity(monkeypatch, *where, "--format", "json")
    table = json.loads(capsys.readouterr().out)["perplexity"]

    assert status in (0, None)
    assert [(row["part"], row["documents"]) for row in table["rows"]] == [("all", 6)]
    assert "nothing beside it says what it was trained on" in table["footnotes"][-1]


def test_what_a_checkpoint_was_trained_on_is_left_out(
    here: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary = Vocabulary(ByteTokenizer(), "bytes", None)
    trained = tokenize(corpus, vocabulary, here)
    folder = checkpoint("retnet")
    Path(folder).rename(here / "step-00000001")
    (here / "run.json").write_text(json.dumps({"run": {"corpus": corpus.name}, "tokens": str(trained.folder)}))
    status = perplexity(
        monkeypatch, "--checkpoint", "step-00000001", "--corpus", corpus.name, "--tokens", "1m", "--format", "json"
    )
    table = json.loads(capsys.readouterr().out)["perplexity"]

    assert status in (0, None)
    assert [(row["part"], row["documents"]) for row in table["rows"]] == [
        ("held-out", trained.header.documents["held-out"])
    ]
    assert f"retnet:{here.name}/step-00000001: trained on {corpus.name}: all documents" in table["footnotes"][-1]


def test_bos_is_read_but_not_scored(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--checkpoint", checkpoint("retnet", 257), "--corpus", corpus.name, "--format", "json")
    tokens = []
    for tokenizer in (ByteTokenizer(), BeginningTokenizer()):
        vocabulary = Vocabulary(tokenizer, str(tokenizer.vocab_size), None)
        monkeypatch.setattr("retbench.perplexity.beside", lambda folder, found=vocabulary: found)
        perplexity(monkeypatch, *where)
        tokens.append(json.loads(capsys.readouterr().out)["perplexity"]["rows"][0]["tokens"])

    assert tokens[0] == tokens[1] > 0


def test_windows_are_the_same_for_all_systems_where_they_are_asked_for(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--checkpoint", checkpoint("retnet"), "--corpus", corpus.name, "--context", "64", "--windows")
    perplexity(monkeypatch, *arguments, "--format", "csv")

    assert ",32 to 64," in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "xml"], "formats are table, md, csv, json"),
        (["--checkpoint", "nowhere"], "cannot read nowhere/config.json"),
        (["--corpus", "books"], "unknown corpus 'books'"),
        (["--context", "0"], "out of range"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    words: str,
    corpus: Corpus,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = perplexity(monkeypatch, "--checkpoint", checkpoint("retnet"), "--corpus", corpus.name, *arguments)

    assert status == 2
    assert words in capsys.readouterr().err


def test_a_context_beyond_what_a_model_reads_is_one_line(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(build("hyena", "tiny", vocab_size=256, l_max=64), "hyena")
    status = perplexity(monkeypatch, "--checkpoint", "hyena", "--corpus", corpus.name, "--context", "65")
    (line,) = capsys.readouterr().err.splitlines()

    assert status == 2
    assert line.startswith("retbench: --context 65 is not possible: hyena reads at most l_max = 64 tokens, not 65")


def test_a_tokenizer_that_is_too_large_is_refused(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = perplexity(monkeypatch, "--checkpoint", checkpoint("retnet", 64), "--corpus", corpus.name)

    assert status == 2
    assert "the tokenizer has 256 tokens, the model 64" in capsys.readouterr().err
