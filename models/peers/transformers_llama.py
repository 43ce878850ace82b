"""The peer transformers-llama: LlamaForCausalLM of Hugging Face transformers, with its default and its static cache."""

# B batch, T positions, G key-value heads, K head dim

from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.language_model import State
from models.peers.adapter import PeerModel
from models.transformer import ConcatenatedCache, KVCache, TransformerConfig

PEER = {
    "summary": "LlamaForCausalLM of Hugging Face transformers 5.23.0, SDPA",
    "requirements": ["transformers==5.23.0"],
    "dependencies": True,
    "stubs": {},
    "rows": {
        "transformers-llama": "LlamaForCausalLM of transformers, its default cache, which concatenates",
        "transformers-llama-static": "LlamaForCausalLM of transformers, its preallocated StaticCache",
    },
    "twin": {
        "name": "llama",
        "summary": "Transformer as Llama has it: RMSNorm, SwiGLU, half-split rotation; twin of transformers-llama",
        "system": "transformer-flash",
        "config": {"norm": "rmsnorm", "ffn": "swiglu", "rotary": "half-split", "rope_spacing": "exclusive"},
    },
}

STATIC = "transformers-llama-static"


@dataclass
class CacheState(State):
    """The layers of our caches, and the project's cache, which works on the same tensors; the first step makes it."""

    cache: Any = None

    def sized(self, max_seq_len: int) -> "CacheState":
        return CacheState(super().sized(max_seq_len).layers)


class Llama(PeerModel):
    """``LlamaForCausalLM`` with DynamicCache or, in the row of that name, StaticCache of just the length asked for."""

    layout = "llama"
    distribution = "transformers"
    prefill_form = "into a new cache"

    def make(self) -> nn.Module:
        config = cast(TransformerConfig, self.config)
        module = import_module("transformers")
        shape = module.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.d_ffn,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
            tie_word_embeddings=False,
            attn_implementation="sdpa",
        )
        with torch.device("meta"):
            model: nn.Module = module.LlamaForCausalLM(shape)
        llama = import_module("transformers.models.llama.modeling_llama")
        model.get_submodule("model").rotary_emb = llama.LlamaRotaryEmbedding(shape)
        return model

    @property
    def static(self) -> bool:
        return self.row == STATIC

    @property
    def decode_form(self) -> str:
        return "static cache" if self.static else "concatenated cache"

    @property
    def embedding(self) -> nn.Embedding:
        return cast(nn.Embedding, self.theirs.get_input_embeddings())

    def prefill(self, tokens: Tensor) -> tuple[Tensor, State]:
        state = self.init_state(*tokens.shape)
        return self._read(tokens, state), state

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        return self._read(token[:, None], cast(CacheState, state)), state

    def init_state(self, batch_size: int, max_seq_len: int) -> CacheState:
        config, weight = cast(TransformerConfig, self.config), self.embedding.weight
        kind = KVCache if self.static else ConcatenatedCache
        shape = (batch_size, config.n_kv_heads, max_seq_len if self.static else 0, config.d_head)
        zeros = partial(torch.zeros, shape, dtype=weight.dtype, device=weight.device)
        return CacheState([kind(zeros(), zeros()) for _ in range(config.n_layers)])

    def set_norm_eps(self, eps: float) -> None:
        for module in self.theirs.modules():
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon = eps

    def cast(self, dtype: torch.dtype) -> None:
        """The weights alone: the project keeps the table of its rotation in float32."""
        for parameter in self.theirs.parameters():
            parameter.data = parameter.data.to(dtype)

    def _read(self, tokens: Tensor, state: CacheState) -> Tensor:
        """Reads tokens (B, T) into the cache -> logits of the last (B, V)."""
        caches = cast(list[KVCache], state.layers)
        state.cache = state.cache or self._new_cache(caches[0].keys)
        for theirs, ours in zip(state.cache.layers, caches, strict=True):
            self._point(theirs, ours, state.position)
        out = self.theirs(input_ids=tokens, past_key_values=state.cache, use_cache=True, logits_to_keep=1)
        for theirs, ours in zip(state.cache.layers, caches, strict=True):
            ours.keys, ours.values = theirs.keys, theirs.values  # (B, G, S, K)
        state.position += tokens.shape[1]
        logits: Tensor = out.logits[:, -1]
        return logits

    def _new_cache(self, keys: Tensor) -> Any:
        """The project's cache with layers that are told of no tensors yet; keys (B, G, S, K) for what they will be."""
        module, config = import_module("transformers"), self.theirs.config
        if self.static:
            cache = module.StaticCache(config, max_cache_len=keys.shape[2])
        else:
            cache = module.DynamicCache(config=config)
        for layer in cache.layers:
            layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
        return cache

    def _point(self, theirs: Any, ours: KVCache, position: int) -> None:
        """Makes a layer of the project's cache hold ``position`` tokens of ours."""
        if self.static:
            theirs.keys, theirs.values = ours.keys, ours.values
            theirs.cumulative_length.fill_(position)
        else:
            theirs.keys, theirs.values = ours.keys[:, :, :position], ours.values[:, :, :position]


MODEL = Llama
