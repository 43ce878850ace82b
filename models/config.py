"""The configuration that every language model shares: a frozen dataclass, JSON both ways."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from typing import Literal, Self, get_args, get_origin, get_type_hints

from models.catalogue import systems


@dataclass(frozen=True)
class Config:
    """Fields of every system. A field of 0 is derived from the others; all fields are resolved after construction."""

    system: str
    d_model: int
    n_layers: int
    vocab_size: int = 32000
    d_ffn: int = 0  # 0: whatever brings the layer to 12 d_model^2 parameters
    ffn: Literal["gelu", "swiglu"] = "gelu"
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_eps: float = 1e-6
    rotary: Literal["interleaved", "half-split", "none"] = "interleaved"
    rope_base: float = 10000.0
    rope_spacing: Literal["inclusive", "exclusive"] = "inclusive"  # inclusive: the last angle is 1 / rope_base
    tied_embeddings: bool = False
    embedding_scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_choices()
        if self.d_ffn == 0 and self.d_model > 0:
            object.__setattr__(self, "d_ffn", self._matched_d_ffn())
        sizes = {name: getattr(self, name) for name in ("d_model", "n_layers", "vocab_size", "d_ffn")}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be positive, not {value}")

    @property
    def mixer_parameters(self) -> int:
        """Parameters of one token mixer."""
        raise NotImplementedError

    @classmethod
    def from_options(cls, system: str, options: Mapping[str, object]) -> Self:
        """A config from field values; raises ValueError that lists the fields when one is unknown."""
        known = [field.name for field in fields(cls) if field.name != "system"]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ValueError(f"{system} has no config field {', '.join(unknown)}; its fields are {', '.join(known)}")
        return cls(system, **options)  # type: ignore[arg-type]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def _matched_d_ffn(self) -> int:
        """The FFN width, a multiple of 8, that brings mixer + FFN to 12 d_model^2 parameters."""
        matrices = 2 if self.ffn == "gelu" else 3
        layer, mixer = 12 * self.d_model**2, self.mixer_parameters
        d_ffn = round((layer - mixer) / (matrices * self.d_model * 8)) * 8
        if d_ffn < 1:
            raise ValueError(
                f"d_model {self.d_model} is too small for {self.system}: its mixer has {mixer} parameters, a whole "
                f"layer 12 d_model^2 = {layer}; take a larger d_model, or set d_ffn"
            )
        return d_ffn

    def _check_choices(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if get_origin(hint) is Literal and value not in get_args(hint):
                raise ValueError(f"{name} must be one of {', '.join(map(str, get_args(hint)))}, not {value!r}")


def config_from_json(text: str) -> Config:
    """The config that ``to_json`` wrote, as the class of its system."""
    options = json.loads(text)
    system = options.pop("system")
    if system not in systems():
        raise ValueError(f"unknown system {system!r}; systems are {', '.join(systems())}")
    config_class: type[Config] = import_module(systems()[system].module).MODEL.config_class
    return config_class.from_options(system, options)


def attention_heads(d_model: int) -> int:
    """The heads of attention where a config names none: a head dim of 64 below d_model 2048, else 128."""
    return max(1, d_model // (64 if d_model < 2048 else 128))


def require_divisible(value: int, divisor: int, what: str) -> None:
    """Raises ValueError unless ``divisor`` is positive and divides ``value``."""
    if divisor < 1 or value % divisor:
        raise ValueError(f"{what}: {divisor} does not divide {value}")
