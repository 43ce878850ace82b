"""Floating point operations that a forward pass must make, counted from the config: the floor of prefill and training.

A product (m, k) x (k, n) is 2 m k n; softmax, norms, rotation, gates and decays are left out, being of lower order.
Of causal products only the pairs that are seen are counted. A backward pass makes twice the operations of a forward
pass (one product for the input's gradient, one for the weight's), whatever it computes again.
"""

# T positions, D model dim, H heads, K key dim, V value dim, C chunk size

from models.config import Config
from models.retention import chunkwise_flops
from models.retnet import RetNetConfig
from models.transformer import TransformerConfig


def forward_flops(config: Config, seq_len: int, logits: int) -> int:
    """Of one sequence of T tokens whose last ``logits`` positions get logits; raises NotImplementedError elsewhere.

    Each layer: 2 T (mixer's + FFN's parameters), plus what mixes positions:
    attention  2 H (K + V) for each of the T (T + 1) / 2 pairs of a query and what it sees;
    retention  in chunks of C: ``retention.chunkwise_flops``.
    Head: 2 D vocab_size for each of ``logits``.
    """
    matrices = 2 if config.ffn == "gelu" else 3
    dense = 2 * seq_len * (config.mixer_parameters + matrices * config.d_model * config.d_ffn)
    head = 2 * config.d_model * config.vocab_size * logits
    return config.n_layers * (dense + _mixing_flops(config, seq_len)) + head


def _mixing_flops(config: Config, seq_len: int) -> int:
    if isinstance(config, TransformerConfig):
        pairs = seq_len * (seq_len + 1) // 2  # of a position and what it sees of the others and itself
        return 2 * config.n_heads * 2 * config.d_head * pairs
    if isinstance(config, RetNetConfig):
        return sum(chunkwise_flops(config.n_heads, seq_len, config.d_k, config.d_v, config.chunk_size))
    raise NotImplementedError(f"no formula for the operations of {config.system}")
