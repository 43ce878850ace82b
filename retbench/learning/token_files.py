"""The token ids of a corpus in memory-mapped files, tokenized once, so that it may be larger than memory."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retbench.errors import UsageError
from retbench.learning.corpus import Corpus, is_held_out, mark_of
from retbench.learning.vocabulary import Vocabulary

Ids = npt.NDArray[Any]  # uint16 or uint32

VERSION = 3  # of the files
SPLITS = ("train", "held-out")
HEADER = "corpus.json"


@dataclass(frozen=True)
class Split:
    """Documents one after the other, each closed by the tokenizer's end of text where it has one."""

    ids: Ids  # (N,)
    ends: npt.NDArray[np.int64]  # of each document in ``ids``
    n_bytes: npt.NDArray[np.int64]  # of each document's text in UTF-8
    marks: npt.NDArray[np.int64]  # of each text: ``mark_of``

    def document(self, place: int) -> tuple[Ids, int]:
        """The ids of a document and the bytes of its text."""
        start = self.ends[place - 1] if place else 0
        return self.ids[start : self.ends[place]], int(self.n_bytes[place])

    def documents(self) -> Iterator[tuple[Ids, int]]:
        return map(self.document, range(len(self.ends)))


@dataclass(frozen=True)
class Header:
    """What the files of a folder hold; ``data`` is a hash of all texts in order."""

    version: int
    corpus: str
    identity: str
    tokenizer: str
    vocab_size: int
    eos: int | None
    bos: int | None  # which documents begin with where the tokenizer puts it there
    dtype: str
    data: str
    tokens: dict[str, int]
    documents: dict[str, int]


@dataclass(frozen=True)
class Tokens:
    """A tokenized corpus: its folder, the header and both splits, mapped."""

    folder: Path
    header: Header
    train: Split
    held_out: Split


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retbench"


def tokenize(corpus: Corpus, vocabulary: Vocabulary, cache: Path, needed: Sequence[str] = SPLITS) -> Tokens:
    """The ids of a corpus, from the cache where it has them; raises UsageError where a split has no document.

    A corpus that is only scored needs none of both: ``scored.check_scored`` sees to it.
    """
    facts = (VERSION, corpus.name, corpus.identity, vocabulary.identity)
    folder = cache / "tokens" / hashlib.sha256(repr(facts).encode()).hexdigest()[:24]
    found = open_tokens(folder)
    if found is None:
        _write(corpus, vocabulary, folder)
        found = open_tokens(folder)
    if found is None:
        raise UsageError(f"{folder} does not hold what was just written there: is the disk full?")
    for split in needed:
        if not found.header.documents[split]:
            total = sum(found.header.documents.values())
            raise UsageError(f"corpus {corpus.name} has {total} documents, none of them {split}: it needs more")
    return found


def open_tokens(folder: Path) -> Tokens | None:
    """What ``tokenize`` wrote to a folder, None where there is nothing whole."""
    try:
        header = Header(**json.loads((folder / HEADER).read_text(encoding="utf-8")))
        if header.version != VERSION:
            return None
        train, held_out = (_split(folder, name, header) for name in SPLITS)
    except (OSError, ValueError, TypeError, KeyError):  # none, or cut short
        return None
    return Tokens(folder, header, train, held_out)


def _split(folder: Path, name: str, header: Header) -> Split:
    """Raises ValueError unless the files have the size that the header says."""
    ids = _mapped(folder / f"{name}.ids", header.dtype, (header.tokens[name],))
    table = _mapped(folder / f"{name}.documents", "int64", (header.documents[name], 3))
    return Split(ids, table[:, 0], table[:, 1], table[:, 2])


def _mapped(path: Path, dtype: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return np.memmap(path, dtype, "r", shape=shape) if shape[0] else np.empty(shape, dtype)  # nothing cannot be mapped


def _write(corpus: Corpus, vocabulary: Vocabulary, folder: Path) -> None:
    """One pass over the documents; the folder appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as private:
        new = Path(private) / "new"
        new.mkdir()
        header = _write_splits(corpus, vocabulary, new)
        (new / HEADER).write_text(json.dumps(asdict(header), indent=2) + "\n", encoding="utf-8")
        if open_tokens(folder) is None:  # else another process was first
            shutil.rmtree(folder, ignore_errors=True)  # what is not whole
            new.rename(folder)


def _write_splits(corpus: Corpus, vocabulary: Vocabulary, folder: Path) -> Header:
    dtype = "uint16" if vocabulary.size <= 2**16 else "uint32"
    end = [] if vocabulary.tokenizer.eos is None else [vocabulary.tokenizer.eos]
    tokens, documents = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    digest = hashlib.sha256()
    with ExitStack() as stack:
        ids_of, table_of = (
            {split: stack.enter_context((folder / f"{split}.{kind}").open("wb")) for split in SPLITS}
            for kind in ("ids", "documents")
        )
        for text in filter(None, corpus.read()):
            data, split = text.encode(), SPLITS[is_held_out(text)]
            digest.update(len(data).to_bytes(8) + data)
            ids = np.array(vocabulary.tokenizer.encode(text) + end, dtype)
            tokens[split] += len(ids)
            documents[split] += 1
            ids_of[split].write(ids.tobytes())
            table_of[split].write(np.array([tokens[split], len(data), mark_of(text)], np.int64).tobytes())
    return Header(
        version=VERSION,
        corpus=corpus.name,
        identity=corpus.identity,
        tokenizer=vocabulary.identity,
        vocab_size=vocabulary.size,
        eos=vocabulary.tokenizer.eos,
        bos=vocabulary.tokenizer.bos,
        dtype=dtype,
        data=digest.hexdigest(),
        tokens=tokens,
        documents=documents,
    )
