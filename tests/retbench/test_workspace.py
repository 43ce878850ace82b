"""What operators of libraries take for themselves: equal calls are asked once, and counted as if they ran alone."""

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from retbench.devices.cpu import DEVICE as CPU
from retbench.measure import workspace
from retbench.measure.ledger import Ledger
from retbench.measure.workspace import Call, most_bytes, peak_with_workspaces

pytestmark = pytest.mark.usefixtures("one_thread")

aten = torch.ops.aten


def product(rows: int, channels: int, dtype: torch.dtype = torch.bfloat16) -> Call:
    with FakeTensorMode():
        x, weight = torch.empty(rows, channels, dtype=dtype), torch.empty(2 * channels, channels, dtype=dtype)
        return Call.of(aten.mm.default, ((x, weight.t()), {}), flops=2 * rows * channels * 2 * channels)


def test_calls_on_operands_alike_are_equal_whatever_is_in_them() -> None:
    with FakeTensorMode():
        fake = torch.empty(3, 8, dtype=torch.bfloat16)
    calls = [Call.of(aten.mm.default, ((x, x.t()), {}), 0) for x in (fake, torch.ones(3, 8).bfloat16())]
    turned = Call.of(aten.mm.default, ((fake, fake.t().contiguous()), {}), 0)

    assert calls[0] == calls[1] != turned
    assert len({*calls, turned}) == 2


@pytest.mark.parametrize(("rows", "channels"), [(1, 64), (300, 256), (64, 1000)])
def test_an_operator_is_counted_as_the_profiler_counts_it_in_a_program(rows: int, channels: int) -> None:
    x, weight = torch.ones(rows, channels).bfloat16(), torch.ones(2 * channels, channels).bfloat16()
    measured = CPU.peak_memory(lambda: None, lambda _: torch.mm(x, weight.t())).tensor_bytes

    assert most_bytes([product(rows, channels)]) == [measured]
    assert measured >= rows * 2 * channels * 2  # the result


def test_asking_leaves_a_surrounding_trace_as_it_is() -> None:
    with FakeTensorMode() as mode:
        assert most_bytes([product(5, 32)])[0] > 0
        assert torch.empty(2).fake_mode is mode  # type: ignore[attr-defined]


def test_a_call_is_asked_once_for_a_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Call] = []
    real = workspace._asked
    monkeypatch.setattr(workspace, "_known", {})
    monkeypatch.setattr(workspace, "_asked", lambda calls: [asked.extend(calls), *real(calls)][1:])

    call = product(7, 48)
    assert most_bytes([call, call]) == most_bytes([call]) * 2
    assert asked == [call]


UNASKED = [product(4, 64, torch.float32), product(2**20, 2**10), replace(product(2**20, 2**9), flops=0)]


@pytest.mark.parametrize("call", UNASKED)
def test_what_takes_nothing_or_long_or_much_memory_is_not_asked(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workspace, "_asked", pytest.fail)

    assert peak_with_workspaces(10, {call: 5}) == 10


def test_the_peak_is_where_most_is_live_with_what_the_operator_takes() -> None:
    small, large = product(1, 64), product(300, 256)
    taken = most_bytes([small, large])

    assert peak_with_workspaces(0, {small: 10**9, large: 0}) == 10**9 + taken[0]
    assert peak_with_workspaces(0, {small: 0, large: 0}) == max(taken)
    assert peak_with_workspaces(10**12, {small: 0, large: 0}) == 10**12


def test_a_ledger_keeps_the_calls_of_libraries_with_the_most_that_was_live() -> None:
    with FakeTensorMode(), Ledger() as ledger:
        x = torch.empty(16, 16, dtype=torch.bfloat16)
        torch.mm(x, x)
        more = torch.empty(100, dtype=torch.uint8)
        torch.mm(x, x).add_(1)
        del more

    (call,) = ledger.calls
    assert call.flops == 2 * 16**3
    assert ledger.calls[call] == 16 * 16 * 2 + 100
    assert call.made()().shape == (16, 16)
