"""RWKV, version 4 (arXiv 2305.13048): token shift and the WKV operator; the FFN is that of all systems."""

# B batch, T positions, D model dim

import math
import sys
from dataclasses import dataclass
from typing import Literal, Self, cast

import torch
from torch import Tensor, nn

from models import wkv
from models.config import Config
from models.language_model import LanguageModel, LayerState, Mixer, Positions, state_dtype
from models.linear import Linear
from models.parallel import Split

SYSTEMS = {
    "rwkv": {"summary": "RWKV version 4, TimeMix with the FFN of all systems"},
}


@dataclass(frozen=True)
class RWKVConfig(Config):
    """Decay and token shift tell positions apart: nothing is rotated."""

    rotary: Literal["none"] = "none"

    @property
    def mixer_parameters(self) -> int:
        return 4 * self.d_model**2 + 5 * self.d_model


@dataclass
class TimeMixState:
    """The input of the last position (B, D), and the state of WKV (3, B, D), float32 at least."""

    previous: Tensor
    wkv: Tensor

    def tensors(self) -> list[Tensor]:
        return [self.previous, self.wkv]

    def fill_(self, position: int, generator: torch.Generator) -> None:
        for tensor in self.tensors():
            tensor.normal_(generator=generator)
        self.wkv[1].abs_().add_(1)  # weights are positive, the largest is 1

    def sized(self, max_seq_len: int) -> Self:
        return self

    def picked(self, rows: Tensor) -> Self:
        return type(self)(self.previous[rows], self.wkv[:, rows])

    def step_bytes(self, position: int) -> int:
        return 2 * (self.previous.nbytes + self.wkv.nbytes)  # read and written


class TimeMix(Mixer):
    """W_O (sigmoid(r) * WKV(k, v)), each of r, k, v a projection of its own blend of this and the previous input."""

    def __init__(self, config: RWKVConfig) -> None:
        super().__init__()
        width = config.d_model
        self.width = width  # the channels of this rank
        self.time_decay, self.time_first, self.time_mix_r, self.time_mix_k, self.time_mix_v = (
            nn.Parameter(torch.zeros(width)) for _ in range(5)
        )
        self.r_proj, self.k_proj, self.v_proj, self.out_proj = (Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor, positions: Positions, state: LayerState | None = None) -> Tensor:
        """x (B, T, D) -> (B, T, D)"""
        kept = cast(TimeMixState, state or self.init_state(x.shape[0], 1))
        shifted = torch.cat((kept.previous[:, None], x[:, :-1]), dim=1)  # (B, T, D)
        r, k, v = self._rkv(x, shifted)
        y, memory = wkv.chunkwise(k, v, *self._decay_and_bonus(), kept.wkv)
        if state is not None:
            kept.previous.copy_(x[:, -1])
            kept.wkv.copy_(memory)
        out: Tensor = self.out_proj(r * y)
        return out

    def step(self, x: Tensor, positions: Positions, state: LayerState) -> Tensor:
        """x (B, D) -> (B, D)"""
        kept = cast(TimeMixState, state)
        r, k, v = self._rkv(x, kept.previous)
        y, memory = wkv.step(k, v, *self._decay_and_bonus(), kept.wkv)
        kept.previous.copy_(x)
        kept.wkv.copy_(memory)
        out: Tensor = self.out_proj(r * y)
        return out

    def init_state(self, batch_size: int, max_seq_len: int) -> TimeMixState:
        weight = self.k_proj.weight
        previous = torch.zeros(batch_size, weight.shape[0], dtype=weight.dtype, device=weight.device)
        memory = wkv.empty_state(batch_size, self.width, state_dtype(weight.dtype), weight.device)
        return TimeMixState(previous, memory)

    def split(self) -> Split:
        parameters = ("time_decay", "time_first")
        columns = ("r_proj", "k_proj", "v_proj")
        return Split(("width",), columns, ("out_proj",), parameters, only_projections=False)

    def capture_limit(self, state: LayerState) -> int:
        return sys.maxsize

    @torch.no_grad()
    def initialise(self, layer: int, n_layers: int) -> None:
        """RWKV-LM's start of layer ``layer`` = 0, 1, ...: slow to fast decays, deeper layers blend in less of the past.

        Only the values' projection, made orthogonal here, starts random: r and k start constant and the output 0.
        """
        width = self.time_decay.shape[0]
        channel = torch.arange(width, dtype=torch.float64, device=self.time_decay.device)  # (D,)
        depth, height = layer / max(n_layers - 1, 1), 1 - layer / n_layers  # 0 to 1, 1 to almost 0
        mix_k = (channel / width) ** height
        self.time_decay.copy_(-5 + 8 * (channel / max(width - 1, 1)) ** (0.7 + 1.3 * depth))
        self.time_first.copy_(math.log(0.3) + 0.5 * ((channel + 1) % 3 - 1))
        self.time_mix_k.copy_(mix_k)
        self.time_mix_v.copy_(mix_k + 0.3 * depth)
        self.time_mix_r.copy_((channel / width) ** (0.5 * height))
        for projection in (self.r_proj, self.k_proj, self.out_proj):
            projection.weight.zero_()
        basis, triangle = torch.linalg.qr(self.v_proj.weight.to(state_dtype(self.v_proj.weight.dtype)))
        self.v_proj.weight.copy_(basis * triangle.diagonal().sign())  # without the signs not uniform

    def _rkv(self, x: Tensor, previous: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x and the input one position before (..., D) -> sigmoid(r), k, v (..., D)"""
        change = x - previous
        blends = (torch.addcmul(previous, change, mix) for mix in (self.time_mix_r, self.time_mix_k, self.time_mix_v))
        r, k, v = (project(y) for project, y in zip((self.r_proj, self.k_proj, self.v_proj), blends, strict=True))
        return r.sigmoid(), k, v

    def _decay_and_bonus(self) -> tuple[Tensor, Tensor]:
        """w = -e^time_decay and u = time_first (D,), in the dtype of the sums."""
        dtype = state_dtype(self.time_decay.dtype)
        return -self.time_decay.to(dtype).exp(), self.time_first.to(dtype)


class RWKV(LanguageModel):
    """Training form and prefill in chunks, steps recurrent."""

    config_class = RWKVConfig

    def make_mixer(self) -> Mixer:
        return TimeMix(cast(RWKVConfig, self.config))

    @property
    def training_form(self) -> str:
        return "chunkwise"

    def _initialise(self) -> None:
        super()._initialise()
        if self.embedding.weight.device.type != "meta":
            for layer, block in enumerate(self.blocks):
                cast(TimeMix, block.mixer).initialise(layer, self.config.n_layers)


MODEL = RWKV
