"""The probes of the machine do what they say: they read the whole buffer, and all products are the same product."""

from typing import cast

import pytest
import torch

from retbench.devices import Device
from retbench.measure.limits import Limit, fastest, products, readers
from tests.retbench.conftest import Clock

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("nbytes", [1, 2**20, 2**20 + 5000])
def test_a_probe_reads_whole_rows_of_about_what_was_asked_for(nbytes: int) -> None:
    limits = readers(nbytes)

    (amount,) = {limit.amount for limit in limits}
    assert 0 < amount <= max(nbytes, 4 * 4096)
    assert amount > nbytes - 4 * 4096


def test_a_probe_sees_every_value_of_its_buffer() -> None:
    found = {limit.name: torch.as_tensor(limit.run()) for limit in readers(2**20)}

    assert found["torch.sum fp32"] == found["torch.mv fp32"].sum() == 2 * found["torch.dot fp32"] == 2**18
    assert found["torch.amax fp32"] == 1
    assert found["torch.amax uint8"] == 128  # 1.0 is the bytes 0 0 128 63


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_products_are_of_one_size_and_those_of_a_weight_agree(dtype: torch.dtype) -> None:
    limits = {limit.name: limit for limit in products(32, 64, dtype)}
    results = {name: cast(torch.Tensor, limit.run()) for name, limit in limits.items()}

    assert {limit.amount for limit in limits.values()} == {2 * 32 * 64 * 256}
    for result in results.values():
        torch.testing.assert_close(result, results["torch.mm"], rtol=2e-2, atol=1e-1)


def test_the_fastest_is_the_one_of_the_least_time(clock: Clock) -> None:
    def taking(milliseconds: int) -> Limit:
        def run() -> None:
            clock.now_ns += milliseconds * 10**6

        return Limit(f"{milliseconds} ms", run, 1)

    assert fastest([taking(3), taking(1), taking(2)], cast(Device, clock)).name == "1 ms"
