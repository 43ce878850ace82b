"""The pinned reference workloads: products and reads of memory that never change, timed beside a cell.

A decode step is bound by reading memory and suffers from what others read as no product does, so its reference reads
alone; that of everything else multiplies and reads.

Machines drift and are replaced; the ratio of a cell to this, measured in the same process, can be followed over years.
Change nothing here: a changed reference is another VERSION, and histories are not drawn across versions.
"""

from collections.abc import Callable

import torch

VERSION = 1
WIDTH = 384  # of the product, float32: bound by operations
PRODUCTS = 4
READ_FLOATS = 2**23  # 32 MiB: bound by memory where caches are smaller


def make_reference(workload: str) -> Callable[[], object]:
    """A function that does it once on the default device, its operands made beforehand."""
    left, right = torch.ones(2, WIDTH, WIDTH, dtype=torch.float32)  # (W, W) each
    floats = torch.ones(READ_FLOATS, dtype=torch.float32)

    def read() -> None:
        floats.sum()

    def multiply_and_read() -> None:
        for _ in range(PRODUCTS):
            torch.mm(left, right)
        floats.sum()

    return read if workload == "decode" else multiply_and_read
