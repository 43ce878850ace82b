"""The pinned reference workload: one product and one read of memory that never change, timed beside a cell.

Machines drift and are replaced; the ratio of a cell to this, measured in the same process, can be followed over years.
Change nothing here: a changed reference is another VERSION, and histories are not drawn across versions.
"""

from collections.abc import Callable

import torch

VERSION = 1
WIDTH = 384  # of the product, float32: bound by operations
PRODUCTS = 4
READ_FLOATS = 2**23  # 32 MiB: bound by memory where caches are smaller


def make_reference() -> Callable[[], object]:
    """A function that does it once on the default device, its operands made beforehand."""
    left, right = torch.ones(2, WIDTH, WIDTH, dtype=torch.float32)  # (W, W) each
    floats = torch.ones(READ_FLOATS, dtype=torch.float32)

    def run() -> None:
        for _ in range(PRODUCTS):
            torch.mm(left, right)
        floats.sum()

    return run
