"""Which documents are scored: whole corpora, each text once, and nothing that was trained on."""

import json
from pathlib import Path

import numpy as np
import pytest

from retbench.errors import UsageError
from retbench.learning.corpus import Corpus, is_held_out
from retbench.learning.run import REQUEST
from retbench.learning.scored import Past, check_scored, part, past_of, scored
from retbench.learning.token_files import Tokens, tokenize
from retbench.learning.vocabulary import Vocabulary
from retbench.tokenizer import ByteTokenizer
from tests.learning.conftest import BeginningTokenizer, texts

BYTES = Vocabulary(ByteTokenizer(), "bytes", None)
TRAINED, OTHERS = texts(60), texts(40, seed=1)
IN_TRAIN = [text for text in TRAINED if not is_held_out(text)]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def tokens_of(documents: list[str], cache: Path, vocabulary: Vocabulary = BYTES) -> Tokens:
    name = f"{len(documents)} documents, {hash(tuple(documents))}"
    return tokenize(Corpus(name, name, lambda: iter(documents)), vocabulary, cache, needed=())


def read(tokens: Tokens, trained: Tokens | None) -> list[str]:
    """The texts that are scored."""
    return [bytes(ids[:-1].astype(np.uint8)).decode() for ids, _ in scored(tokens, trained)]


def test_of_the_corpus_that_was_trained_on_the_held_out_part_is_scored(cache: Path) -> None:
    trained = tokens_of(TRAINED, cache)

    assert read(trained, trained) == [text for text in TRAINED if is_held_out(text)]
    assert part(trained, trained) == "held-out"


def test_another_corpus_is_scored_whole_with_those_held_out_first(cache: Path) -> None:
    trained, other = tokens_of(TRAINED, cache), tokens_of(OTHERS, cache)

    assert read(other, trained) == read(other, None) == sorted(OTHERS, key=lambda text: not is_held_out(text))
    assert part(other, trained) == part(other, None) == "all"


def test_no_text_of_the_train_split_is_scored_whatever_the_corpus_and_tokenizer(cache: Path) -> None:
    trained = tokens_of(TRAINED, cache, Vocabulary(BeginningTokenizer(), "begin", None))
    mixed = tokens_of([*OTHERS, *TRAINED], cache)

    assert not set(read(mixed, trained)) & set(IN_TRAIN)
    assert set(read(mixed, trained)) == {*OTHERS, *TRAINED} - set(IN_TRAIN)
    assert part(mixed, trained) == f"all but {len(IN_TRAIN)}"


def test_a_text_that_occurs_twice_is_scored_once(cache: Path) -> None:
    twice = tokens_of([*OTHERS, *OTHERS], cache)

    assert sorted(read(twice, None)) == sorted(OTHERS)
    assert read(twice, twice) == [text for text in OTHERS if is_held_out(text)]


def test_few_documents_are_enough_unless_all_were_trained_on(cache: Path) -> None:
    trained = tokens_of(TRAINED, cache)
    few = tokens_of(OTHERS[:2], cache)
    check_scored(few, trained)

    assert sorted(read(few, trained)) == sorted(OTHERS[:2])
    with pytest.raises(UsageError, match="has 2 documents, none of them left to score: models were, or may have been"):
        check_scored(tokens_of(IN_TRAIN[:2], cache), trained)
    with pytest.raises(UsageError, match="has 0 documents, it needs some"):
        check_scored(tokens_of([], cache), trained)


def test_a_checkpoints_past_is_that_of_its_run(cache: Path, tmp_path: Path) -> None:
    trained, other = tokens_of(TRAINED, cache), tokens_of(OTHERS, cache)
    checkpoint = tmp_path / "run" / "step-00000010"
    checkpoint.mkdir(parents=True)
    unknown = past_of(checkpoint)
    request = {"run": {"corpus": "jsonl:a"}, "tokens": str(trained.folder)}
    (tmp_path / "run" / REQUEST).write_text(json.dumps(request))
    known = past_of(checkpoint)
    (tmp_path / "run" / REQUEST).write_text(json.dumps({**request, "tokens": str(tmp_path / "gone")}))
    gone = past_of(checkpoint)

    assert (unknown, unknown.trained(other)) == (Past(), None)
    assert known.tokens is not None
    assert known.tokens.header == trained.header
    assert known.words.startswith("trained on jsonl:a: all documents are scored but")
    assert part(trained, known.trained(trained)) == "held-out"
    assert (gone.corpus, gone.tokens) == ("jsonl:a", None)
    assert read(other, gone.trained(other)) == [text for text in OTHERS if is_held_out(text)]


def test_a_run_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / REQUEST).write_text("{}")

    assert past_of(tmp_path / "other") == Past()
    with pytest.raises(UsageError, match=r"run\.json is not what retbench train writes"):
        past_of(tmp_path / "step-00000001")
