"""LSTM, the paper's "Recurrent NN": one layer of torch's LSTM in the place of attention."""

# B batch, T positions, D model dim

import sys
from dataclasses import dataclass
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import Config
from models.language_model import LanguageModel, LayerState, Mixer, Positions, state_dtype
from models.parallel import Split

SYSTEMS = {
    "lstm": {
        "summary": "LSTM, one position after the other in training too (the paper's Recurrent NN)",
    },
}


@dataclass(frozen=True)
class LSTMConfig(Config):
    """Nothing of its own: inputs, outputs and cells are d_model wide. Order is in the recurrence, not in a rotation."""

    @property
    def mixer_parameters(self) -> int:
        return 8 * self.d_model * (self.d_model + 1)


@dataclass
class LSTMState:
    """The last output h (B, D), in the weights' dtype as it is read, and the cell c (B, D), float32 at least."""

    output: Tensor
    cell: Tensor

    def tensors(self) -> list[Tensor]:
        return [self.output, self.cell]

    def fill_(self, position: int, generator: torch.Generator) -> None:
        self.output.uniform_(-1, 1, generator=generator)
        self.cell.normal_(generator=generator)

    def sized(self, max_seq_len: int) -> Self:
        return self

    def picked(self, rows: Tensor) -> Self:
        return type(self)(self.output[rows], self.cell[rows])

    def step_bytes(self, position: int) -> int:
        return 2 * (self.output.nbytes + self.cell.nbytes)  # read and written


class LSTMMixer(Mixer):
    """i, f, g, o = W x_n + U h_(n-1) + b; c_n = sigmoid(f) c_(n-1) + sigmoid(i) tanh(g); h_n = sigmoid(o) tanh(c_n)."""

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__()
        self.d_model = config.d_model
        self.lstm = nn.LSTM(config.d_model, config.d_model, batch_first=True)
        with torch.no_grad():
            _, _, input_bias, recurrent_bias = self.lstm.all_weights[0]
            input_bias.zero_()[config.d_model : 2 * config.d_model] = 1.0  # forget gates start open
            recurrent_bias.zero_()

    def forward(self, x: Tensor, positions: Positions, state: LayerState | None = None) -> Tensor:
        """x (B, T, D) -> (B, T, D)"""
        kept = cast(LSTMState, state or self.init_state(x.shape[0], x.shape[1]))
        y, (output, cell) = self.lstm(x, (kept.output[None], kept.cell[None].to(x.dtype)))  # (B, T, D), 2 of (1, B, D)
        if state:
            kept.output.copy_(output[0])
            kept.cell.copy_(cell[0])
        return cast(Tensor, y)

    def step(self, x: Tensor, positions: Positions, state: LayerState) -> Tensor:
        """x (B, D) -> (B, D)"""
        # Not by calling nn.LSTM, which on a CPU copies its weights into another layout at every call.
        kept, (w, u, w_bias, u_bias) = cast(LSTMState, state), self.lstm.all_weights[0]
        gates = F.linear(x, w, w_bias) + F.linear(kept.output, u, u_bias)  # (B, 4 D)
        i, f, g, o = gates.to(kept.cell.dtype).chunk(4, dim=-1)  # (B, D) each
        kept.cell.mul_(f.sigmoid()).addcmul_(i.sigmoid(), g.tanh())
        output = (o.sigmoid() * kept.cell.tanh()).to(x.dtype)  # (B, D)
        kept.output.copy_(output)
        return output

    def split(self) -> Split:
        raise NotImplementedError(
            "no tensor parallelism: every channel of an LSTM reads all of the last output, which ranks would have to "
            "exchange at every position"
        )

    def init_state(self, batch_size: int, max_seq_len: int) -> LSTMState:
        weight = self.lstm.all_weights[0][0]
        dtypes = (weight.dtype, state_dtype(weight.dtype))
        output, cell = (torch.zeros(batch_size, self.d_model, dtype=dtype, device=weight.device) for dtype in dtypes)
        return LSTMState(output, cell)

    def capture_limit(self, state: LayerState) -> int:
        return sys.maxsize


class LSTM(LanguageModel):
    """No position embedding: the config's rotary fields do nothing."""

    config_class = LSTMConfig

    def make_mixer(self) -> Mixer:
        return LSTMMixer(cast(LSTMConfig, self.config))

    @property
    def training_form(self) -> str:
        return "recurrent"


MODEL = LSTM
