"""A model's decode step as one native call: what it supports, the pointers it is given, the memory it needs."""

# B batch, H query heads, G key-value heads, K key dim, V value dim

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from models.native.call import pointer, pointer_array
from models.native.library import UnavailableError, library
from models.quantization import Int8Linear
from models.rotary import STYLES

if TYPE_CHECKING:
    from models.language_model import LanguageModel, State
    from models.transformer import KVCache

DTYPES = (torch.float32, torch.bfloat16)
MATRIX = ("weight", "scale")  # in the order of struct Matrix; a scale stands beside int8 weights alone
MODEL_WEIGHTS = (  # in the order of struct Model
    *("embedding.weight", "norm.weight", "norm.bias"),
    *(f"head.{part}" for part in MATRIX),
)
LAYER_WEIGHTS = (  # in the order of struct Layer
    *("mixer_norm.weight", "mixer_norm.bias"),
    *(f"mixer.{name}.{part}" for name in ("q_proj", "k_proj", "v_proj", "g_proj", "out_proj") for part in MATRIX),
    *("mixer.group_norm_weight", "ffn_norm.weight", "ffn_norm.bias"),
    *(f"ffn.{name}.{part}" for name in ("gate_proj", "up_proj", "down_proj") for part in MATRIX),
)
OPTIONAL = ("bias", "mixer.g_proj.weight", "mixer.group_norm_weight", "ffn.gate_proj.weight", "scale")


@dataclass(frozen=True)
class Place:
    """Where a weight is found, rather than the weight: casts, checkpoints and quantization put others there."""

    modules: dict[str, nn.Module | None]  # of the parent
    module: str
    name: str
    optional: bool

    def weight(self) -> Tensor | None:
        """None where there is none, as when another kind of module stands there now."""
        module = self.modules[self.module]
        if isinstance(module, Int8Linear):
            return module.quantized if self.name == "weight" else module.scale
        return None if module is None else module._parameters.get(self.name)


@dataclass(frozen=True)
class MixerShape:
    """What the native step has to know of a mixer: retention where there are decays, softmax attention elsewhere."""

    n_heads: int
    n_kv_heads: int
    d_k: int
    d_v: int
    frequencies: Tensor  # (K / 2,) float64
    log_gamma: Tensor | None = None  # (H,) float64
    gate: bool = False
    group_rmsnorm: bool = False


class Shape(ctypes.Structure):
    """struct Shape of step.cpp, field by field."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "d_model", "n_layers", "vocab", "d_ffn", "n_heads")),
        *((name, ctypes.c_int64) for name in ("n_kv_heads", "d_k", "d_v", "capacity", "position", "attention", "bf16")),
        *((name, ctypes.c_int64) for name in ("rmsnorm", "group_rmsnorm", "swiglu", "gate", "rotary")),
        *((name, ctypes.c_double) for name in ("norm_eps", "embedding_scale")),
        *((name, ctypes.c_void_p) for name in ("frequencies", "log_gamma")),
    )


class Decoder:
    """Makes native steps of one model. The weights stay the model's own and may change between steps."""

    def __init__(self, model: "LanguageModel", mixer: MixerShape) -> None:
        config = model.config
        self._mixer = mixer
        self._places = _weight_places(model)
        self._checked: list[int | None] = []  # the pointers of the weights for which ``_reason`` holds
        self._reason: str | None = None
        shape = Shape(
            d_model=config.d_model,
            n_layers=config.n_layers,
            vocab=config.vocab_size,
            d_ffn=config.d_ffn,
            n_heads=mixer.n_heads,
            n_kv_heads=mixer.n_kv_heads,
            d_k=mixer.d_k,
            d_v=mixer.d_v,
            attention=mixer.log_gamma is None,
            rmsnorm=config.norm == "rmsnorm",
            group_rmsnorm=mixer.group_rmsnorm,
            swiglu=config.ffn == "swiglu",
            gate=mixer.gate,
            rotary=STYLES.index(config.rotary),
            norm_eps=config.norm_eps,
            embedding_scale=config.embedding_scale,
        )
        self._shape = bytes(shape)  # a model that holds pointers could not be copied

    def unsupported(self) -> str | None:
        """Why the model cannot step natively as it is now, None when it can."""
        loaded = library()
        if isinstance(loaded, UnavailableError):
            return str(loaded)
        found = [(place.weight(), place.optional) for place in self._places if place]
        weights = [weight for weight, _ in found if weight is not None]
        if any(weight is None and not optional for weight, optional in found):
            return "the native decode step needs plain or int8 linear layers"
        dtype, device = weights[0].dtype, weights[0].device
        if device.type != "cpu" or dtype not in DTYPES:
            return f"the native decode step is for float32 and bfloat16 on a CPU, not {dtype} on {device.type}"
        known = (dtype, torch.int8)
        if any(w.dtype not in known or w.device != device or not w.is_contiguous() for w in weights):
            return "the native decode step needs contiguous weights of one dtype on one device"
        return None

    def step(self, token: Tensor, state: "State") -> Tensor | None:
        """token (B,) int64 -> logits (B, V), the state's values updated in place; None where torch has to do it.

        Fake tensors get the same allocations and nothing else, so that memory can be predicted.
        Raises IndexError for a token that is not in the vocabulary.
        """
        weights = self._weights()
        first = cast(Tensor, weights[0])
        if first.device.type != "cpu" or first.dtype not in DTYPES or torch.compiler.is_compiling():
            return None
        fake = isinstance(first, FakeTensor)
        pointers = [] if fake else [*map(pointer, weights)]
        if fake or pointers != self._checked:
            self._reason, self._checked = self.unsupported(), pointers
        loaded = library()
        tensors = self._state_tensors(token, state, first.dtype)
        if self._reason is not None or tensors is None or isinstance(loaded, UnavailableError):
            return None

        shape = self._shape_of(state.position, first.dtype, tensors)
        threads = ctypes.c_int64(torch.get_num_threads())
        nbytes = loaded.retbench_scratch_bytes(ctypes.byref(shape), threads)
        scratch = torch.empty(nbytes, dtype=torch.uint8, device="cpu")
        logits = torch.empty(len(token), shape.vocab, dtype=first.dtype, device="cpu")
        if fake:
            return logits
        shape.frequencies, shape.log_gamma = map(pointer, (self._mixer.frequencies, self._mixer.log_gamma))
        wrong = loaded.retbench_step(
            ctypes.byref(shape),
            pointer_array(pointers),
            pointer_array(list(map(pointer, tensors))),
            (ctypes.c_int64 * len(token))(*token.tolist()),
            ctypes.c_void_p(logits.data_ptr()),
            ctypes.c_void_p(scratch.data_ptr()),
            threads,
        )
        if wrong >= 0:
            raise IndexError(f"token {token[wrong].item()} is not in the vocabulary of {shape.vocab}")
        return logits

    def _shape_of(self, position: int, dtype: torch.dtype, state: list[Tensor]) -> Shape:
        """All fields but the pointers, for one step."""
        shape = Shape.from_buffer_copy(self._shape)
        shape.position, shape.bf16 = position, dtype == torch.bfloat16
        shape.batch, shape.capacity = state[0].shape[0], state[0].shape[2]
        return shape

    def _weights(self) -> list[Tensor | None]:
        return [None if place is None else place.weight() for place in self._places]

    def _state_tensors(self, token: Tensor, state: "State", dtype: torch.dtype) -> list[Tensor] | None:
        """The tensors of all layers, with room for one more token; None when they are not what the step knows."""
        mixer, tensors = self._mixer, list[Tensor]()
        if mixer.log_gamma is None:
            for layer in state.layers:
                cast("KVCache", layer).reserve(state.position + 1)
        for layer in state.layers:
            tensors += layer.tensors()
        rows, wanted = (mixer.d_k, torch.float32) if mixer.log_gamma is not None else (tensors[0].shape[2], dtype)
        expected = (token.numel(), mixer.n_kv_heads, rows, mixer.d_v)
        known = token.dtype == torch.int64 and token.ndim == 1 and token.device.type == "cpu"
        if known and all(t.shape == expected and t.dtype == wanted and t.is_contiguous() for t in tensors):
            return tensors
        return None


def _weight_places(model: nn.Module) -> list[Place | None]:
    """Where each weight is found, in the order of struct Model and struct Layer; None where the model has no module."""
    layers = range(len(cast(nn.ModuleList, model.get_submodule("layers"))))
    names = (*MODEL_WEIGHTS, *(f"layers.{layer}.{name}" for layer in layers for name in LAYER_WEIGHTS))
    modules = dict(model.named_modules(remove_duplicate=False))
    places: list[Place | None] = []
    for full_name in names:
        path, _, name = full_name.rpartition(".")
        parent, _, child = path.rpartition(".")
        optional = full_name.endswith(OPTIONAL)
        places.append(Place(modules[parent]._modules, child, name, optional) if path in modules else None)
    return places
