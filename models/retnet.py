"""RetNet (arXiv 2307.08621): multi-scale retention with a swish gate, in parallel, chunkwise and recurrent form."""

# B batch, T positions, D model dim, H heads, K key dim, V value dim of a head

import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import fla, retention
from models.config import Config, require_divisible
from models.language_model import Constant, LanguageModel, LayerState, Mixer, Positions, state_dtype
from models.linear import Linear
from models.native import chunkwise as native
from models.native import tiles
from models.native.decoder import MixerShape
from models.native.gated_norm import gated_norm
from models.parallel import Split, summed_gradient
from models.rotary import rotate

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

SYSTEMS = {
    "retnet": {
        "summary": "RetNet as the paper's experiments used it",
        "model_types": ["retnet", "torchscale-retnet"],
    },
    "retnet-no-gate": {
        "summary": "RetNet without the swish gate (ablation); the values are as wide as the Transformer's",
        "config": {"gate": False, "value_factor": 1},
    },
    "retnet-no-groupnorm": {
        "summary": "RetNet without the group norm (ablation); rows are scaled as in the paper's section 2.2",
        "config": {"group_norm": "none"},
    },
    "retnet-no-decay": {
        "summary": "RetNet without decay (ablation), gamma = 1",
        "config": {"gamma": "none"},
    },
    "retnet-no-multiscale": {
        "summary": "RetNet with one decay for all heads (ablation), gamma = 127/128",
        "config": {"gamma": "single"},
    },
    "retnet-small-heads": {
        "summary": "RetNet with a quarter of the head dimension (ablation), 64 for 256",
        "config": {"heads_factor": 4},
    },
}

Form = Literal["parallel", "chunkwise", "recurrent"]


@dataclass(frozen=True)
class RetNetConfig(Config):
    """The defaults are the paper's experiments (section 3.1); published checkpoints use eq8 and rmsnorm."""

    n_heads: int = 0  # 0: heads_factor * max(2, d_model / 256), a key dim of 256 at the paper's sizes
    heads_factor: int = 1
    value_factor: int = 2  # value dim of a head / key dim of a head
    gamma: Literal["linspace", "eq8", "single", "none"] = "linspace"
    gate: bool = True
    group_norm: Literal["layernorm", "rmsnorm", "none"] = "layernorm"  # none: the paper's row scalings stay
    group_norm_affine: bool = False  # one weight over the value dim, shared by all heads
    chunk_size: int = 256
    form: Form = "chunkwise"
    retention: Literal["auto", "torch", "fla"] = "auto"  # auto: tiles in bf16, fla-core on CUDA where its probe agrees

    def __post_init__(self) -> None:
        if min(self.chunk_size, self.value_factor, self.heads_factor) < 1:
            raise ValueError("chunk_size, value_factor and heads_factor must be positive")
        if self.n_heads == 0:
            object.__setattr__(self, "n_heads", self.heads_factor * max(2, self.d_model // 256))
        super().__post_init__()
        require_divisible(self.d_model, self.n_heads, "n_heads must divide d_model")
        require_divisible(self.d_k, 2, "the key dim of a head must be even for the rotation")
        if self.group_norm_affine and self.group_norm == "none":
            raise ValueError("group_norm_affine needs a group_norm of layernorm or rmsnorm, not none")

    @property
    def d_k(self) -> int:
        return self.d_model // self.n_heads

    @property
    def d_v(self) -> int:
        return self.d_k * self.value_factor

    @property
    def mixer_parameters(self) -> int:
        wide = 3 if self.gate else 2  # v, out and gate
        return self.d_model * self.d_model * (2 + wide * self.value_factor)


@dataclass
class RetentionState:
    """The recurrent state S (B, H, K, V), float32 at least; without a group norm a column more for the row sums."""

    memory: Tensor

    def tensors(self) -> list[Tensor]:
        return [self.memory]

    def fill_(self, position: int, generator: torch.Generator) -> None:
        self.memory.normal_(generator=generator)

    def sized(self, max_seq_len: int) -> Self:
        return self

    def picked(self, rows: Tensor) -> Self:
        return type(self)(self.memory[rows])

    def step_bytes(self, position: int) -> int:
        return 2 * self.memory.nbytes  # read and written


@dataclass(frozen=True)
class RetentionPositions(Positions):
    """Adds the decays, computed once and shared by all layers."""

    form: Form
    chunk_size: int
    log_gamma: Tensor  # (H,) float64
    gamma: Tensor  # (H,) in the state's dtype
    decay: Tensor | None  # (H, C, C) in the weights' dtype, for the chunkwise form
    backend: str  # of the chunkwise form and the step
    row_scales: Tensor | None  # (T, H) without a group norm, in the state's dtype

    def piece(self, first: int, length: int) -> Self:
        scales = None if self.row_scales is None else self.row_scales[first : first + length]
        return replace(super().piece(first, length), row_scales=scales)


class MultiScaleRetention(Mixer):
    """Eq. 8: (group_norm(retention(X)) * swish(X W_G)) W_O, no biases."""

    def __init__(self, config: RetNetConfig) -> None:
        super().__init__()
        self.config = config
        self.n_heads = config.n_heads  # of this rank
        self.mesh: DeviceMesh | None = None  # of the ranks that share the heads out
        d_values = config.n_heads * config.d_v
        self.q_proj = Linear(config.d_model, config.d_model, bias=False)
        self.k_proj = Linear(config.d_model, config.d_model, bias=False)
        self.v_proj = Linear(config.d_model, d_values, bias=False)
        if config.gate:
            self.g_proj = Linear(config.d_model, d_values, bias=False)
        self.out_proj = Linear(d_values, config.d_model, bias=False)
        self.group_norm_weight = nn.Parameter(torch.ones(config.d_v)) if config.group_norm_affine else None

    def forward(self, x: Tensor, positions: Positions, state: LayerState | None = None) -> Tensor:
        """x (B, T, D) -> (B, T, D) in the form that the positions name."""
        shared, kept = cast(RetentionPositions, positions), cast(RetentionState | None, state)
        memory = kept.memory if kept else self._empty(x.shape[0])
        is_native = shared.form == "chunkwise" and shared.backend == "tiles"
        out, memory = (self._mixed_natively if is_native else self._mixed)(x, shared, memory)  # (B, T, H, V)
        if kept:
            kept.memory.copy_(memory)
        projected: Tensor = self.out_proj(out.flatten(-2))
        return projected

    def _mixed_natively(self, x: Tensor, shared: RetentionPositions, memory: Tensor) -> tuple[Tensor, Tensor]:
        """As ``_mixed``, by ``models.native``."""
        config = self.config
        out, memory = native.chunkwise(
            *self._projected(x),
            rotation=(shared.cos, shared.sin, config.rotary),
            log_gamma=shared.log_gamma,
            state=memory,
            chunk_size=shared.chunk_size,
        )
        if not config.gate or config.group_norm_affine:
            return self._gated(x, self._normalise(out, None)), memory
        gate = self.g_proj(x).view(out.shape)
        return gated_norm(out, gate, config.group_norm == "layernorm", config.norm_eps), memory

    def _mixed(self, x: Tensor, shared: RetentionPositions, memory: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, D) -> what is projected out (B, T, H, V) and the new state, in the form that ``shared`` names."""
        q, k, v = self._qkv(x, shared)
        if shared.form == "parallel":
            out, memory = retention.parallel(q, k, v, shared.log_gamma, memory)
        elif shared.form == "recurrent":
            out, memory = retention.recurrent(q, k, v, shared.log_gamma, memory)
        elif shared.backend == "fla":
            out, memory = fla.chunkwise(q, k, v, shared.log_gamma, memory)
        else:
            out, memory = retention.chunkwise(q, k, v, shared.log_gamma, memory, shared.chunk_size, decay=shared.decay)
        row_scales = None if shared.row_scales is None else shared.row_scales.mT  # (H, T)
        return self._gated(x, self._normalise(out, row_scales).transpose(1, 2)), memory

    def reads_in_pieces(self, positions: Positions) -> bool:
        return cast(RetentionPositions, positions).form != "parallel"

    def compiled_part(self) -> str:
        return "forward"

    def step(self, x: Tensor, positions: Positions, state: LayerState) -> Tensor:
        """x (B, D) -> (B, D), recurrent form."""
        shared, kept = cast(RetentionPositions, positions), cast(RetentionState, state)
        q, k, v = (y.squeeze(2) for y in self._qkv(x[:, None], shared))  # (B, H, K or V)
        if shared.backend == "fla":
            out = fla.recurrent_step_(q, k, v, shared.log_gamma, kept.memory)  # (B, H, V)
        else:
            out = retention.recurrent_step_(q, k, v, shared.gamma, kept.memory)  # (B, H, V)
        projected: Tensor = self.out_proj(self._gated(x, self._normalise(out, shared.row_scales)).flatten(-2))
        return projected

    def init_state(self, batch_size: int, max_seq_len: int) -> RetentionState:
        return RetentionState(self._empty(batch_size))

    def capture_limit(self, state: LayerState) -> int:
        return sys.maxsize

    def split(self) -> Split:
        columns = ("q_proj", "k_proj", "v_proj", *(["g_proj"] if self.config.gate else []))
        return Split(("n_heads",), columns, rows=("out_proj",))

    def _projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D) -> q, k (B, T, H, K), v (B, T, H, V)"""
        q, k, v = (layer(x).view(*x.shape[:2], self.n_heads, -1) for layer in (self.q_proj, self.k_proj, self.v_proj))
        return q, k, v

    def _qkv(self, x: Tensor, positions: Positions) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D) -> q, k (B, H, T, K), v (B, H, T, V), contiguous; q and k rotated, k scaled by K^-1/2.

        Without a group norm v has a column of ones more, for the row sums.
        """
        q, k, v = (projected.transpose(1, 2) for projected in self._projected(x))
        cos, sin, style = positions.cos, positions.sin, self.config.rotary
        q, k = rotate(q, cos, sin, style), rotate(k, cos, sin, style, scale=self.config.d_k**-0.5)
        return q, k, retention.with_row_sums(v) if self.config.group_norm == "none" else v.contiguous()

    def _normalise(self, out: Tensor, row_scales: Tensor | None) -> Tensor:
        """What retention gives, (B, H, T, V) or a step (B, H, V), without a group norm V + 1 -> the same with V.

        ``row_scales`` (H, T), or (1, H) of a step, are there where there is no group norm.
        """
        if row_scales is not None:
            return retention.scale_rows(out, row_scales)
        shape, eps = (self.config.d_v,), self.config.norm_eps
        weight = None if self.group_norm_weight is None else self.group_norm_weight.to(out.dtype)
        if weight is not None and self.mesh is not None:
            weight = summed_gradient(weight, self.mesh)  # all heads share it
        if self.config.group_norm == "rmsnorm":
            return F.rms_norm(out, shape, weight, eps)
        return F.layer_norm(out, shape, weight, None, eps)

    def _gated(self, x: Tensor, out: Tensor) -> Tensor:
        """x (..., D), out (..., H, V) -> (..., H, V) in the dtype of x"""
        out = out.to(x.dtype)
        # In the layout of the first: no copy to flatten it.
        return F.silu(self.g_proj(x)).view(out.shape) * out if self.config.gate else out

    def _empty(self, batch_size: int) -> Tensor:
        weight, config = self.q_proj.weight, self.config
        shape = (batch_size, self.n_heads, config.d_k, config.d_v + (config.group_norm == "none"))
        return torch.zeros(shape, dtype=state_dtype(weight.dtype), device=weight.device)


class RetNet(LanguageModel):
    """``form`` and ``chunk_size`` choose how ``forward`` and ``prefill`` compute; ``step`` is recurrent."""

    config_class = RetNetConfig

    def __init__(self, config: RetNetConfig) -> None:
        super().__init__(config)
        self._log_gamma = Constant(partial(retention.log_decays, config.gamma, config.n_heads))
        self.form: Form = config.form
        self.chunk_size = config.chunk_size

    def make_mixer(self) -> Mixer:
        return MultiScaleRetention(cast(RetNetConfig, self.config))

    @property
    def training_form(self) -> str:
        return self.form

    @property
    def d_rotary(self) -> int:
        return cast(RetNetConfig, self.config).d_k

    def keep_part_(self, mesh: "DeviceMesh") -> None:
        super().keep_part_(mesh)
        for block in self.blocks:
            cast(MultiScaleRetention, block.mixer).mesh = mesh
        whole, rank, degree = self._log_gamma, mesh.get_local_rank(), mesh.size()
        self._log_gamma = Constant(lambda device: whole.on(device).chunk(degree)[rank])  # (H,) of this rank

    def native_mixer(self, frequencies: Tensor) -> MixerShape | None:
        config = cast(RetNetConfig, self.config)
        if config.retention == "fla" or config.group_norm == "none":
            return None
        heads, log_gamma = config.n_heads, self._log_gamma.on(frequencies.device)
        return MixerShape(
            *(heads, heads, config.d_k, config.d_v, frequencies, log_gamma),
            gate=config.gate,
            group_rmsnorm=config.group_norm == "rmsnorm",
        )

    @property
    def backend(self) -> str:
        wanted, faster = cast(RetNetConfig, self.config).retention, self._faster_backend()
        if wanted != "auto":
            return wanted
        return faster if faster and not self.backend_refusals() else "torch"

    def _faster_backend(self) -> str | None:
        """What might compute the mixer on this device in this dtype."""
        weight = self.embedding.weight
        if weight.is_cuda:
            return "fla"
        return "tiles" if weight.dtype == torch.bfloat16 and weight.device.type == "cpu" else None

    @property
    def notes(self) -> dict[str, object]:
        return super().notes | ({"chunk_size": self.chunk_size} if self.form == "chunkwise" else {})

    def backend_refusals(self) -> dict[str, str]:
        config, weight, name = cast(RetNetConfig, self.config), self.embedding.weight, self._faster_backend()
        if config.retention != "auto" or name is None:
            return {}
        if config.group_norm == "none":
            return {name: "its kernels have no column for the row sums"}
        if name == "fla":
            reason = fla.refusal(weight.device, weight.dtype, config.gamma, config.n_heads, config.d_k, config.d_v)
        else:
            reason = native.refusal(config.d_k, config.d_v) or tiles.refusal()
        return {name: reason} if reason else {}

    def positions(self, start: int | Tensor, length: int) -> RetentionPositions:
        base = super().positions(start, length)
        log_gamma = self._log_gamma.on(base.cos.device)
        chunk = min(self.chunk_size, length)
        backend = self.backend
        tabled = self.form == "chunkwise" and length > 1 and backend == "torch"
        decay = retention.decay_matrix(log_gamma, chunk).to(self.embedding.weight.dtype) if tabled else None
        gamma, scales = log_gamma.exp().to(base.cos.dtype), None
        if cast(RetNetConfig, self.config).group_norm == "none":
            scales = retention.decay_row_scales(log_gamma, start, length).to(base.cos.dtype)
        return RetentionPositions(
            *(start, base.cos, base.sin, self.form, self.chunk_size, log_gamma, gamma, decay, backend), scales
        )


MODEL = RetNet
