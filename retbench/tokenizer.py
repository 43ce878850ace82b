"""Text to token ids and back: the tokenizer in a checkpoint's folder, or bytes where there is none."""

import json
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Protocol

from retbench.errors import UsageError


class Tokenizer(Protocol):
    """What generation and evaluation need of a tokenizer."""

    vocab_size: int
    eos: int | None  # the id that ends a text
    bos: int | None  # the id that begins one, if there is such an id: not every tokenizer that has it puts it there

    def encode(self, text: str, special: bool = True) -> list[int]:
        """With ``special``, what the tokenizer puts around a text, such as BOS, is there."""

    def decode(self, ids: list[int]) -> str:
        """Ids that are not text yet, such as half a character, come out as replacement characters."""


def load_tokenizer(folder: Path) -> Tokenizer:
    """tokenizer.json, else tokenizer.model (SentencePiece), else UTF-8 bytes."""
    if (folder / "tokenizer.json").exists():
        return JsonTokenizer(folder / "tokenizer.json")
    if (folder / "tokenizer.model").exists():
        return SentencePieceTokenizer(folder / "tokenizer.model")
    return ByteTokenizer()


class JsonTokenizer:
    """A tokenizer.json of the ``tokenizers`` library."""

    def __init__(self, path: Path) -> None:
        tokenizers = needed("tokenizers", path)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for a file that is none of its own
            raise UsageError(f"{path} is no tokenizer: {error}") from error
        self.vocab_size: int = self._tokenizer.get_vocab_size()
        named = _special_tokens(path.with_name("tokenizer_config.json"))
        self.eos = self._first(*named["eos_token"], "</s>", "<|endoftext|>", "<|im_end|>", "<|eot_id|>")
        self.bos = self._first(*named["bos_token"], "<s>", "<|begin_of_text|>", "<|endoftext|>")

    def _first(self, *tokens: str) -> int | None:
        """The id of the first token that the vocabulary holds."""
        ids = (self._tokenizer.token_to_id(token) for token in tokens)
        return next((found for found in ids if found is not None), None)

    def encode(self, text: str, special: bool = True) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids))


class SentencePieceTokenizer:
    """A tokenizer.model of SentencePiece; texts begin with BOS, as Llama's and RetNet's do."""

    def __init__(self, path: Path) -> None:
        sentencepiece = needed("sentencepiece", path)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise UsageError(f"{path} is no SentencePiece model: {' '.join(str(error).split())}") from error
        self.vocab_size: int = self._processor.vocab_size()
        self.eos: int | None = self._processor.eos_id() if self._processor.eos_id() >= 0 else None
        self.bos: int | None = self._processor.bos_id() if self._processor.bos_id() >= 0 else None

    def encode(self, text: str, special: bool = True) -> list[int]:
        return list(self._processor.encode(text, add_bos=special and self.bos is not None))

    def decode(self, ids: list[int]) -> str:
        return str(self._processor.decode(ids))


class ByteTokenizer:
    """UTF-8 bytes as ids 0 to 255; ids above are no text. NUL ends a text, since hardly any holds it."""

    vocab_size = 256
    eos: int | None = 0
    bos: int | None = None

    def encode(self, text: str, special: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(token for token in ids if token < 256).decode(errors="replace")


def _special_tokens(path: Path) -> dict[str, list[str]]:
    """The tokens that begin and end a text as transformers writes them: a string, or an object with its content."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        config = {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not JSON that can be read: {error}") from error
    found = {}
    for name in ("bos_token", "eos_token"):
        token = config.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        found[name] = [content] if isinstance(content, str) else []
    return found


def needed(package: str, what: object) -> ModuleType:
    """An optional package; raises UsageError that says what needs it and how it is installed."""
    try:
        return import_module(package)
    except ImportError as error:
        raise UsageError(f"{what} needs the package {package}: pip install 'retbench[text]'") from error
