"""Tokenizers of a run and token files: what is written is what was tokenized, once and whole."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retbench.errors import UsageError
from retbench.learning.corpus import Corpus
from retbench.learning.token_files import HEADER, tokenize
from retbench.learning.vocabulary import Vocabulary, find_vocabulary
from retbench.tokenizer import ByteTokenizer, load_tokenizer
from tests.learning.conftest import texts


class WideTokenizer(ByteTokenizer):
    """Bytes far above 2^16."""

    vocab_size = 2**20

    def encode(self, text: str) -> list[int]:
        return [byte + 2**19 for byte in text.encode()]


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), WideTokenizer()])
def test_the_ids_of_both_splits_are_those_of_their_documents(
    tokenizer: ByteTokenizer, corpus: Corpus, tmp_path: Path
) -> None:
    tokens = tokenize(corpus, Vocabulary(tokenizer, str(tokenizer.vocab_size), None), tmp_path)

    for split, held_out in ((tokens.train, False), (tokens.held_out, True)):
        expected = [([*tokenizer.encode(text), 0], len(text.encode())) for text in corpus.documents(held_out)]
        assert [(ids.tolist(), n_bytes) for ids, n_bytes in split.documents()] == expected
    assert tokens.train.ids.dtype == (np.uint16 if tokenizer.vocab_size == 256 else np.uint32)
    assert tokens.header.tokens["train"] == len(tokens.train.ids)


def test_a_corpus_is_read_once_and_again_where_its_files_are_not_whole(corpus: Corpus, tmp_path: Path) -> None:
    reads = []

    def read() -> object:
        reads.append(1)
        return corpus.read()

    watched = replace(corpus, read=read)  # type: ignore[arg-type]
    vocabulary = find_vocabulary("bytes", corpus, tmp_path)
    first = tokenize(watched, vocabulary, tmp_path)
    again = tokenize(watched, vocabulary, tmp_path)

    assert len(reads) == 1
    assert first.header == again.header
    assert np.array_equal(first.train.ids, again.train.ids)


@pytest.mark.parametrize("name", ["train.ids", "held-out.documents", HEADER])
def test_what_is_cut_short_is_written_again(name: str, corpus: Corpus, tmp_path: Path) -> None:
    vocabulary = find_vocabulary("bytes", corpus, tmp_path)
    before = tokenize(corpus, vocabulary, tmp_path)
    expected = before.train.ids.tolist()
    (folder,) = (tmp_path / "tokens").iterdir()
    (folder / name).write_bytes((folder / name).read_bytes()[:9])

    assert tokenize(corpus, vocabulary, tmp_path).train.ids.tolist() == expected


def test_the_hash_of_the_data_follows_the_texts_alone(tmp_path: Path) -> None:
    def data(name: str, documents: list[str]) -> str:
        corpus = Corpus(name, name, lambda: iter(documents))
        return tokenize(corpus, find_vocabulary("bytes", corpus, tmp_path), tmp_path).header.data

    assert data("a", texts(50)) == data("b", texts(50)) != data("c", texts(51))


def test_an_interrupted_pass_leaves_nothing(corpus: Corpus, tmp_path: Path) -> None:
    def torn() -> object:
        yield from texts(10)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize(replace(corpus, read=torn), find_vocabulary("bytes", corpus, tmp_path), tmp_path)  # type: ignore[arg-type]

    assert not list((tmp_path / "tokens").iterdir())
    assert not list(tmp_path.rglob(HEADER))


def test_a_corpus_without_a_held_out_document_is_refused(tmp_path: Path) -> None:
    corpus = Corpus("small", "", lambda: iter(["a"]))

    with pytest.raises(UsageError, match="corpus small has 1 documents, none of them held-out: it needs more"):
        tokenize(corpus, find_vocabulary("bytes", corpus, tmp_path), tmp_path)
    assert tokenize(corpus, find_vocabulary("bytes", corpus, tmp_path), tmp_path, needed=()).header.documents == {
        "train": 1,
        "held-out": 0,
    }


def test_byte_pairs_are_learnt_from_the_training_split_alone(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    documents = texts(120)
    corpus = Corpus("c", "c", lambda: iter(documents))
    train = [*corpus.documents(held_out=False)]
    alone = Corpus("t", "t", lambda: iter(train))
    one, other = (find_vocabulary("bpe:300", found, tmp_path) for found in (corpus, alone))

    assert one.identity == other.identity
    assert one.size == 300
    assert one.tokenizer.eos == 0
    assert one.tokenizer.decode(one.tokenizer.encode(documents[0])) == documents[0]


def test_a_tokenizer_stands_beside_the_checkpoint(corpus: Corpus, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    vocabulary = find_vocabulary("bpe:280", corpus, tmp_path)
    vocabulary.save(tmp_path)
    reused = find_vocabulary(str(tmp_path / "tokenizer.json"), corpus, tmp_path)

    assert load_tokenizer(tmp_path).encode("the state") == vocabulary.tokenizer.encode("the state")
    assert reused.identity == vocabulary.identity


@pytest.mark.parametrize(
    ("name", "words"),
    [("bpe:10", "a size of 257 to"), ("bpe:x", "bpe:SIZE"), ("/no/such.json", "unknown tokenizer"), ("gpt", "unknown")],
)
def test_an_unknown_tokenizer_is_one_line(name: str, words: str, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        find_vocabulary(name, corpus, tmp_path)
