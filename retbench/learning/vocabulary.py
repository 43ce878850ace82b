"""The tokenizer of a training run: bytes, a file, or byte-pair encoding trained on the training split."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from retbench.errors import UsageError
from retbench.learning.corpus import Corpus
from retbench.tokenizer import ByteTokenizer, JsonTokenizer, SentencePieceTokenizer, Tokenizer, needed

END = "<|endoftext|>"
LEAST_BPE = 257  # every byte and the end of a text
MOST_VOCABULARY = 2**32
BPE_CHARACTERS = 2**28  # of the training split that byte-pair encoding is trained on at most


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer, a hash of all that it does, and the file that it was read from, None for bytes."""

    tokenizer: Tokenizer
    identity: str
    path: Path | None

    @property
    def size(self) -> int:
        return self.tokenizer.vocab_size

    def save(self, folder: Path) -> None:
        """Puts the tokenizer beside a checkpoint, where ``load_tokenizer`` finds it."""
        if self.path is not None:
            shutil.copyfile(self.path, folder / f"tokenizer{self.path.suffix}")


_READERS: dict[str, Callable[[Path], Tokenizer]] = {".json": JsonTokenizer, ".model": SentencePieceTokenizer}


def find_vocabulary(name: str, corpus: Corpus, cache: Path) -> Vocabulary:
    """``bytes``, ``bpe:4096`` or the path of a tokenizer.json or SentencePiece .model file."""
    if name == "bytes":
        return Vocabulary(ByteTokenizer(), "bytes", None)
    if name.startswith("bpe:"):
        return _from_file(_trained(corpus, _bpe_size(name), cache))
    path = Path(name)
    if path.suffix not in _READERS or not path.is_file():
        raise UsageError(
            f"unknown tokenizer {name!r}; tokenizers are bytes, bpe:SIZE such as bpe:4096,"
            " the path of a tokenizer.json or of a SentencePiece .model file"
        )
    return _from_file(path)


def promised_size(name: str) -> int | None:
    """How many tokens a tokenizer of that name has at most, without its corpus; None for one in a file."""
    if name == "bytes":
        return ByteTokenizer().vocab_size
    return _bpe_size(name) if name.startswith("bpe:") else None


def beside(checkpoint: Path) -> Vocabulary:
    """The tokenizer in a checkpoint's folder, as ``load_tokenizer`` chooses it: bytes where there is none."""
    paths = [path for suffix in _READERS if (path := checkpoint / f"tokenizer{suffix}").exists()]
    return _from_file(paths[0]) if paths else Vocabulary(ByteTokenizer(), "bytes", None)


def _from_file(path: Path) -> Vocabulary:
    return Vocabulary(_READERS[path.suffix](path), hashlib.sha256(path.read_bytes()).hexdigest(), path)


def _bpe_size(name: str) -> int:
    digits = name.removeprefix("bpe:")
    if not (digits.isascii() and digits.isdigit() and LEAST_BPE <= int(digits[:20]) <= MOST_VOCABULARY):
        raise UsageError(f"tokenizer {name!r} is not possible: bpe:SIZE with a size of {LEAST_BPE} to 2^32")
    return int(digits)


def _trained(corpus: Corpus, size: int, cache: Path) -> Path:
    """The tokenizer.json of a corpus at a size, trained once: the same text gives the same merges."""
    library = needed("tokenizers", f"tokenizer bpe:{size}")
    facts = (corpus.name, corpus.identity, str(size), metadata.version("tokenizers"))
    path = cache / "tokenizers" / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:24]}.json"
    if path.exists():
        return path
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    trainer = library.trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_first_characters(corpus.documents(held_out=False)), trainer)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as private:  # others see a whole file or none
        tokenizer.save(str(Path(private) / path.name))
        (Path(private) / path.name).replace(path)
    return path


def _first_characters(texts: Iterator[str]) -> Iterator[str]:
    """Whole documents until there are BPE_CHARACTERS."""
    count = 0
    for text in texts:
        yield text
        count += len(text)
        if count >= BPE_CHARACTERS:
            return
