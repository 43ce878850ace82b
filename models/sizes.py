"""The sizes that every system shares, so that comparisons are matched by construction."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Width and depth of a model; every system gives each layer 12 d_model^2 parameters."""

    d_model: int
    n_layers: int


SIZES = {
    "nano": Size(128, 1),
    "tiny": Size(128, 2),
    "micro": Size(192, 3),
    "mini": Size(256, 4),
    "small": Size(768, 12),
    "200m": Size(1024, 16),
    "1.3b": Size(2048, 24),
    "2.7b": Size(2560, 32),
    "6.7b": Size(4096, 32),
    "13b": Size(5120, 40),
}
