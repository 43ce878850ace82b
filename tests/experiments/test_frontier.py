"""``retbench inference --frontier``: what fits under a limit of memory is what the plan says, within 3 percent."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from experiments.inference import GIB, frontier_cells
from retbench.devices import Device
from retbench.errors import UsageError
from retbench.measure import Model, Task
from retbench.measure.frontier import _fits, _largest
from retbench.record import Record
from retbench.report.frontier_table import frontier_table
from retbench.spec import MAX_SEQ_LEN, Cell
from tests.experiments.conftest import run

SWEEP = "inference --frontier --size tiny --dtype bf16 --device cpu --threads 1 --seq-len 1k --batch-size 8"
FLOAT32 = "inference --frontier --size mini --dtype fp32 --device cpu --threads 2 --seq-len 1k --batch-size 1"


class Clock:
    left_s = 1.0


class Timed:
    deadline = Clock()


@dataclass
class FakeDevice:
    """A device of which a limit of memory asks."""

    name: str
    free: int
    total: int = 0

    def free_bytes(self) -> int:
        return self.free

    def describe(self) -> dict[str, str | int]:
        return {"memory_bytes": self.total}


def limits(device: FakeDevice, given: int | None = None) -> list[int | None]:
    """Of two cells that a frontier is asked of."""
    cell = Cell("retnet", "tiny", "frontier", 64, 1, "fp32", "cpu", 1, mem_limit_bytes=given)
    cells = frontier_cells([cell, replace(cell, system="transformer")], cast(Device, device))
    return [cell.mem_limit_bytes for cell in cells]


def test_the_default_limit_is_the_same_whatever_is_free_so_that_the_same_command_finds_its_records() -> None:
    total = 15 * GIB + 2**20

    assert limits(FakeDevice("cpu", 9 * GIB, total)) == limits(FakeDevice("cpu", 12 * GIB, total)) == [7 * GIB] * 2
    assert limits(FakeDevice("cuda", 79 * GIB + 5)) == limits(FakeDevice("cuda", 79 * GIB + 2**20)) == [79 * GIB] * 2
    assert limits(FakeDevice("cpu", 9 * GIB, total), given=12345) == [12345] * 2


@pytest.mark.parametrize(
    "device", [FakeDevice("cpu", 6 * GIB, 15 * GIB), FakeDevice("cpu", GIB, GIB), FakeDevice("cuda", 5)]
)
def test_a_default_limit_that_is_not_free_is_refused(device: FakeDevice) -> None:
    with pytest.raises(UsageError, match=r"are free: say how much with --mem-limit"):
        limits(device)


@pytest.mark.parametrize("start", [1, 90, 100, 110, 1000])
@pytest.mark.parametrize("edge", [0, 1, 99, 100, 1000])
def test_bisection_finds_the_edge_from_wherever_it_starts(start: int, edge: int) -> None:
    found, tries = _largest(lambda n: n <= edge, start, 1000, Timed())  # type: ignore[arg-type]

    assert edge - max(1, edge // 256) < found <= edge or found == edge == 0
    assert tries <= 20


@dataclass
class Libraried:
    """A process whose libraries keep so many bytes from the first step that gets them: it is device, model and state.

    Weights take 10 bytes, a state one a position and sequence; a library that gets nothing crashes.
    """

    library: int
    kept: int = 0
    bound: int = 0
    config: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(vocab_size=8))

    def limit_memory(self, limit_bytes: int, held_bytes: int = 0) -> None:
        self.bound = self.weights_bytes() + self.kept - held_bytes + limit_bytes

    def synchronize(self) -> None: ...

    def weights_bytes(self) -> int:
        return 10

    def init_state(self, batch_size: int, seq_len: int) -> "Libraried":
        if self.weights_bytes() + self.kept + batch_size * seq_len > self.bound:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        self.state = batch_size * seq_len
        return self

    def fill_(self, position: int) -> None: ...

    def step(self, token: None, state: "Libraried") -> None:
        missing = self.library - self.kept
        assert self.weights_bytes() + self.kept + self.state + missing <= self.bound, "crashed"
        self.kept += missing


@pytest.mark.parametrize("library", [0, 5, 2**20])
def test_what_a_library_keeps_is_not_the_cells_and_it_finds_room(library: int) -> None:
    process = Libraried(library)
    cell = Cell("retnet", "tiny", "frontier", 64, 1, "fp32", "cpu", 1, mem_limit_bytes=100)
    task = cast(Task, SimpleNamespace(cell=cell, device=process, tokens=lambda vocab_size, batch_size: None))

    fits = [_fits(cast(Model, process), task, seq_len, 2) for seq_len in (45, 46, 2**27, 45)]

    assert fits == [True, False, False, True]
    assert process.kept == library


@pytest.mark.slow
def test_the_frontier_in_float32_is_that_of_the_plan_without_the_buffers_of_products(tmp_path: Path) -> None:
    words = [
        *FLOAT32.split(),
        "--systems",
        "transformer-concat-cache,linear-transformer,hyena",
        "--mem-limit",
        "256MiB",
    ]
    done = run(tmp_path, *words, "--format", "jsonl")

    records = [Record.from_json(line) for line in done.stdout.splitlines()]
    assert [record.status for record in records] == ["ok", "ok", "ok"], done.stderr
    for record in records:
        for name in ("largest_batch_size", "longest_seq_len"):
            assert record.metrics[name] == pytest.approx(record.predicted[name], rel=0.02, abs=1)


@pytest.mark.slow
def test_the_frontier_of_a_limit_of_memory_is_that_of_the_plan(tmp_path: Path) -> None:
    words = [*SWEEP.split(), "--systems", "retnet,transformer-flash", "--mem-limit", "200MiB", "--format", "jsonl"]
    done = run(tmp_path, *words)

    records = [Record.from_json(line) for line in done.stdout.splitlines()]
    assert [record.status for record in records] == ["ok", "ok"], done.stderr
    for record in records:
        for name in ("largest_batch_size", "longest_seq_len"):
            assert record.metrics[name] == pytest.approx(record.predicted[name], rel=0.03)
    retnet, transformer = (record.metrics for record in records)
    assert retnet["longest_seq_len"] == MAX_SEQ_LEN > 10 * transformer["longest_seq_len"]
    table = frontier_table(records)
    assert [row[6].value for row in table.rows] == [retnet["largest_batch_size"], transformer["largest_batch_size"]]


def test_peers_take_no_part(tmp_path: Path) -> None:
    done = run(tmp_path, *SWEEP.split(), "--peer", "torchscale")

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
