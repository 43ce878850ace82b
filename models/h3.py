"""H3 (arXiv 2212.14052): a shift SSM on k, a diagonal SSM on k times v, read by q; FFT form, recurrent decode."""

# B batch, T positions, D model dim, H heads, P channels of a head, N state dim, M = N / 2 complex modes,
# C positions of a block, G blocks

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.config import Config, require_divisible
from models.convolution import convolution
from models.language_model import LanguageModel, LayerState, Mixer, Positions
from models.parallel import Split
from models.precision import Float32Module, parameter_dtype

SYSTEMS = {"h3": {"summary": "H3, S4 between gates: a shift and a diagonal state space model"}}

BLOCK = 128  # positions whose powers of the decay are held at once when states are absorbed and read
STEP_SIZES = (1e-3, 1e-1)  # dt is drawn log-uniformly between them


@dataclass(frozen=True)
class H3Config(Config):
    """H3's paper for language: heads of 8 channels, a state of 64."""

    head_dim: int = 8
    d_state: int = 64

    def __post_init__(self) -> None:
        require_divisible(self.d_model, self.head_dim, "head_dim must divide d_model")
        require_divisible(self.d_state, 2, "d_state holds pairs of modes")
        if self.d_state < 2:
            raise ValueError(f"d_state must be positive, not {self.d_state}")
        super().__post_init__()

    @property
    def n_heads(self) -> int:
        return self.d_model // self.head_dim

    @property
    def mixer_parameters(self) -> int:
        projections = 4 * self.d_model * (self.d_model + 1)
        return projections + self.d_model * (2 * self.d_state + 1) + self.n_heads * (3 * self.d_state + 2)


class ShiftSSM(Float32Module):
    """An SSM whose state is the last N inputs: a filter of N taps, y = C s with s <- shift(s) + B x, and D x."""

    def __init__(self, width: int, d_state: int) -> None:
        super().__init__()
        dtype = parameter_dtype()
        self.B = nn.Parameter(torch.empty(width, 1, d_state, dtype=dtype))
        self.C = nn.Parameter(torch.empty(width, 1, d_state, dtype=dtype))
        self.D = nn.Parameter(torch.empty(width, dtype=dtype))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """B passes the input on undelayed, C is uniform as in a linear layer of N inputs, D normal."""
        bound = self.C.shape[-1] ** -0.5
        self.B.zero_()[..., 0] = 1
        self.C.uniform_(-bound, bound, generator=generator)
        self.D.normal_(generator=generator)

    def taps(self) -> Tensor:
        """(D, N): tap l is sum_n C_n B_(n-l), and D more at l = 0."""
        d_state = self.B.shape[-1]
        spectrum = torch.fft.rfft(self.B, n=2 * d_state).conj() * torch.fft.rfft(self.C, n=2 * d_state)
        taps: Tensor = torch.fft.irfft(spectrum, n=2 * d_state)[:, 0, :d_state]
        return taps + F.pad(self.D[:, None], (0, d_state - 1))


class DiagonalSSM(Float32Module):
    """S <- dA S + x, y = 2 Re(c . S) + D x for M complex modes a head: S4D, bilinear, with dB inside c.

    dA and c are computed in float64: a float32 decay is wrong by its rounding times the position.
    """

    def __init__(self, n_heads: int, d_state: int) -> None:
        super().__init__()
        dtype = parameter_dtype()
        self.log_dt = nn.Parameter(torch.empty(n_heads, dtype=dtype))
        # A mode's two numbers stand in the last dimension. A: log of minus the real part, and the imaginary part.
        self.A, self.B, self.C = (nn.Parameter(torch.empty(n_heads, d_state // 2, 2, dtype=dtype)) for _ in range(3))
        self.D = nn.Parameter(torch.empty(n_heads, dtype=dtype))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """S4D-Lin: A = -1/2 + i pi n, B = 1, C complex normal; dt log-uniform, D normal."""
        low, high = map(math.log, STEP_SIZES)
        self.log_dt.uniform_(low, high, generator=generator)
        self.A[..., 0] = math.log(0.5)
        self.A[..., 1] = math.pi * torch.arange(self.A.shape[1], device=self.A.device)
        self.B.copy_(torch.tensor([1.0, 0.0]))
        self.C.normal_(std=0.5**0.5, generator=generator)
        self.D.normal_(generator=generator)

    def discretised(self) -> tuple[Tensor, Tensor]:
        """log dA and c = C dB (H, M), complex128."""
        dt = self.log_dt.double().exp()[:, None]
        log_real, imaginary = self.A.double().unbind(-1)
        half_step = torch.complex(-log_real.exp(), imaginary) * dt / 2
        decay = (1 + half_step) / (1 - half_step)
        c = torch.view_as_complex(self.C.double()) * torch.view_as_complex(self.B.double()) * dt / (1 - half_step)
        return (decay + 1e-300).log(), c  # a decay of 0 has a finite log: its power 0 is still 1

    def kernel(self, log_decay: Tensor, c: Tensor, length: int) -> Tensor:
        """K (H, T) with K_l = 2 Re sum c dA^l, and D more at l = 0: from powers of two levels, T^1/2 of each."""
        block = 1 << (length - 1).bit_length() // 2
        coarse = c[:, None] * powers(log_decay * block, range(-(-length // block)))  # (H, G, M)
        fine = powers(log_decay, range(block))  # (H, C, M)
        kernel = self._read(coarse, fine).flatten(1)[:, :length]
        skip: Tensor = F.pad(self.D[:, None], (0, length - 1))
        return kernel + skip

    def response(self, log_decay: Tensor, c: Tensor, state: Tensor, length: int) -> Tensor:
        """What a state (B, H, P, M) before the first position adds to each output: (B, H, P, T)."""
        block = min(BLOCK, length)
        coarse = powers(log_decay * block, range(-(-length // block))).to(state.dtype)  # (H, G, M)
        fine = c[:, None] * powers(log_decay, range(1, block + 1))  # (H, C, M)
        states = state[..., None, :] * coarse[:, None]  # (B, H, P, G, M), at the blocks' starts
        outputs = self._read(states.flatten(2, 3), fine)  # (B, H, P G, C)
        return outputs.view(*state.shape[:3], -1)[..., :length]

    def absorb(self, log_decay: Tensor, x: Tensor, state: Tensor) -> Tensor:
        """The state (B, H, P, M) after reading x (B, H, P, T)."""
        length = x.shape[-1]
        block = min(BLOCK, length)
        count = -(-length // block)
        fine = _pairs(powers(log_decay, range(block - 1, -1, -1)), self.D.dtype)  # (H, C, 2M)
        coarse = powers(log_decay * block, range(count - 1, -1, -1)).to(state.dtype)  # (H, G, M)
        blocks = F.pad(x, (count * block - length, 0)).reshape(*x.shape[:2], -1, block)  # (B, H, P G, C)
        added = torch.view_as_complex((blocks @ fine).view(*x.shape[:3], count, -1, 2))  # (B, H, P, G, M)
        return state * powers(log_decay, [length]).to(state.dtype) + (added * coarse[:, None]).sum(3)

    def _read(self, left: Tensor, right: Tensor) -> Tensor:
        """2 Re sum_M left right: left (..., H, G, M), right (H, C, M) -> (..., H, G, C) in the parameters' dtype."""
        return _pairs(left, self.D.dtype) @ _pairs(2 * right.conj(), self.D.dtype).mT


def powers(log_decay: Tensor, exponents: range | list[int]) -> Tensor:
    """dA to the exponents: log_decay (H, M) -> (H, len(exponents), M)."""
    steps = torch.tensor(list(exponents), dtype=torch.float64, device=log_decay.device)
    return (log_decay[:, None] * steps[:, None]).exp()


def _pairs(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Complex (..., M) -> real (..., 2M), the two numbers of a mode side by side."""
    return torch.view_as_real(x.resolve_conj()).flatten(-2).to(dtype)


@dataclass
class H3State:
    """The last inputs of the shift SSM and the modes of the diagonal one; beside them the SSMs as a step needs them.

    What a step needs is computed from the weights when the state is made: it counts as its memory, once a batch.
    """

    past: Tensor  # (B, D, N - 1)
    modes: Tensor  # (B, H, P, P, M) complex: channels of k, channels of v
    taps: Tensor  # (D, N), the newest last
    decay: Tensor  # (H, M) complex, dA
    readout: Tensor  # (H, 2M), pairs of 2 conj(c)
    skip: Tensor  # (H,), D

    def tensors(self) -> list[Tensor]:
        return [self.past, self.modes, self.taps, self.decay, self.readout, self.skip]

    def fill_(self, position: int, generator: torch.Generator) -> None:
        self.past.normal_(generator=generator)
        torch.view_as_real(self.modes).normal_(generator=generator)

    def sized(self, max_seq_len: int) -> Self:
        return self

    def picked(self, rows: Tensor) -> Self:
        return type(self)(self.past[rows], self.modes[rows], self.taps, self.decay, self.readout, self.skip)

    def step_bytes(self, position: int) -> int:
        return sum(tensor.nbytes for tensor in (*self.tensors(), self.past, self.modes))  # those two are written too


class H3Mixer(Mixer):
    """y_t = q_t . SSM(shift(k) v)_t for each head, projected, with biases."""

    def __init__(self, config: H3Config) -> None:
        super().__init__()
        self.config = config
        self.n_heads = config.n_heads  # of this rank
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(config.d_model, config.d_model) for _ in range(4)
        )
        self.shift = ShiftSSM(config.d_model, config.d_state)
        self.ssm = DiagonalSSM(config.n_heads, config.d_state)

    def initialise(self, generator: torch.Generator) -> None:
        """All but the matrices of the projections."""
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.zeros_(projection.bias)
        self.shift.initialise(generator)
        self.ssm.initialise(generator)

    def forward(self, x: Tensor, positions: Positions, state: LayerState | None = None) -> Tensor:
        """x (B, T, D) -> (B, T, D) by FFT; with a state, that state answers and absorbs beside it."""
        kept, dtype = cast(H3State | None, state), self.ssm.D.dtype
        q, k, v = (
            projection(x).mT.to(dtype, memory_format=torch.contiguous_format)  # (B, D, T)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        k = self._shifted(k, kept)
        q, k, v = (y.view(len(x), self.n_heads, -1, x.shape[1]) for y in (q, k, v))  # (B, H, P, T)
        out = sum(self._attended(q, k, v, kept, resumed=bool(positions.start > 0)))
        projected: Tensor = self.out_proj(cast(Tensor, out).flatten(1, 2).mT.to(x.dtype))
        return projected

    def step(self, x: Tensor, positions: Positions, state: LayerState) -> Tensor:
        """x (B, D) -> (B, D), recurrent form."""
        kept = cast(H3State, state)
        q, k, v = (proj(x).to(kept.past.dtype) for proj in (self.q_proj, self.k_proj, self.v_proj))  # (B, D)
        window = torch.cat((kept.past, k[..., None]), dim=-1)  # (B, D, N)
        kept.past.copy_(window[..., 1:])
        k = (window * kept.taps).sum(-1)  # (B, D)
        q, k, v = (y.view(len(x), self.n_heads, -1) for y in (q, k, v))  # (B, H, P)
        kv = k[..., None] * v[:, :, None]  # (B, H, P, P)
        modes = kept.modes.mul_(kept.decay[:, None, None])
        modes.real.add_(kv[..., None])
        pairs = torch.view_as_real(modes).flatten(-2).flatten(2, 3)  # (B, H, PP, 2M)
        y = (pairs @ kept.readout[..., None]).view_as(kv) + kept.skip[:, None, None] * kv  # (B, H, P, P)
        out: Tensor = self.out_proj((q[..., None] * y).sum(2).flatten(1).to(x.dtype))
        return out

    def split(self) -> Split:
        parameters = [
            f"{name}.{key}" for name in ("shift", "ssm") for key, _ in self.get_submodule(name).named_parameters()
        ]
        return Split(("n_heads",), ("q_proj", "k_proj", "v_proj"), ("out_proj",), tuple(parameters))

    @torch.no_grad()
    def init_state(self, batch_size: int, max_seq_len: int) -> H3State:
        config, skip = self.config, self.ssm.D
        log_decay, c = self.ssm.discretised()
        modes = (batch_size, self.n_heads, config.head_dim, config.head_dim, config.d_state // 2)
        complex_dtype = skip.dtype.to_complex()
        return H3State(
            past=skip.new_zeros(batch_size, self.n_heads * config.head_dim, config.d_state - 1),
            modes=skip.new_zeros(modes, dtype=complex_dtype),
            taps=self.shift.taps().flip(-1),
            decay=log_decay.exp().to(complex_dtype),
            readout=_pairs(2 * c.conj(), skip.dtype),
            skip=skip.clone(),
        )

    def capture_limit(self, state: LayerState) -> int:
        return sys.maxsize

    def _shifted(self, k: Tensor, kept: H3State | None) -> Tensor:
        """k (B, D, T) after the shift SSM; keeps the last inputs."""
        taps, length = self.shift.taps(), k.shape[-1]
        before = taps.shape[-1] - 1
        window = torch.cat((kept.past, k), dim=-1) if kept else F.pad(k, (before, 0))  # (B, D, N - 1 + T)
        if kept:
            kept.past.copy_(window[..., length:])
        return convolution(taps, length + before, length)(window)

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, kept: H3State | None, resumed: bool) -> Iterator[Tensor]:
        """q, k, v (B, H, P, T) -> for each channel of q and k its share (B, H, P, T) of the output.

        One channel at a time: all P x P products at once are slower and P times as large.
        """
        ssm, length = self.ssm, q.shape[-1]
        log_decay, c = ssm.discretised()
        convolve = convolution(ssm.kernel(log_decay, c, length)[:, None], length, length)
        for channel in range(self.config.head_dim):
            kv = k[:, :, channel, None] * v  # (B, H, P, T)
            y = convolve(kv)
            if kept:
                modes = kept.modes[:, :, channel]  # (B, H, P, M)
                if resumed:
                    y = y + ssm.response(log_decay, c, modes, length)
                modes.copy_(ssm.absorb(log_decay, kv, modes))
            yield q[:, :, channel, None] * y


class H3(LanguageModel):
    """Trains by FFT, decodes as a recurrence."""

    config_class = H3Config

    def make_mixer(self) -> Mixer:
        return H3Mixer(cast(H3Config, self.config))

    @property
    def training_form(self) -> str:
        return "fft-convolution"

    def step_weights_bytes(self) -> int:
        """Without the SSMs' own: a step reads what the state holds in their place."""
        mixers = [cast(H3Mixer, block.mixer) for block in self.blocks]
        unread = [tensor for mixer in mixers for ssm in (mixer.shift, mixer.ssm) for tensor in ssm.parameters()]
        return super().step_weights_bytes() - sum(tensor.nbytes for tensor in unread)

    def _initialise(self) -> None:
        super()._initialise()
        device = self.embedding.weight.device
        if device.type != "meta":
            generator = torch.Generator(device).manual_seed(~self.config.seed)  # not the numbers of the matrices again
            for block in self.blocks:
                cast(H3Mixer, block.mixer).initialise(generator)


MODEL = H3
