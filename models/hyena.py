"""Hyena of order 2 (arXiv 2302.10866): gates around a long convolution whose filter a small network computes.

Training and prefill by FFT. Decode is the exact convolution with all that was read: O(t) a token, the paper's O(N).
"""

# B batch, T positions, D model dim, L capacity of a cache, E features of a position

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import Config
from models.convolution import convolution
from models.language_model import LanguageModel, LayerState, Mixer, Positions, State
from models.parallel import Split, summed_gradient
from models.precision import Float32Module, parameter_dtype

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

SYSTEMS = {"hyena": {"summary": "Hyena of order 2, decode by a cached convolution"}}

SHORT = 3  # taps of the short convolution
SEGMENT = 512  # positions of a cache's filter that are computed at once, more where there would be many segments
MOST_SEGMENTS = 8  # each takes some thirty calls, which a GPU waits for


@dataclass(frozen=True)
class HyenaConfig(Config):
    """The defaults are those of Hyena's language models on the Pile; l_max is as long as any text it can read."""

    l_max: int = 32768  # part of the function: the filter is one of position / l_max
    filter_width: int = 64
    filter_features: int = 33  # the position, and cosine and sine of it at several frequencies
    filter_frequency: float = 14.0  # of the filter network's sines, at the start

    def __post_init__(self) -> None:
        if self.l_max < 2 or self.filter_width < 1:
            raise ValueError(
                f"l_max must be at least 2 and filter_width positive, not {self.l_max} and {self.filter_width}"
            )
        if self.filter_features < 3 or self.filter_features % 2 == 0:
            raise ValueError(f"filter_features must be odd and at least 3, not {self.filter_features}")
        super().__post_init__()

    @property
    def mixer_parameters(self) -> int:
        width, d_model = self.filter_width, self.d_model
        network = (self.filter_features + 1) * width + 2 * (width + 1) * width + width * d_model + width
        return 4 * d_model * (d_model + 1) + 3 * d_model * (SHORT + 1) + network + d_model


def position_features(n_features: int, l_max: int, position: Tensor) -> tuple[Tensor, Tensor]:
    """Of positions (T,) float64: features (T, E) and time (T,), 0 at position 0 and 1 at the last of l_max; float64.

    The features are time, then cosine and minus sine of 2 pi position / l_max times frequencies from 1e-4 up.
    """
    bands = (n_features - 1) // 2
    frequencies = torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64, device=position.device)
    angles = 2 * math.pi / l_max * position[:, None] * frequencies  # (T, bands)
    time = position / (l_max - 1)
    return torch.cat((time[:, None], angles.cos(), -angles.sin()), dim=1), time


def window_rates(d_model: int, device: torch.device) -> Tensor:
    """(D,) float64: how fast the window of each channel decays, to 1/100 within 1.5 to 0.3 times l_max positions."""
    return torch.linspace(math.log(100) / 1.5, math.log(100) / 0.3, d_model, dtype=torch.float64, device=device)


class HyenaFilter(Float32Module):
    """The long filter h (D, T): a network of sines over the position, times a decaying window; D at position 0."""

    def __init__(self, config: HyenaConfig) -> None:
        super().__init__()
        self.config = config
        self.mesh: DeviceMesh | None = None  # of the ranks that share the channels out
        dtype, width = parameter_dtype(), config.filter_width
        widths = (config.filter_features, width, width, width)
        self.hidden = nn.ModuleList(nn.Linear(*pair, dtype=dtype) for pair in pairwise(widths))
        self.frequency = nn.Parameter(torch.empty(width, dtype=dtype))  # one, shared by all sines
        self.output = nn.Linear(width, config.d_model, bias=False, dtype=dtype)
        self.D = nn.Parameter(torch.empty(config.d_model, dtype=dtype))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Uniform by fan-in, D normal."""
        for linear in (*cast(list[nn.Linear], list(self.hidden)), self.output):
            bound = linear.in_features**-0.5
            for parameter in linear.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
        self.frequency.fill_(self.config.filter_frequency)
        self.D.normal_(generator=generator)

    def forward(self, length: int) -> Tensor:
        """(D, T) in the dtype of the parameters, of the channels of this rank."""
        return self._network(self._positions(0, length)) + F.pad(self.D[:, None], (0, length - 1))

    @torch.no_grad()
    def newest_last(self, length: int) -> Tensor:
        """The same without a gradient in the order in which a cache is read, in little more memory than it takes."""
        filter = self.D.new_empty(self.D.shape[0], length)
        segment = max(SEGMENT, -(-length // MOST_SEGMENTS))
        for start in range(0, length, segment):
            end = min(start + segment, length)
            filter[:, start:end] = self._network(self._positions(length - end, length - start).flip(0))
        filter[:, -1] += self.D
        return filter

    def _positions(self, start: int, end: int) -> Tensor:
        return torch.arange(start, end, dtype=torch.float64, device=self.D.device)

    def _network(self, position: Tensor) -> Tensor:
        """The filter (D, T) at positions (T,), but for D."""
        config, dtype = self.config, self.D.dtype
        features, time = position_features(config.filter_features, config.l_max, position)
        hidden = features.to(dtype)  # (T, E)
        for linear in self.hidden:
            hidden = torch.sin(self.frequency * linear(hidden))  # (T, width)
        rates = window_rates(config.d_model, time.device)
        if self.mesh is not None:
            hidden = summed_gradient(hidden, self.mesh)
            rates = rates.chunk(self.mesh.size())[self.mesh.get_local_rank()]
        window = (-rates[:, None] * time).to(dtype).exp()  # (D, T)
        return self.output.weight @ hidden.mT * window


class ShortConvolution(Float32Module):
    """A causal convolution of each channel with SHORT taps and a bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, SHORT, dtype=parameter_dtype()))  # the newest last
        self.bias = nn.Parameter(torch.empty(channels, dtype=parameter_dtype()))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Uniform by fan-in, no bias."""
        self.weight.uniform_(-(SHORT**-0.5), SHORT**-0.5, generator=generator)
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """x (channels, B, SHORT - 1 + T), whose first positions came before -> (channels, B, T)."""
        length = x.shape[-1] - SHORT + 1
        taps = self.weight.unbind(-1)  # (channels, 1) each
        y = torch.addcmul(self.bias[:, None, None], x[..., :length], taps[0][..., None])
        for delay in range(1, SHORT):
            y = torch.addcmul(y, x[..., delay : delay + length], taps[delay][..., None])
        return y


@dataclass
class HyenaState:
    """The cache: what the long convolution has read, its filter as far as the cache reaches, the last short inputs.

    Written in place; a full cache doubles. The filter is computed from the weights when the cache is made.
    """

    read: Tensor  # (D, B, L)
    filter: Tensor  # (D, L), that of position 0 last
    past: Tensor  # (3 D, B, SHORT - 1)

    @property
    def capacity(self) -> int:
        return self.read.shape[-1]

    def tensors(self) -> list[Tensor]:
        return [self.read, self.filter, self.past]

    def fill_(self, position: int, generator: torch.Generator) -> None:
        if position > self.capacity:
            raise ValueError(f"{position} tokens do not fit in a cache of {self.capacity}")
        # One random token repeated: drawing every value of a long cache takes longer than measuring it.
        self.read[..., :position] = self.read[..., :1].clone().normal_(generator=generator)
        self.past.normal_(generator=generator)

    def sized(self, max_seq_len: int) -> Self:
        d_model, batch_size, capacity = self.read.shape
        shape = (d_model, batch_size, min(max_seq_len, capacity))
        read = self.read.flatten()[: math.prod(shape)].view(shape)
        return type(self)(read, self.filter[:, -shape[-1] :], self.past)

    def picked(self, rows: Tensor) -> Self:
        return type(self)(self.read[:, rows], self.filter, self.past[:, rows])

    def step_bytes(self, position: int) -> int:
        """What was read and the filter up to here, and the last inputs twice: they are shifted."""
        d_model, batch_size, _ = self.read.shape
        return self.read.itemsize * d_model * (batch_size + 1) * (position + 1) + 2 * self.past.nbytes


class HyenaMixer(Mixer):
    """y = W_o (x0 * (h conv z)) with z = v x1 and x0, x1, v from a projection and a short convolution."""

    def __init__(self, config: HyenaConfig) -> None:
        super().__init__()
        self.width = config.d_model  # the channels of this rank
        self.in_proj = nn.Linear(config.d_model, 3 * config.d_model)
        self.short = ShortConvolution(3 * config.d_model)
        self.filter = HyenaFilter(config)
        self.out_proj = nn.Linear(config.d_model, config.d_model)

    def initialise(self, generator: torch.Generator) -> None:
        """All but the matrices of the projections."""
        for projection in (self.in_proj, self.out_proj):
            nn.init.zeros_(projection.bias)
        self.short.initialise(generator)
        self.filter.initialise(generator)

    def forward(self, x: Tensor, positions: Positions, state: LayerState | None = None) -> Tensor:
        """x (B, T, D) -> (B, T, D) by FFT; with a state, over all that it has read."""
        kept, length = cast(HyenaState | None, state), x.shape[1]
        u = self.in_proj(x).permute(2, 0, 1).to(self.filter.D.dtype)  # (3D, B, T)
        gate, z = self._gate_and_input(u, kept)  # (D, B, T) each
        if kept is None:
            filter = self.filter(length)  # (D, T)
        else:
            z = self._append(kept, z, int(positions.start))  # (D, B, S), S = start + T
            filter = kept.filter[:, -z.shape[-1] :].flip(-1)  # (D, S)
        y = convolution(filter[:, None], z.shape[-1], length)(z)  # (D, B, T)
        out: Tensor = self.out_proj((gate * y).permute(1, 2, 0).to(x.dtype))
        return out

    def step(self, x: Tensor, positions: Positions, state: LayerState) -> Tensor:
        """x (B, D) -> (B, D): one position of the convolution."""
        kept = cast(HyenaState, state)
        u = self.in_proj(x).mT[..., None].to(kept.read.dtype)  # (3D, B, 1)
        gate, z = self._gate_and_input(u, kept)  # (D, B, 1) each
        z = self._append(kept, z, int(positions.start))  # (D, B, S)
        y = (kept.filter[:, None, -z.shape[-1] :] @ z.mT).mT  # (D, B, 1); the other way round is slower at batch 1
        out: Tensor = self.out_proj((gate * y).squeeze(-1).mT.to(x.dtype))
        return out

    @torch.no_grad()
    def init_state(self, batch_size: int, max_seq_len: int) -> HyenaState:
        skip = self.filter.D
        d_model = skip.shape[0]
        return HyenaState(
            read=skip.new_zeros(d_model, batch_size, max_seq_len),
            filter=self.filter.newest_last(max_seq_len),
            past=skip.new_zeros(3 * d_model, batch_size, SHORT - 1),
        )

    def split(self) -> Split:
        parameters = ("short.weight", "short.bias", "filter.output.weight", "filter.D")
        return Split(("width",), ("in_proj",), ("out_proj",), parameters, fused=("in_proj", "short"), fused_count=3)

    def _gate_and_input(self, u: Tensor, kept: HyenaState | None) -> tuple[Tensor, Tensor]:
        """u (3D, B, T) -> x0 and v x1 (D, B, T), after the short convolution; keeps its last inputs."""
        u = torch.cat((kept.past, u), dim=-1) if kept else F.pad(u, (SHORT - 1, 0))
        if kept:
            kept.past.copy_(u[..., -(SHORT - 1) :])
        gate, x1, v = self.short(u).chunk(3)
        return gate, v * x1

    def _append(self, kept: HyenaState, z: Tensor, start: int) -> Tensor:
        """Writes z (D, B, T) at ``start`` and returns all that was read (D, B, start + T)."""
        end = start + z.shape[-1]
        if end > kept.capacity:
            capacity = max(end, min(2 * kept.capacity, self.filter.config.l_max))
            kept.read = F.pad(kept.read, (0, capacity - kept.capacity))
            kept.filter = self.filter.newest_last(capacity)
        kept.read[..., start:end] = z
        return kept.read[..., :end]


class Hyena(LanguageModel):
    """Trains by FFT, decodes with a cache; reads no more than ``config.l_max`` tokens."""

    config_class = HyenaConfig

    def make_mixer(self) -> Mixer:
        return HyenaMixer(cast(HyenaConfig, self.config))

    @property
    def training_form(self) -> str:
        return "fft-convolution"

    @property
    def decode_form(self) -> str:
        return "cached-convolution"

    def keep_part_(self, mesh: "DeviceMesh") -> None:
        super().keep_part_(mesh)
        for block in self.blocks:
            cast(HyenaMixer, block.mixer).filter.mesh = mesh

    def positions(self, start: int | Tensor, length: int) -> Positions:
        self._check_length(int(start) + length)
        return super().positions(start, length)

    def init_state(self, batch_size: int, max_seq_len: int) -> State:
        self._check_length(max_seq_len)
        return super().init_state(batch_size, max_seq_len)

    def step_weights_bytes(self) -> int:
        """Without the filters' own: a step reads the filter from its cache."""
        filters = [cast(HyenaMixer, block.mixer).filter for block in self.blocks]
        unread = sum(tensor.nbytes for filter in filters for tensor in filter.parameters())
        return super().step_weights_bytes() - unread

    def _check_length(self, length: int) -> None:
        l_max = cast(HyenaConfig, self.config).l_max
        if length > l_max:
            raise ValueError(
                f"hyena reads at most l_max = {l_max} tokens, not {length}; l_max is a field of its config"
            )

    def _initialise(self) -> None:
        super()._initialise()
        device = self.embedding.weight.device
        if device.type != "meta":
            generator = torch.Generator(device).manual_seed(~self.config.seed)  # not the numbers of the matrices again
            for block in self.blocks:
                cast(HyenaMixer, block.mixer).initialise(generator)


MODEL = Hyena
