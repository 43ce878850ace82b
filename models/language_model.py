"""The language model that every system is: embedding, pre-norm blocks, head; training form, prefill and step.

A system's file gives a token mixer and the state that the mixer keeps while decoding; the rest is shared here.
"""

# B batch, T positions, D model dim, V vocabulary

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, Self, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.config import Config
from models.linear import Linear, onednn_refusal
from models.loss import chunked_loss, plain_loss
from models.native.decoder import Decoder, MixerShape
from models.parallel import Split, local, whole
from models.rotary import inverse_frequencies, rotation

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

DecodeBackend = Literal["native", "torch"]

SEGMENT = 2048  # positions of a prefill that pass through a layer together, see docs/performance.md


class LayerState(Protocol):
    """What one mixer remembers of the tokens that it has read."""

    def tensors(self) -> list[Tensor]: ...

    def fill_(self, position: int, generator: torch.Generator) -> None:
        """Overwrites the memory with random values, as if ``position`` tokens had been read."""

    def sized(self, max_seq_len: int) -> "LayerState":
        """A state for at most ``max_seq_len`` tokens, densely in the memory of this one."""

    def picked(self, rows: Tensor) -> "LayerState":
        """A copy of these rows (N,) int64 of the batch; a row may be picked more than once."""

    def step_bytes(self, position: int) -> int:
        """Bytes that a decode step must move through memory when ``position`` tokens have been read."""


@dataclass
class State:
    """The decode state of a batch: one layer state a block, and the number of tokens read so far.

    Setting ``position`` back makes a KV cache forget the later tokens; a recurrent state keeps its values.
    """

    layers: list[LayerState]
    position: int = 0

    def tensors(self) -> Iterator[Tensor]:
        """All tensors of all layers."""
        return (tensor for layer in self.layers for tensor in layer.tensors())

    @property
    def nbytes(self) -> int:
        """Bytes of the whole batch's state, allocated capacity included."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def step_bytes(self) -> int:
        """Bytes of state that the next decode step must read and write."""
        return sum(layer.step_bytes(self.position) for layer in self.layers)

    def sized(self, max_seq_len: int) -> "State":
        """A state for at most ``max_seq_len`` tokens in the memory of this one, whose values it overwrites."""
        return State([layer.sized(max_seq_len) for layer in self.layers])

    def picked(self, rows: Tensor) -> "State":
        """The state of these rows (N,) int64 of the batch, to go on with each by itself; ours stays as it is."""
        return State([layer.picked(rows) for layer in self.layers], self.position)

    def fill_(self, position: int, seed: int = 0) -> None:
        """A synthetic state, as if ``position`` tokens had been read."""
        generator = torch.Generator(next(self.tensors()).device).manual_seed(seed)
        for layer in self.layers:
            layer.fill_(position, generator)
        self.position = position


@dataclass(frozen=True)
class Positions:
    """Where a piece of text stands and its rotation, computed once and shared by all layers."""

    start: int | Tensor  # of a step that is captured, an int64 tensor (1,) on the device
    cos: Tensor  # (T, K/2)
    sin: Tensor  # (T, K/2)

    def piece(self, first: int, length: int) -> Self:
        """Those of up to ``length`` positions from the one with index ``first`` on."""
        rows = slice(first, first + length)
        return replace(self, start=self.start + first, cos=self.cos[rows], sin=self.sin[rows])


class Constant:
    """A tensor that ``make`` computes once a device. It is no buffer, so that no cast of the model rounds it."""

    def __init__(self, make: Callable[[torch.device], Tensor]) -> None:
        self._make = make
        self._made: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        if device not in self._made:
            with torch.inference_mode(False):  # made while decoding, it must still serve training
                self._made[device] = self._make(device)
        return self._made[device]


class Mixer(nn.Module):
    """Mixes positions. ``forward`` is the training and prefill form, ``step`` the decode form."""

    def forward(self, x: Tensor, positions: Positions, state: LayerState | None = None) -> Tensor:
        """x (B, T, D) -> (B, T, D). With a state, continues after its tokens and updates it in place."""
        raise NotImplementedError

    def prefill_(self, x: Tensor, norm: nn.Module, positions: Positions, state: LayerState) -> None:
        """x (B, T, D) += mixer(norm(x)), without gradients."""
        if not self.reads_in_pieces(positions):
            x += self(norm(x), positions, state)
            return
        for rows, piece in segments(positions):
            x[:, rows].add_(self(norm(x[:, rows]), piece, state))

    def reads_in_pieces(self, positions: Positions) -> bool:
        """Whether a state makes the pieces of a text cost no more than the whole."""
        return False

    def compiled_part(self) -> str | None:
        """The name of what ``prefill_`` calls with every segment and may be compiled."""
        return None

    def step(self, x: Tensor, positions: Positions, state: LayerState) -> Tensor:
        """x (B, D) -> (B, D), one position; updates the state in place."""
        raise NotImplementedError

    def init_state(self, batch_size: int, max_seq_len: int) -> LayerState:
        raise NotImplementedError

    def capture_limit(self, state: LayerState) -> int:
        """The position below which ``step`` may be captured once and replayed, 0 for never.

        Such a step takes its position as a tensor, and keeps all that it remembers in tensors updated in place.
        """
        return 0

    def split(self) -> Split:
        """How several ranks share this mixer out; raises NotImplementedError that says why they cannot."""
        raise NotImplementedError(f"no tensor parallelism: {type(self).__name__} does not say how it is split")


class FeedForward(nn.Module):
    """FFN of two matrices with GELU, or of three with SwiGLU; no biases."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.swiglu = config.ffn == "swiglu"
        self.up_proj = Linear(config.d_model, config.d_ffn, bias=False)
        if self.swiglu:
            self.gate_proj = Linear(config.d_model, config.d_ffn, bias=False)
        self.down_proj = Linear(config.d_ffn, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        hidden = F.silu(self.gate_proj(x)) * self.up_proj(x) if self.swiglu else F.gelu(self.up_proj(x))
        out: Tensor = self.down_proj(hidden)
        return out


class Block(nn.Module):
    """x + mixer(norm(x)), then x + FFN(norm(x))."""

    def __init__(self, config: Config, mixer: Mixer) -> None:
        super().__init__()
        self.mixer_norm = make_norm(config, config.d_model)
        self.mixer = mixer
        self.ffn_norm = make_norm(config, config.d_model)
        self.ffn = FeedForward(config)

    def forward(self, x: Tensor, positions: Positions, state: LayerState | None = None) -> Tensor:
        x = x + self.mixer(self.mixer_norm(x), positions, state)  # (B, T, D)
        out: Tensor = x + self.ffn(self.ffn_norm(x))
        return out

    def prefill_(self, x: Tensor, positions: Positions, state: LayerState) -> None:
        """``forward`` without gradients, in place and in segments, so that little memory is touched anew."""
        self.mixer.prefill_(x, self.mixer_norm, positions, state)
        for rows, _ in segments(positions):
            x[:, rows].add_(self.ffn(self.ffn_norm(x[:, rows])))

    def compiled_parts(self) -> Iterator[tuple[nn.Module, str]]:
        """The modules and names of what ``prefill_`` calls with every segment and may be compiled."""
        yield self.ffn, "forward"
        name = self.mixer.compiled_part()
        if name is not None:
            yield self.mixer, name

    def step(self, x: Tensor, positions: Positions, state: LayerState) -> Tensor:
        x = x + self.mixer.step(self.mixer_norm(x), positions, state)  # (B, D)
        out: Tensor = x + self.ffn(self.ffn_norm(x))
        return out


class LanguageModel(nn.Module):
    """Tokens in, logits out; ``config`` says everything that shapes it."""

    config_class: ClassVar[type[Config]]

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        empty = torch.empty(config.vocab_size, config.d_model)  # else drawn twice, which on meta imports half of torch
        self.embedding = nn.Embedding(config.vocab_size, config.d_model, _weight=empty)
        self.layers = nn.ModuleList(Block(config, self.make_mixer()) for _ in range(config.n_layers))
        self.norm = make_norm(config, config.d_model)
        self.head = Linear(config.d_model, config.vocab_size, bias=False)
        if config.tied_embeddings:
            self.head.weight = self.embedding.weight
        self._frequencies = Constant(partial(inverse_frequencies, config, self.d_rotary))
        self._decoder: Decoder | None = None  # made by the first step
        self._decode_natively = True
        self._shared = False  # by ranks, each of which has some of the heads
        self.checkpointing = False  # whether training keeps a block's input alone and computes the rest again
        self._initialise()

    def make_mixer(self) -> Mixer:
        raise NotImplementedError

    @property
    def blocks(self) -> list[Block]:
        return cast(list[Block], list(self.layers))

    @property
    def d_rotary(self) -> int:
        """Channels of a head that are rotated by position, 0 for none."""
        return 0

    @property
    def backend(self) -> str:
        """What computes the mixer, for the record."""
        return "torch"

    def backend_refusals(self) -> dict[str, str]:
        """The faster backends that were tried on this device and are not used, with the reason, for the record."""
        return {}

    @property
    def training_form(self) -> str:
        """How ``forward`` and ``prefill`` mix positions, for the record."""
        return "parallel"

    @property
    def decode_form(self) -> str:
        """How a step is computed, for the record."""
        return "recurrent"

    @property
    def decode_backend(self) -> DecodeBackend:
        """What computes a step: native code where it can, else torch. Set it to "torch" for the plain reference."""
        return "native" if self._decode_natively and self.no_native_step() is None else "torch"

    @decode_backend.setter
    def decode_backend(self, backend: DecodeBackend) -> None:
        """Raises ValueError for another name, or where there is no native step."""
        if backend not in get_args(DecodeBackend):
            raise ValueError(f"decode_backend must be one of {', '.join(get_args(DecodeBackend))}, not {backend!r}")
        reason = self.no_native_step()
        if backend == "native" and reason:
            raise ValueError(f"decode_backend cannot be native: {reason}")
        self._decode_natively = backend == "native"

    def no_native_step(self) -> str | None:
        """Why a step of this model cannot be native code, None where it can."""
        if self._shared:
            return "the ranks share the heads out"
        decoder = self._native_decoder()
        return f"{self.config.system} has no native decode step" if decoder is None else decoder.unsupported()

    @property
    def notes(self) -> dict[str, object]:
        """Why faster ways to compute are not used and what a system adds, such as its chunk size, for the record."""
        reasons = {"no_native_step": self.no_native_step(), "onednn": self._onednn_refusal()}
        return {**self.backend_refusals(), **{name: reason for name, reason in reasons.items() if reason}}

    def _onednn_refusal(self) -> str | None:
        weight = self.embedding.weight
        if self._shared and weight.dtype == torch.float32:
            return "products of DTensors are torch's own"
        concerned = weight.dtype == torch.float32 and weight.device.type == "cpu"
        return onednn_refusal(torch.get_num_threads()) if concerned else None

    def native_mixer(self, frequencies: Tensor) -> MixerShape | None:
        """What the native step has to know of the mixers, None where it does not know them."""
        return None

    def forward(self, tokens: Tensor) -> Tensor:
        """Training form: (B, T) int64, T >= 1 -> logits (B, T, V)."""
        return whole(self.head(self._hidden(tokens)))

    def loss(self, tokens: Tensor, chunked: bool = False) -> Tensor:
        """The mean loss of the next token over tokens (B, T + 1) int64, a scalar in float32 at least.

        Chunked, the logits of all positions are never there together; the value and the gradients are the same.
        """
        read = tokens[:, :-1].contiguous()  # else the gradient of the embedding copies them where no count sees it
        hidden, targets = self._hidden(read).flatten(0, 1), tokens[:, 1:].flatten()  # (BT, D), (BT,)
        return (chunked_loss if chunked else plain_loss)(hidden, self.head, targets)

    def _hidden(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 -> what the head reads, (B, T, D)."""
        _check_not_empty(tokens)
        positions, x = self.positions(0, tokens.shape[1]), self._embed(tokens)  # (B, T, D)
        for block in self.blocks:
            if self.checkpointing:
                x = checkpoint(block, x, positions, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, positions)
        hidden: Tensor = self.norm(x)
        return hidden

    @torch.no_grad()
    def prefill(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """(B, T) int64, T >= 1 -> logits of the last position (B, V) and the state after it; resumable."""
        x, state = self._advance(tokens, state)
        return whole(self.head(self.norm(x[:, -1]))), state

    @torch.no_grad()
    def read(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """``prefill`` with the logits of every position, (B, T, V): a long text is scored in pieces."""
        hidden, state = self.read_hidden(tokens, state)
        return whole(self.head(hidden)), state

    @torch.no_grad()
    def read_hidden(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """As ``read``, with what the head makes logits of, (B, T, D): some positions may need none."""
        x, state = self._advance(tokens, state)
        return self.norm(x), state

    def _advance(self, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
        """(B, T) -> the residual stream after the blocks (B, T, D), and the state, in segments and in place."""
        _check_not_empty(tokens)
        batch_size, length = tokens.shape
        if state is None:
            state = self.init_state(batch_size, length)
        positions, x = self.positions(state.position, length), self._embed(tokens)  # (B, T, D)
        for block, layer_state in zip(self.blocks, state.layers, strict=True):
            block.prefill_(x, positions, layer_state)
        state.position += length
        return x, state

    @torch.no_grad()
    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        """(B,) int64 -> logits (B, V); the state is updated in place and returned."""
        decoder = self._native_decoder() if self._decode_natively else None
        logits = decoder.step(token, state) if decoder else None
        if logits is None:
            logits = self.step_at(token, state.position, state)
        state.position += 1
        return logits, state

    @torch.no_grad()
    def step_at(self, token: Tensor, position: int | Tensor, state: State) -> Tensor:
        """The plain step (B,) -> (B, V), reference of the native one, which leaves ``state.position`` as it is.

        The position may be an int64 tensor (1,): nothing is then read but tensors.
        """
        positions = self.positions(position, 1)
        x = self._embed(token)  # (B, D)
        for block, layer_state in zip(self.blocks, state.layers, strict=True):
            x = block.step(x, positions, layer_state)
        return whole(self.head(self.norm(x)))

    def keep_part_(self, mesh: "DeviceMesh") -> None:
        """After the weights were split between ranks: makes the mixers count the heads or channels of one of them."""
        self._shared, self._decode_natively = True, False
        for mixer in (block.mixer for block in self.blocks):
            for name in mixer.split().counts:
                setattr(mixer, name, getattr(mixer, name) // mesh.size())

    def _native_decoder(self) -> Decoder | None:
        if self._decoder is None:
            mixer = self.native_mixer(self._frequencies.on(torch.device("cpu")))
            self._decoder = Decoder(self, mixer) if mixer else None
        return self._decoder

    def init_state(self, batch_size: int, max_seq_len: int) -> State:
        """An empty state. A KV cache is allocated for ``max_seq_len`` tokens; a recurrent state ignores it."""
        if batch_size < 1 or max_seq_len < 1:
            raise ValueError(f"batch_size and max_seq_len must be positive, not {batch_size} and {max_seq_len}")
        return State([block.mixer.init_state(batch_size, max_seq_len) for block in self.blocks])

    def positions(self, start: int | Tensor, length: int) -> Positions:
        """The rotation of positions start .. start + length - 1, in float32 at least."""
        weight = self.embedding.weight
        frequencies = self._frequencies.on(weight.device)
        return Positions(start, *rotation(frequencies, start, length, state_dtype(weight.dtype)))

    def weights_bytes(self) -> int:
        """Bytes of all parameters and buffers, as far as this rank has them; tied weights count once."""
        return sum(local(tensor).nbytes for tensor in (*self.parameters(), *self.buffers()))

    def step_weights_bytes(self) -> int:
        """Bytes of weights that a decode step must read: all but an input embedding that is not the head."""
        table = self.embedding.weight
        embedding = 0 if any(parameter is table for parameter in self.head.parameters()) else table.nbytes
        return self.weights_bytes() - embedding

    def _embed(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.embedding(tokens)
        return x if self.config.embedding_scale == 1.0 else x * self.config.embedding_scale

    def _initialise(self) -> None:
        """Matrices from N(0, 0.02), those that write to the residual stream scaled by (2 n_layers)^-1/2."""
        device = self.embedding.weight.device
        if device.type == "meta":
            return
        generator = torch.Generator(device).manual_seed(self.config.seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith(("out_proj.weight", "down_proj.weight"))
                std = 0.02 * (2 * self.config.n_layers) ** -0.5 if residual else 0.02
                nn.init.normal_(parameter, std=std, generator=generator)


def _check_not_empty(tokens: Tensor) -> None:
    if tokens.ndim != 2 or tokens.numel() == 0:
        raise ValueError(f"a model reads at least one token, (batch, positions); these are {tuple(tokens.shape)}")


def segments(positions: Positions) -> Iterator[tuple[slice, Positions]]:
    """Cuts a text into pieces of up to SEGMENT positions: the slice of each, in order, and where it stands."""
    length = positions.cos.shape[0]
    for first in range(0, length, SEGMENT):
        yield slice(first, min(first + SEGMENT, length)), positions.piece(first, SEGMENT)


def make_norm(config: Config, width: int) -> nn.Module:
    """The norm of the config over the last ``width`` channels, with a weight (and, for layernorm, a bias)."""
    if config.norm == "rmsnorm":
        return nn.RMSNorm(width, eps=config.norm_eps)
    return nn.LayerNorm(width, eps=config.norm_eps)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64 weights, else float32: recurrent states, angles and decays are never rounded to bf16."""
    return torch.float64 if dtype == torch.float64 else torch.float32
