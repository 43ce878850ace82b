"""The peer torchscale: RetNet by the paper's authors, microsoft/torchscale, from the package index."""

# B batch, T positions, H heads, K key dim, V value dim of a head

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from models.language_model import State
from models.peers.adapter import PeerModel
from models.retnet import RetNetConfig

PEER = {
    "summary": "RetNet by the paper's authors, microsoft/torchscale 0.3.0",
    "requirements": ["torchscale==0.3.0"],
    "dependencies": False,  # they pin releases of 2021 and 2023, and nothing of theirs is called
    "stubs": {"fairscale.nn": ["checkpoint_wrapper", "wrap"], "timm.models.layers": ["drop_path"]},
    "rows": {"torchscale": "RetNet of microsoft/torchscale, its recurrent form"},
    "twin": {
        "name": "retnet-torchscale",
        "summary": "RetNet as torchscale has it: RMSNorm, SwiGLU, gamma of eq. 8; twin of torchscale",
        "system": "retnet",
        "config": {"norm": "rmsnorm", "group_norm": "rmsnorm", "ffn": "swiglu", "gamma": "eq8"},
    },
}

CHUNK_SIZE = 512  # its own default; longer prompts are read chunkwise, shorter ones in parallel form


@dataclass
class IncrementalState:
    """One layer of ``incremental_state``: the sum (B, H, V, K) of k v and its scale (H,), both replaced by every step.

    Zeros compute what an absent state computes.
    """

    entries: dict[str, Tensor]

    def tensors(self) -> list[Tensor]:
        return list(self.entries.values())

    def fill_(self, position: int, generator: torch.Generator) -> None:
        memory, scale = self.tensors()
        memory.normal_(generator=generator)
        scale.fill_(position)  # that of gamma 1

    def sized(self, max_seq_len: int) -> Self:
        return self

    def picked(self, rows: Tensor) -> Self:
        memory, scale = self.tensors()
        return type(self)(dict(zip(self.entries, (memory[rows], scale.clone()), strict=True)))

    def step_bytes(self, position: int) -> int:
        return 2 * sum(tensor.nbytes for tensor in self.tensors())  # read and written


class TorchscaleRetNet(PeerModel):
    """``RetNetDecoder``. It cannot read a prompt into a state (its issue 62): a prefill gives logits alone."""

    layout = "torchscale-retnet"
    distribution = "torchscale"
    prefill_form = f"forward without a state, chunkwise in chunks of {CHUNK_SIZE} beyond that length, else parallel"

    def make(self) -> nn.Module:
        config = cast(RetNetConfig, self.config)
        module = import_module("torchscale.architecture.retnet")
        arguments = import_module("torchscale.architecture.config").RetNetConfig(
            vocab_size=config.vocab_size,
            decoder_embed_dim=config.d_model,
            decoder_value_embed_dim=config.n_heads * config.d_v,
            decoder_retention_heads=config.n_heads,
            decoder_ffn_embed_dim=config.d_ffn,
            decoder_layers=config.n_layers,
            activation_fn="swish",
            layernorm_eps=config.norm_eps,
            recurrent_chunk_size=CHUNK_SIZE,
        )
        with torch.device("meta"):
            decoder: nn.Module = module.RetNetDecoder(
                arguments, embed_tokens=nn.Embedding(config.vocab_size, config.d_model)
            )
        decoder.retnet_rel_pos = module.RetNetRelPos(arguments)  # angles and decays
        return decoder

    @property
    def embedding(self) -> nn.Embedding:
        return cast(nn.Embedding, self.theirs.embed_tokens)

    def prefill(self, tokens: Tensor) -> tuple[Tensor, None]:
        self.theirs.chunkwise_recurrent = tokens.shape[1] > CHUNK_SIZE
        features, _ = self.theirs(tokens, features_only=True)  # (B, T, D)
        return self.theirs.output_layer(features[:, -1]), None

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        self.theirs.chunkwise_recurrent = False  # else it pads the one token to a chunk
        history = token[:, None].expand(-1, state.position + 1)  # of which it reads the length and the last token
        layers = {index: cast(IncrementalState, layer).entries for index, layer in enumerate(state.layers)}
        logits, _ = self.theirs(history, incremental_state=layers)  # (B, 1, V)
        state.position += 1
        return logits[:, -1], state

    def init_state(self, batch_size: int, max_seq_len: int) -> State:
        config, weight = cast(RetNetConfig, self.config), self.embedding.weight
        shape = (batch_size, config.n_heads, config.d_v, config.d_k)

        def empty() -> dict[str, Tensor]:
            memory = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
            return {"prev_key_value": memory, "scale": memory.new_zeros(config.n_heads)}

        return State([IncrementalState(empty()) for _ in range(config.n_layers)])

    def set_norm_eps(self, eps: float) -> None:
        norm: Any = import_module("torchscale.component.rms_norm").RMSNorm
        for module in self.theirs.modules():
            if isinstance(module, norm):
                module.eps = eps


MODEL = TorchscaleRetNet
