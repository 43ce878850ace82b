"""What was stored stays stored: through kills, full disks, torn and hostile lines, and other processes."""

import fcntl
import multiprocessing as mp
import os
import random
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retbench.errors import UsageError
from retbench.record import Record
from retbench.store import Contents, Store, StoreError, latest, results_path
from tests.retbench import EXAMPLE

processes = mp.get_context("spawn")  # a fork would inherit the threads of torch
LINE = EXAMPLE.to_json().encode() + b"\n"


def keyed(key: str, samples: int = 3) -> Record:
    return replace(EXAMPLE, key=key, samples={"step_ns": list(range(samples))})


def keys(contents: Contents) -> list[str]:
    return [record.key for record in contents.records]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(results_path(tmp_path, "machine", "inference"))


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of contents alone that would wait for the disk a thousand times."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def started(work: Callable[..., None], path: Path, number: int) -> tuple[SpawnProcess, Connection]:
    """A process at work and the end on which it is heard, which ends when the process does."""
    receiver, sender = processes.Pipe(duplex=False)
    child = processes.Process(target=work, args=(path, number, sender))
    child.start()
    sender.close()
    return child, receiver


@contextmanager
def file_of(content: bytes) -> Iterator[Store]:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "inference.jsonl")
        store.path.write_bytes(content)
        yield store


def identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def torn_path(store: Store) -> Path:
    return store.path.with_name("inference.jsonl.torn")


def test_a_file_belongs_to_a_machine_and_an_experiment() -> None:
    assert results_path(Path("out"), "machine", "inference") == Path("out/results/machine/inference.jsonl")


def test_records_are_read_in_the_order_they_were_appended(store: Store) -> None:
    records = tuple(keyed(str(number)) for number in range(3))

    problems = [store.append(record) for record in records]

    assert problems == [(), (), ()]
    assert store.read() == Contents(records, ())
    assert store.path.read_bytes() == b"".join(record.to_json().encode() + b"\n" for record in records)
    assert list(store.path.parent.iterdir()) == [store.path]


def test_a_file_that_is_not_there_holds_nothing_and_is_not_made(store: Store, tmp_path: Path) -> None:
    assert store.read() == Contents((), ())
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_holds_nothing() -> None:
    with file_of(b"") as store:
        assert store.read() == Contents((), ())
        assert not torn_path(store).exists()


def test_the_latest_record_of_a_key_wins() -> None:
    first, other, last = keyed("a"), keyed("b"), keyed("a", samples=9)

    assert latest([first, other, last]) == {"a": last, "b": other}


def test_a_record_that_json_cannot_hold_leaves_the_file_alone(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.append(replace(EXAMPLE, metrics={"tpot_ms": float("nan")}))

    assert list(tmp_path.iterdir()) == []


def test_file_and_folders_are_synced_before_append_returns(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(identity(os.fstat(descriptor))))

    store.append(EXAMPLE)
    store.append(EXAMPLE)

    machine, results, root = store.path.parents[:3]
    expected = (root, results, machine, store.path, store.path)
    assert synced == [identity(path.stat()) for path in expected]


# Torn lines


@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize("by", ["read", "append"])
def test_a_line_torn_at_any_byte_is_set_aside_and_nothing_is_glued_to_it(store: Store, by: str) -> None:
    before = keyed("before").to_json().encode() + b"\n"
    store.path.parent.mkdir(parents=True)
    for length in range(1, len(LINE)):
        torn_path(store).unlink(missing_ok=True)
        store.path.write_bytes(before + LINE[:length])

        problems = store.read().problems if by == "read" else ()
        problems += store.append(keyed("after"))

        assert problems == (f"{store.path}: torn last line of {length} bytes moved to {torn_path(store)}",)
        assert torn_path(store).read_bytes() == LINE[:length] + b"\n"
        contents = store.read()
        assert keys(contents) == ["before", "after"]
        assert contents.problems == ()


def test_torn_lines_are_collected_one_below_the_other(store: Store) -> None:
    for piece in (b'{"a', b'{"b', b"\x00\x00"):
        store.append(EXAMPLE)
        with store.path.open("ab") as file:
            file.write(piece)
        store.read()

    assert torn_path(store).read_bytes() == b'{"a\n{"b\n\x00\x00\n'
    assert len(store.read().records) == 3


@pytest.mark.parametrize("broken", [LINE[:99] + b"\x00" * 50 + LINE[149:], b"\xff\n", b"[" * 100_000 + b"\n"], ids=len)
def test_a_last_line_that_is_not_json_is_torn_despite_its_line_break(broken: bytes) -> None:
    with file_of(LINE + broken) as store:
        contents = store.read()

        assert contents.records == (EXAMPLE,)
        assert [f"of {len(broken)} bytes moved to" in problem for problem in contents.problems] == [True]
        assert store.path.read_bytes() == LINE
        assert torn_path(store).read_bytes() == broken


def test_a_torn_line_stays_where_it_is_when_it_cannot_be_set_aside() -> None:
    with file_of(LINE + LINE[:100]) as store:
        torn_path(store).mkdir()

        contents = store.read()

        assert contents.records == (EXAMPLE,)
        assert [problem.startswith(f"{store.path}:2: skipped, ") for problem in contents.problems] == [True]
        with pytest.raises(StoreError, match="Is a directory"):
            store.append(EXAMPLE)
        assert store.path.read_bytes() == LINE + LINE[:100]


# Lines that are no records


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not a record"),
        (b"\xff\xfe", "can't decode byte 0xff"),
        (b"\x00" * 100, "not a record"),
        (b"[1, 2]", "not a record"),
        (b"[" * 100_000, "recursion"),
        (b"9" * 5000, "integer"),
        (b"x" * 10_000_000, "not a record"),
        (LINE[:-20], "not a record"),
        (
            LINE.strip().replace(b'"schema_version": 1', b'"schema_version": 7'),
            "schema version 7, this retbench reads 1",
        ),
        (LINE.strip().replace(b'"ok"', b'"' + b"x" * 10_000_000 + b'"'), "status must be one of"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_a_bad_line_in_the_middle_is_skipped_and_reported_but_kept(line: bytes, reason: str) -> None:
    content = LINE + line + b"\n" + LINE
    with file_of(content) as store:
        contents = store.read()

        assert contents.records == (EXAMPLE, EXAMPLE)
        assert len(contents.problems) == 1
        assert contents.problems[0].startswith(f"{store.path}:2: skipped, ")
        assert reason in contents.problems[0]
        assert contents.problems[0].isprintable()
        assert len(contents.problems[0]) < len(str(store.path)) + 300
        assert store.path.read_bytes() == content
        assert not torn_path(store).exists()


def test_a_last_line_of_another_schema_version_is_not_torn() -> None:
    content = LINE.replace(b'"schema_version": 1', b'"schema_version": 7')
    with file_of(content) as store:
        problems = store.append(EXAMPLE)

        assert problems == ()
        assert store.path.read_bytes() == content + LINE
        assert store.read().problems == (f"{store.path}:1: skipped, schema version 7, this retbench reads 1",)


def test_empty_lines_are_no_problem() -> None:
    with file_of(b"\n\n" + LINE + b"\n" + LINE + b"\n\n") as store:
        contents = store.read()

        assert contents == Contents((EXAMPLE, EXAMPLE), ())


def test_a_line_of_ten_megabytes_is_a_record_like_any_other(store: Store) -> None:
    big = replace(EXAMPLE, environment={"note": "x" * 10_000_000})

    for record in (EXAMPLE, big, EXAMPLE):
        store.append(record)

    assert store.read() == Contents((EXAMPLE, big, EXAMPLE), ())


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(st.binary(max_size=20) | st.sampled_from([LINE, LINE[:50], b"\x00" * 9, b"\xff", b"\n"]), max_size=6))
def test_no_bytes_of_others_cost_a_record_or_get_lost(pieces: list[bytes]) -> None:
    hostile = b"".join(pieces)
    with file_of(LINE + hostile) as store:
        first = store.read()
        store.append(keyed("after"))
        second = store.read()

        assert first.records[0] == EXAMPLE
        assert second.records == (*first.records, keyed("after"))
        kept = store.path.read_bytes() + (torn_path(store).read_bytes() if torn_path(store).exists() else b"")
        assert all(line in kept.split(b"\n") for line in hostile.split(b"\n"))


# Full disks and forbidden places


def append_under_a_file_size_limit(path: Path, limit: int, answer: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # Python ignores SIGXFSZ, so the write itself fails
    stored = 0
    try:
        while True:
            Store(path).append(keyed(str(stored)))
            stored += 1
    except StoreError as error:
        answer.send((stored, str(error)))


@pytest.mark.parametrize("rest", [0, 1, 200])
def test_a_full_disk_is_an_error_that_costs_no_record(store: Store, rest: int) -> None:
    limit = 3 * len(LINE) + rest  # whole lines alone, or a part of the fourth

    child, receiver = started(append_under_a_file_size_limit, store.path, limit)
    stored, message = receiver.recv()
    child.join()

    reason = f"no room for more than {rest} of {len(LINE)} bytes" if rest else "File too large"
    assert message == f"cannot write {store.path}: {reason}"
    assert stored == 3
    assert store.read() == Contents(tuple(keyed(str(number)) for number in range(3)), ())
    assert not torn_path(store).exists()


def test_a_line_that_cannot_be_synced_is_taken_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.append(EXAMPLE)

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="Input/output error"):
        patch.setattr(os, "fsync", fail)
        store.append(EXAMPLE)

    assert store.path.read_bytes() == LINE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_that_is_always_full_is_an_error() -> None:
    with pytest.raises(StoreError) as caught:
        Store(Path("/dev/full")).append(EXAMPLE)

    assert str(caught.value) == "cannot write /dev/full: No space left on device"


def test_store_errors_are_usage_errors_so_that_the_command_line_says_them_in_one_line() -> None:
    assert issubclass(StoreError, UsageError)


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("mine")
    store = Store(results_path(tmp_path, "machine", "inference"))

    with pytest.raises(StoreError) as checked:
        store.check_writable()
    with pytest.raises(StoreError, match="Not a directory"):
        store.append(EXAMPLE)
    with pytest.raises(StoreError, match="Not a directory"):
        store.read()

    assert str(checked.value) == f"cannot write {store.path}: {tmp_path / 'results'} is not a folder"
    assert (tmp_path / "results").read_text() == "mine"


def test_a_folder_in_place_of_the_file_is_refused(store: Store) -> None:
    store.path.mkdir(parents=True)

    for use in (store.check_writable, store.read, lambda: store.append(EXAMPLE)):
        with pytest.raises(StoreError, match="Is a directory"):
            use()


def test_a_link_to_a_folder_that_is_gone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results").symlink_to(tmp_path / "unmounted")

    with pytest.raises(StoreError, match="results is not a folder"):
        Store(results_path(tmp_path, "machine", "inference")).check_writable()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that takes no files, even from root")
def test_a_place_that_takes_no_files_is_refused() -> None:
    store = Store(results_path(Path("/proc"), "machine", "inference"))

    with pytest.raises(StoreError, match="cannot write /proc/results/machine/inference"):
        store.check_writable()
    with pytest.raises(StoreError, match="cannot write /proc/results/machine/inference"):
        store.append(EXAMPLE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_forbidden_folder_is_refused_but_can_be_read(store: Store) -> None:
    store.append(EXAMPLE)
    store.path.chmod(0o444)
    store.path.parent.chmod(0o555)

    with pytest.raises(StoreError, match="Permission denied"):
        store.check_writable()
    assert store.read() == Contents((EXAMPLE,), ())
    store.path.parent.chmod(0o755)


def test_the_check_leaves_nothing_behind(store: Store, tmp_path: Path) -> None:
    store.check_writable()
    assert list(tmp_path.iterdir()) == []

    store.append(EXAMPLE)
    store.check_writable()

    assert list(store.path.parent.iterdir()) == [store.path]
    assert store.path.read_bytes() == LINE


# Other processes


def append_many(path: Path, name: str, count: int) -> None:
    for number in range(count):
        Store(path).append(keyed(f"{name}-{number}", samples=5000))


def test_processes_that_append_at_once_lose_and_mix_nothing(store: Store) -> None:
    children = [processes.Process(target=append_many, args=(store.path, name, 25)) for name in "abc"]
    for child in children:
        child.start()
    while any(child.is_alive() for child in children):
        assert store.read().problems == ()
        time.sleep(0.01)

    contents = store.read()

    assert contents.problems == ()
    assert not torn_path(store).exists()
    for name in "abc":
        mine = [key for key in keys(contents) if key.startswith(name)]
        assert mine == [f"{name}-{number}" for number in range(25)]


def test_a_line_that_another_process_is_just_writing_is_not_torn(store: Store) -> None:
    store.append(EXAMPLE)
    results: list[Contents] = []
    reader = threading.Thread(target=lambda: results.append(store.read()))

    with store.path.open("ab", buffering=0) as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        writer.write(LINE[:100])
        reader.start()
        reader.join(timeout=0.2)
        assert reader.is_alive()
        writer.write(LINE[100:])
    reader.join()

    assert results == [Contents((EXAMPLE, EXAMPLE), ())]


def test_an_append_waits_for_readers_and_for_writers(store: Store) -> None:
    store.append(EXAMPLE)

    for lock in (fcntl.LOCK_SH, fcntl.LOCK_EX):
        writer = threading.Thread(target=store.append, args=(EXAMPLE,))
        with store.path.open("rb") as other:
            fcntl.flock(other, lock)
            writer.start()
            writer.join(timeout=0.2)
            assert writer.is_alive()
        writer.join()

    assert store.read() == Contents((EXAMPLE,) * 3, ())


def append_until_killed(path: Path, start: int, acknowledged: Connection) -> None:
    while True:
        Store(path).append(keyed(str(start), samples=100_000))
        acknowledged.send(start)
        start += 1


def test_every_acknowledged_record_outlives_a_kill_at_any_moment(store: Store) -> None:
    chance = random.Random(0)
    done = -1
    for _ in range(4):
        child, receiver = started(append_until_killed, store.path, done + 1)
        done = receiver.recv()
        time.sleep(chance.uniform(0, 0.2))
        child.kill()
        child.join()
        with suppress(EOFError):
            while True:
                done = receiver.recv()

        stored = [int(key) for key in keys(store.read())]

        assert set(stored) >= set(range(done + 1))
        assert stored == sorted(stored)
