"""Where records live: one JSONL file per machine and experiment; appended, fsynced, locked, repaired after a crash."""

import errno
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Literal

from retbench.errors import UsageError
from retbench.locks import lock
from retbench.record import NewerError, Record


class StoreError(UsageError):
    """A file that cannot be read or written: its path and the reason, in one line."""


@dataclass(frozen=True)
class Contents:
    """What a file holds: its records, oldest first, and one line for each thing in it that is not a record.

    ``newer`` are those of the problems that a newer retbench would read.
    """

    records: tuple[Record, ...] = ()
    problems: tuple[str, ...] = ()
    newer: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Problem:
    """A line that is no record, and whether that is because it is of a newer schema."""

    text: str
    newer: bool


def results_path(root: Path, machine: str, experiment: str) -> Path:
    return root / "results" / machine / f"{experiment}.jsonl"


def latest(records: Iterable[Record]) -> dict[str, Record]:
    """Key -> the last record of that key."""
    return {record.key: record for record in records}


@dataclass(frozen=True)
class Store:
    """The records of one file, safe against crashes, full disks and other processes that use the same file."""

    path: Path

    def append(self, record: Record) -> tuple[str, ...]:
        """Puts the record on disk; returns the problems mended on the way. StoreError: the file is as it was."""
        line = record.to_json().encode() + b"\n"
        with self._errors_named("write"):
            _make_folders(self.path.parent)
            with _locked(self.path, "ab+") as file:
                problems = self._set_torn_line_aside(file)
                _write_line(file, line)
        return problems

    def read(self) -> Contents:
        """All records and problems; a torn last line is moved to ``<name>.torn``, other bad lines stay in place."""
        moved: tuple[str, ...] = ()
        with suppress(OSError), _locked(self.path, "rb+") as file:  # not writable: it is reported where it stands
            moved = self._set_torn_line_aside(file)
        with self._errors_named("read"):
            try:
                with _locked(self.path, "rb") as file:
                    lines = file.readall().split(b"\n")
            except FileNotFoundError:
                return Contents()
        found = [self._parse(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
        records = tuple(item for item in found if isinstance(item, Record))
        problems = tuple(item for item in found if isinstance(item, _Problem))
        newer = tuple(problem.text for problem in problems if problem.newer)
        return Contents(records, tuple(problem.text for problem in problems) + moved, newer)

    def check_writable(self) -> None:
        """StoreError when a record could not be appended. Leaves nothing behind: for the moment before a sweep."""
        with self._errors_named("write"):
            if self.path.exists():
                with _locked(self.path, "rb+"):
                    return
            folder = next(parent for parent in self.path.parents if parent.exists() or parent.is_symlink())
            if not folder.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, f"{folder} is not a folder")
            with tempfile.TemporaryFile(dir=folder):  # permission bits say little to root or on a network: try it
                return

    def _parse(self, number: int, line: bytes) -> "Record | _Problem":
        try:
            return Record.from_json(line.decode())
        except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, not a record, or nested without end
            reason = " ".join(str(error).split())[:200]  # it may quote the line
            return _Problem(f"{self.path}:{number}: skipped, {reason}", isinstance(error, NewerError))

    def _set_torn_line_aside(self, file: FileIO) -> tuple[str, ...]:
        """Moves the last line to ``<name>.torn`` if it is torn, so that nothing is glued to it and nothing is lost."""
        line = _last_line(file)
        if not _is_torn(line):
            return ()
        torn_path = self.path.with_name(f"{self.path.name}.torn")
        with _locked(torn_path, "ab+") as torn:
            _write_line(torn, line.removesuffix(b"\n") + b"\n")
        file.truncate(_size(file) - len(line))
        os.fsync(file.fileno())
        return (f"{self.path}: torn last line of {len(line)} bytes moved to {torn_path}",)

    @contextmanager
    def _errors_named(self, verb: Literal["read", "write"]) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"cannot {verb} {self.path}: {error.strerror or error}") from error


@contextmanager
def _locked(path: Path, mode: Literal["rb", "rb+", "ab+"]) -> Iterator[FileIO]:
    """The file without a buffer, for this process alone ("rb": for readers), so that no half-written line is seen."""
    with path.open(mode, buffering=0) as file:
        lock(file, shared=mode == "rb")
        yield file


def _write_line(file: FileIO, line: bytes) -> None:
    """The whole line on disk, or an OSError and the file as it was."""
    size = _size(file)
    try:
        if size == 0:  # it may be new, and a new file is lost in a crash unless its folder is on disk too
            _fsync_folder(Path(file.name).parent)
        written = file.write(line)  # one system call
        if written != len(line):
            raise OSError(errno.ENOSPC, f"no room for more than {written} of {len(line)} bytes")
        os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):  # if this fails too, the next process finds a torn line and sets it aside
            file.truncate(size)
        raise


def _last_line(file: FileIO) -> bytes:
    """The last line with its line break, if it has one; empty for an empty file."""
    size, length = _size(file), 1 << 16
    while True:
        file.seek(max(0, size - length))
        tail = file.readall() if size else b""
        start = tail.rfind(b"\n", 0, -1) + 1  # the last byte may be the line's own break
        if start or length >= size:
            return tail[start:]
        length *= 2


def _is_torn(line: bytes) -> bool:
    """Without its line break, or with it but not JSON: a power cut may keep the end of a line and lose its middle."""
    if not line.endswith(b"\n"):
        return line != b""
    try:
        json.loads(line.decode())
    except (ValueError, RecursionError):
        return line != b"\n"
    return False


def _make_folders(folder: Path) -> None:
    """``mkdir -p`` that survives a power cut."""
    for path in (*reversed(folder.parents), folder):
        if not path.exists():
            path.mkdir(exist_ok=True)
            _fsync_folder(path.parent)


def _fsync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(file: FileIO) -> int:
    return os.fstat(file.fileno()).st_size
