"""What the tests of learning share: a small corpus and a cache of its own."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from models import linear
from retbench.learning.corpus import Corpus, find_corpus
from retbench.tokenizer import ByteTokenizer
from tests.retbench.conftest import one_thread

__all__ = ["one_thread"]  # a fixture here too

TEXT = "the state of a union is strong and its people work for peace at home while laws are made in congress"
WORDS = TEXT.split()


BEGIN = 256


class BeginningTokenizer(ByteTokenizer):
    """Bytes after a BOS, as SentencePiece and Llama's tokenizers have it."""

    vocab_size = 257
    bos = BEGIN

    def encode(self, text: str, special: bool = True) -> list[int]:
        return [BEGIN] * special + super().encode(text)


@pytest.fixture(autouse=True)
def own_decisions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a run decides about products does not outlive a test."""
    monkeypatch.setattr(linear, "_decided", {})
    linear.onednn_refusal.cache_clear()
    yield
    linear.onednn_refusal.cache_clear()


def texts(count: int, seed: int = 0) -> list[str]:
    """Documents in which a word depends on the one before it, so that there is something to learn."""
    source = random.Random(seed)
    documents = []
    for _ in range(count):
        at = source.randrange(len(WORDS))
        words = []
        for _ in range(source.randrange(20, 80)):
            words.append(WORDS[at])
            at = (at * 2 + source.choice((1, 1, 1, 5))) % len(WORDS)
        documents.append(" ".join(words) + ".\n")
    return documents


def write_jsonl(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return find_corpus(f"jsonl:{write_jsonl(tmp_path / 'corpus.jsonl', texts(120))}")
