"""Tokenizers in a checkpoint's folder: bytes, tokenizer.json, SentencePiece."""

import builtins
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retbench import tokenizer as tokenizers_of
from retbench.errors import UsageError
from retbench.learning.corpus import Corpus
from retbench.learning.vocabulary import find_vocabulary
from retbench.tokenizer import ByteTokenizer, JsonTokenizer, SentencePieceTokenizer, load_tokenizer
from tests.retbench.real_packages import ids, installed, package_folder, run, speeches, strings

TEXT = ["the state of the union is strong", "the union of the states", "a strong state", "états unis"]


@given(st.text())
@settings(derandomize=True, deadline=None)
def test_bytes_come_back_as_they_were(text: str) -> None:
    tokenizer = ByteTokenizer()

    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_folder_without_a_tokenizer_is_read_as_bytes(tmp_path: Path) -> None:
    assert isinstance(load_tokenizer(tmp_path), ByteTokenizer)


def test_tokenizer_json_round_trips_and_names_its_end(tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    trained = library.Tokenizer(library.models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "</s>"],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(TEXT, trainer)
    trained.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)

    assert tokenizer.decode(tokenizer.encode(TEXT[3])) == TEXT[3]
    assert tokenizer.eos == 1
    assert tokenizer.vocab_size == trained.get_vocab_size()


def test_a_tokenizer_json_that_is_none_is_one_clear_line(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text('{"hello": 1}')

    with pytest.raises(UsageError, match=r"tokenizer\.json is no tokenizer"):
        load_tokenizer(tmp_path)


def test_sentencepiece_texts_begin_with_bos(tmp_path: Path) -> None:
    library = pytest.importorskip("sentencepiece")
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 20), model_prefix=str(tmp_path / "tokenizer"), vocab_size=24, minloglevel=5
    )
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode(TEXT[0])

    assert ids[0] == 1
    assert tokenizer.eos == 2
    assert tokenizer.decode(ids) == TEXT[0]


def test_a_missing_package_is_named_with_its_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")

    def absent(name: str) -> object:
        raise builtins.ImportError(name)

    monkeypatch.setattr(tokenizers_of, "import_module", absent)

    with pytest.raises(UsageError, match=r"needs the package tokenizers: pip install 'retbench\[text\]'"):
        load_tokenizer(tmp_path)


def test_the_ends_of_a_text_are_those_that_transformers_wrote(tmp_path: Path) -> None:
    library = pytest.importorskip("tokenizers")
    words = {"<s>": 0, "</s>": 1, "<start>": 2, "<end>": 3}
    library.Tokenizer(library.models.WordLevel(words, unk_token="<s>")).save(str(tmp_path / "tokenizer.json"))
    assert (load_tokenizer(tmp_path).bos, load_tokenizer(tmp_path).eos) == (0, 1)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": {"content": "<start>"}, "eos_token": "<end>"}')

    assert (load_tokenizer(tmp_path).bos, load_tokenizer(tmp_path).eos) == (2, 3)


# ---- beside transformers, by the vocabulary of Mistral and the public RetNet checkpoints


@pytest.fixture(scope="module")
def transformers_python() -> Path:
    return installed("transformers-4.57.6-sp", "transformers==4.57.6", "sentencepiece", "protobuf").python


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with its tokenizer.model: BOS and a blank in front of the first word."""
    pytest.importorskip("sentencepiece")
    data = package_folder(installed("mistral-common", "mistral-common==1.13.1", dependencies=False), "mistral_common")
    folder = tmp_path_factory.mktemp("mistral")
    shutil.copy(data / "data/tokenizer.model.v1", folder / "tokenizer.model")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("texts", [strings, speeches])
def test_sentencepiece_ids_are_those_of_transformers(
    special: bool, texts: Callable[[int], list[str]], mistral: Path, transformers_python: Path
) -> None:
    some, tokenizer = texts(1000), load_tokenizer(mistral)
    make = "transformers.LlamaTokenizer(folder + '/tokenizer.model')"
    expected = ids(transformers_python, make, mistral, some, special)

    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert len(some) == 1000
    assert [tokenizer.encode(text, special) for text in some] == expected


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("special", [True, False])
def test_the_ids_of_a_tokenizer_json_with_bos_and_a_blank_in_front_are_those_of_transformers(
    special: bool, mistral: Path, transformers_python: Path, tmp_path: Path
) -> None:
    save = "import sys, transformers; transformers.LlamaTokenizerFast(sys.argv[1]).save_pretrained(sys.argv[2])"
    run(transformers_python, save, str(mistral / "tokenizer.model"), str(tmp_path))
    some, tokenizer = [*strings(500), *speeches(500)], load_tokenizer(tmp_path)
    expected = ids(transformers_python, "transformers.AutoTokenizer.from_pretrained(folder)", tmp_path, some, special)

    assert isinstance(tokenizer, JsonTokenizer)
    assert [tokenizer.encode(text, special) for text in some] == expected
    assert tokenizer.bos == expected[0][0] if special else tokenizer.bos not in expected[0]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_ids_of_a_tokenizer_that_we_trained_are_those_of_transformers(
    transformers_python: Path, tmp_path: Path
) -> None:
    some = [*strings(500), *speeches(500)]
    corpus = Corpus("speeches", "", lambda: iter(some))
    find_vocabulary("bpe:600", corpus, tmp_path / "cache").save(tmp_path)
    make = "transformers.PreTrainedTokenizerFast(tokenizer_file=folder + '/tokenizer.json')"

    assert [load_tokenizer(tmp_path).encode(text) for text in some] == ids(transformers_python, make, tmp_path, some)
