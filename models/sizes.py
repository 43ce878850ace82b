"""The sizes that every system shares, so that comparisons are matched by construction."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Width and depth of a model; every system gives each layer 12 d_model^2 parameters."""

    d_model: int
    n_layers: int

    @property
    def layer_parameters(self) -> int:
        """Those of all layers, within 1 %; embedding and head are not among them."""
        return 12 * self.d_model**2 * self.n_layers


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


def rank(size: str) -> int:
    """The place of a size among all, the smallest first; -1 for what is none of them."""
    return list(SIZES).index(size) if size in SIZES else -1
