"""Linear Transformer (arXiv 2006.16236): causal attention with the feature map elu + 1, chunkwise and recurrent."""

# B batch, T positions, D model dim, H heads, K key and value dim of a head

import sys
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor

from models import retention
from models.config import Config, attention_heads, require_divisible
from models.language_model import LanguageModel, LayerState, Mixer, Positions, state_dtype
from models.linear import Linear
from models.parallel import Split
from models.rotary import rotate

SYSTEMS = {
    "linear-transformer": {
        "summary": "Linear Transformer, elu + 1 attention, chunkwise in training and recurrent in decoding",
    },
}

EPSILON = 1e-6  # added to the normaliser, as in the authors' code


@dataclass(frozen=True)
class LinearTransformerConfig(Config):
    """Heads as in the Transformer. q and k are rotated before the feature map, which keeps scores positive."""

    n_heads: int = 0  # 0: head dim 64 below d_model 2048, else 128
    chunk_size: int = 128

    def __post_init__(self) -> None:
        if self.n_heads == 0:
            object.__setattr__(self, "n_heads", attention_heads(self.d_model))
        super().__post_init__()
        require_divisible(self.d_model, self.n_heads, "n_heads must divide d_model")
        require_divisible(self.d_head, 2, "the head dim must be even for the rotation")
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size must be positive, not {self.chunk_size}")

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def mixer_parameters(self) -> int:
        return 4 * self.d_model**2


@dataclass
class LinearAttentionState:
    """S, and z as its last column (B, H, K, K + 1), float32 at least: sums of phi(k)^T v and of phi(k)."""

    memory: Tensor

    def tensors(self) -> list[Tensor]:
        return [self.memory]

    def fill_(self, position: int, generator: torch.Generator) -> None:
        self.memory.uniform_(generator=generator)  # positive, as sums of features are

    def sized(self, max_seq_len: int) -> Self:
        return self

    def picked(self, rows: Tensor) -> Self:
        return type(self)(self.memory[rows])

    def step_bytes(self, position: int) -> int:
        return 2 * self.memory.nbytes  # read and written


def feature_map(x: Tensor) -> Tensor:
    """phi(x) = elu(x) + 1 in a form that keeps its small values: in bf16 elu(-6) + 1 is 0."""
    return x.clamp(max=0).exp() + x.relu()


def chunkwise(q: Tensor, k: Tensor, v: Tensor, memory: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Eq. 9 after a prefix: q, k (B, H, T, K), v (B, H, T, V), memory (B, H, K, V + 1) -> y (B, H, T, V), new memory.

    This is retention without decay whose values have a column of ones more: its last column is the normaliser.
    """
    log_gamma = torch.zeros(q.shape[1], dtype=torch.float64, device=q.device)
    values = retention.with_row_sums(v)  # (B, H, T, V + 1)
    out, memory = retention.chunkwise(feature_map(q), feature_map(k), values, log_gamma, memory, chunk_size)
    return _normalise(out), memory


def step_(q: Tensor, k: Tensor, v: Tensor, memory: Tensor) -> Tensor:
    """Eq. 18 to 20, one position that updates ``memory`` in place: q, k (B, H, K), v (B, H, V) -> y (B, H, V)."""
    q, k, v = (x.to(memory.dtype) for x in (q, k, v))
    memory.addcmul_(feature_map(k)[..., None], retention.with_row_sums(v)[:, :, None])
    return _normalise((feature_map(q)[:, :, None] @ memory).squeeze(2))


def _normalise(out: Tensor) -> Tensor:
    """(..., V + 1) -> (..., V)"""
    return out[..., :-1] / (out[..., -1:] + EPSILON)


class LinearAttention(Mixer):
    """y_n = phi(q_n) S_n / (phi(q_n) z_n + epsilon), S_n and z_n sums over m <= n; no biases."""

    def __init__(self, config: LinearTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.n_heads = config.n_heads  # of this rank
        self.q_proj = Linear(config.d_model, config.d_model, bias=False)
        self.k_proj = Linear(config.d_model, config.d_model, bias=False)
        self.v_proj = Linear(config.d_model, config.d_model, bias=False)
        self.out_proj = Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x: Tensor, positions: Positions, state: LayerState | None = None) -> Tensor:
        """x (B, T, D) -> (B, T, D)"""
        kept = cast(LinearAttentionState, state or self.init_state(x.shape[0], x.shape[1]))
        y, memory = chunkwise(*self._qkv(x, positions), kept.memory, self.config.chunk_size)  # (B, H, T, K)
        if state:
            kept.memory.copy_(memory)
        out: Tensor = self.out_proj(y.transpose(1, 2).flatten(-2))
        return out

    def step(self, x: Tensor, positions: Positions, state: LayerState) -> Tensor:
        """x (B, D) -> (B, D)"""
        q, k, v = (y.squeeze(2) for y in self._qkv(x[:, None], positions))  # (B, H, K)
        y = step_(q, k, v, cast(LinearAttentionState, state).memory)  # (B, H, K)
        out: Tensor = self.out_proj(y.flatten(-2).to(x.dtype))
        return out

    def split(self) -> Split:
        return Split(("n_heads",), ("q_proj", "k_proj", "v_proj"), rows=("out_proj",))

    def init_state(self, batch_size: int, max_seq_len: int) -> LinearAttentionState:
        weight, config = self.q_proj.weight, self.config
        shape = (batch_size, self.n_heads, config.d_head, config.d_head + 1)
        return LinearAttentionState(torch.zeros(shape, dtype=state_dtype(weight.dtype), device=weight.device))

    def capture_limit(self, state: LayerState) -> int:
        return sys.maxsize

    def _qkv(self, x: Tensor, positions: Positions) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D) -> q, k, v (B, H, T, K), q and k rotated"""
        q, k, v = (
            projection(x).view(*x.shape[:2], self.n_heads, -1).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = (rotate(y, positions.cos, positions.sin, self.config.rotary) for y in (q, k))
        return q, k, v

    def reads_in_pieces(self, positions: Positions) -> bool:
        return True


class LinearTransformer(LanguageModel):
    """``chunk_size`` of the config is the chunk of training and prefill."""

    config_class = LinearTransformerConfig

    def make_mixer(self) -> Mixer:
        return LinearAttention(cast(LinearTransformerConfig, self.config))

    @property
    def training_form(self) -> str:
        return "chunkwise"

    @property
    def d_rotary(self) -> int:
        return cast(LinearTransformerConfig, self.config).d_head

    @property
    def notes(self) -> dict[str, object]:
        return super().notes | {"chunk_size": cast(LinearTransformerConfig, self.config).chunk_size}


MODEL = LinearTransformer
