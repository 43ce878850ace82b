"""Transformer: pre-norm causal softmax attention with a KV cache, in the backends eager, sdpa and flash-attn."""

# B batch, T positions, D model dim, H query heads, G key-value heads, K head dim

import math
from dataclasses import dataclass
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn

from models import attention
from models.config import Config, attention_heads, require_divisible
from models.language_model import LanguageModel, LayerState, Mixer, Positions, segments
from models.linear import Linear
from models.native.decoder import MixerShape
from models.parallel import Split
from models.rotary import rotate

SYSTEMS = {
    "transformer": {
        "summary": "Transformer, eager softmax attention, preallocated KV cache",
        "config": {"attention": "eager"},
    },
    "transformer-flash": {
        "summary": "Transformer, FlashAttention, preallocated KV cache",
        "config": {"attention": "flash"},
        "model_types": ["transformer", "llama"],
    },
    "transformer-concat-cache": {
        "summary": "Transformer, eager softmax attention, KV cache concatenated at every step (code of 2023)",
        "config": {"attention": "eager", "kv_cache": "concatenated"},
    },
}


@dataclass(frozen=True)
class TransformerConfig(Config):
    """The paper's Transformer by default; rmsnorm, swiglu, half-split and n_kv_heads make today's Llama."""

    n_heads: int = 0  # 0: head dim 64 below d_model 2048, else 128
    n_kv_heads: int = 0  # 0: n_heads
    attention: Literal["eager", "flash", "sdpa", "flash-attn"] = "eager"  # flash: flash-attn or sdpa, see attention.py
    kv_cache: Literal["preallocated", "concatenated"] = "preallocated"

    def __post_init__(self) -> None:
        if self.n_heads == 0:
            object.__setattr__(self, "n_heads", attention_heads(self.d_model))
        if self.n_kv_heads == 0:
            object.__setattr__(self, "n_kv_heads", self.n_heads)
        require_divisible(self.d_model, self.n_heads, "n_heads must divide d_model")
        require_divisible(self.n_heads, self.n_kv_heads, "n_kv_heads must divide n_heads")
        require_divisible(self.d_head, 2, "the head dim must be even for the rotation")
        super().__post_init__()

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def heads(self) -> tuple[int, int, int]:
        """Query heads, key-value heads, dim of each."""
        return self.n_heads, self.n_kv_heads, self.d_head

    @property
    def mixer_parameters(self) -> int:
        return 2 * self.d_model * (self.d_model + self.n_kv_heads * self.d_head)


@dataclass
class KVCache:
    """Keys and values (B, G, capacity, K) of the tokens read, written in place; a full cache doubles."""

    keys: Tensor
    values: Tensor

    def append(self, k: Tensor, v: Tensor, start: int | Tensor) -> tuple[Tensor, Tensor]:
        """Writes k, v (B, G, T, K) at ``start`` and returns all keys and values so far (B, G, start + T, K).

        At a start on the device one position is written, and the whole cache is returned.
        """
        if isinstance(start, Tensor):
            return self.keys.index_copy_(2, start, k), self.values.index_copy_(2, start, v)
        end = start + k.shape[2]
        self.reserve(end)
        self.keys[:, :, start:end] = k
        self.values[:, :, start:end] = v
        return self.keys[:, :, :end], self.values[:, :, :end]

    def reserve(self, length: int) -> None:
        """Makes room for ``length`` tokens, at least doubling when there is none."""
        if length > self.keys.shape[2]:
            grow = max(length, 2 * self.keys.shape[2]) - self.keys.shape[2]
            self.keys, self.values = (nn.functional.pad(x, (0, 0, 0, grow)) for x in (self.keys, self.values))

    def tensors(self) -> list[Tensor]:
        return [self.keys, self.values]

    def fill_(self, position: int, generator: torch.Generator) -> None:
        if position > self.keys.shape[2]:
            raise ValueError(f"{position} tokens do not fit in a cache of {self.keys.shape[2]}")
        for tensor in self.tensors():
            # One random token repeated: drawing every value of a long cache takes longer than measuring it.
            token = torch.randn(tensor[:, :, :1].shape, generator=generator, dtype=tensor.dtype, device=tensor.device)
            tensor[:, :, :position] = token

    def sized(self, max_seq_len: int) -> Self:
        batch_size, heads, _, dim = self.keys.shape
        shape = (batch_size, heads, min(max_seq_len, self.keys.shape[2]), dim)
        keys, values = (tensor.flatten()[: math.prod(shape)].view(shape) for tensor in self.tensors())
        return type(self)(keys, values)

    def picked(self, rows: Tensor) -> Self:
        return type(self)(self.keys[rows], self.values[rows])

    def step_bytes(self, position: int) -> int:
        batch_size, heads, _, dim = self.keys.shape
        return 2 * batch_size * heads * dim * self.keys.itemsize * (position + 1)


class ConcatenatedCache(KVCache):
    """The cache of most code of 2023: every step copies all keys and values. A baseline only."""

    def append(self, k: Tensor, v: Tensor, start: int | Tensor) -> tuple[Tensor, Tensor]:
        self.keys = torch.cat((self.keys[:, :, :start], k), dim=2)
        self.values = torch.cat((self.values[:, :, :start], v), dim=2)
        return self.keys, self.values

    def fill_(self, position: int, generator: torch.Generator) -> None:
        batch_size, heads, _, dim = self.keys.shape
        self.keys, self.values = (x.new_empty(batch_size, heads, position, dim) for x in self.tensors())
        super().fill_(position, generator)


class CausalAttention(Mixer):
    """Multi-head attention with rotary positions and grouped key-value heads, no biases."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.n_heads, self.n_kv_heads = config.n_heads, config.n_kv_heads  # of this rank
        d_kv = config.n_kv_heads * config.d_head
        self.q_proj = Linear(config.d_model, config.d_model, bias=False)
        self.k_proj = Linear(config.d_model, d_kv, bias=False)
        self.v_proj = Linear(config.d_model, d_kv, bias=False)
        self.out_proj = Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x: Tensor, positions: Positions, state: LayerState | None = None) -> Tensor:
        """x (B, T, D) -> (B, T, D)"""
        q, k, v = self._qkv(x, positions)
        if state is not None:
            k, v = cast(KVCache, state).append(k, v, positions.start)  # (B, G, S, K)
        filled = positions.start + 1 if isinstance(positions.start, Tensor) else None
        out: Tensor = self.out_proj(self._attend(q, k, v, filled))
        return out

    def prefill_(self, x: Tensor, norm: nn.Module, positions: Positions, state: LayerState) -> None:
        """Projects in segments; attention itself sees all queries at once."""
        cache, end = cast(KVCache, state), cast(int, positions.start) + x.shape[1]
        if isinstance(cache, ConcatenatedCache):  # a baseline: it concatenates once
            super().prefill_(x, norm, positions, state)
            return
        cache.reserve(end)
        queries = x.new_empty(x.shape[0], self.n_heads, x.shape[1], self.config.d_head)  # (B, H, T, K)
        for rows, piece in segments(positions):
            queries[:, :, rows], k, v = self._qkv(norm(x[:, rows]), piece)
            cache.append(k, v, piece.start)
        attended = self._attend(queries, cache.keys[:, :, :end], cache.values[:, :, :end])  # (B, T, D)
        for rows, _ in segments(positions):
            x[:, rows].add_(self.out_proj(attended[:, rows]))

    def compiled_part(self) -> str:
        return "_qkv"

    def split(self) -> Split:
        return Split(("n_heads", "n_kv_heads"), ("q_proj", "k_proj", "v_proj"), rows=("out_proj",))

    def _qkv(self, x: Tensor, positions: Positions) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D) -> q (B, H, T, K), k and v (B, G, T, K); q and k rotated"""
        q, k, v = (
            projection(x).view(*x.shape[:2], -1, self.config.d_head).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = (rotate(y, positions.cos, positions.sin, self.config.rotary) for y in (q, k))
        return q, k, v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, filled: Tensor | None = None) -> Tensor:
        """As ``Attention``, heads joined (B, T, D)."""
        backend = attention.resolve(self.config.attention, q.device, q.dtype, *self.config.heads)
        return attention.BACKENDS[backend](q, k, v, filled).transpose(1, 2).flatten(-2)

    def step(self, x: Tensor, positions: Positions, state: LayerState) -> Tensor:
        """x (B, D) -> (B, D)"""
        return self.forward(x[:, None], positions, state).squeeze(1)

    def init_state(self, batch_size: int, max_seq_len: int) -> KVCache:
        config, weight = self.config, self.q_proj.weight
        concatenated = config.kv_cache == "concatenated"
        shape = (batch_size, self.n_kv_heads, 0 if concatenated else max_seq_len, config.d_head)
        cache = ConcatenatedCache if concatenated else KVCache
        return cache(*(torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in range(2)))

    def capture_limit(self, state: LayerState) -> int:
        return 0 if isinstance(state, ConcatenatedCache) else cast(KVCache, state).keys.shape[2]


class Transformer(LanguageModel):
    """``config.attention`` names the backend of training and prefill."""

    config_class = TransformerConfig

    def make_mixer(self) -> Mixer:
        return CausalAttention(cast(TransformerConfig, self.config))

    @property
    def d_rotary(self) -> int:
        return cast(TransformerConfig, self.config).d_head

    def native_mixer(self, frequencies: Tensor) -> MixerShape | None:
        config = cast(TransformerConfig, self.config)
        if config.kv_cache == "concatenated":
            return None  # a baseline: it stays as slow as it was
        return MixerShape(config.n_heads, config.n_kv_heads, config.d_head, config.d_head, frequencies)

    @property
    def backend(self) -> str:
        config, weight = cast(TransformerConfig, self.config), self.embedding.weight
        return attention.resolve(config.attention, weight.device, weight.dtype, *config.heads)

    def backend_refusals(self) -> dict[str, str]:
        config, weight = cast(TransformerConfig, self.config), self.embedding.weight
        if config.attention != "flash" or not weight.is_cuda:
            return {}
        reason = attention.flash_attn_refusal(weight.device, weight.dtype, *config.heads)
        return {"flash-attn": reason} if reason else {}

    @property
    def decode_form(self) -> str:
        return "kv-cache"


MODEL = Transformer
