"""The language models that retbench compares. They depend on torch alone; importing this package does not load it.

from models import build
model = build("retnet", size="small", vocab_size=32000)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from models.catalogue import systems
from models.sizes import SIZES

if TYPE_CHECKING:
    from models.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
    from models.config import Config
    from models.language_model import LanguageModel

__all__ = [
    "SIZES",
    "CheckpointError",
    "build",
    "configure",
    "from_config",
    "load_checkpoint",
    "save_checkpoint",
    "systems",
]


def build(system: str, size: str = "small", **options: object) -> "LanguageModel":
    """A freshly initialised model of ``system`` at ``size``, on torch's default device and dtype.

    ``options`` are fields of that system's config and win over what the size and the system set.
    Raises ValueError for an unknown system, size or field, and for fields that contradict each other.
    """
    return from_config(configure(system, size, **options))


def configure(system: str, size: str = "small", **options: object) -> "Config":
    """The config that ``build`` builds from; the same errors."""
    if system not in systems():
        raise ValueError(f"unknown system {system!r}; systems are {', '.join(systems())}")
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}; sizes are {', '.join(SIZES)}")
    entry = systems()[system]
    config_class: type[Config] = import_module(entry.module).MODEL.config_class
    shape = {"d_model": SIZES[size].d_model, "n_layers": SIZES[size].n_layers}
    return config_class.from_options(system, {**shape, **entry.overrides, **options})


def from_config(config: "Config") -> "LanguageModel":
    """A freshly initialised model of a config."""
    model: LanguageModel = import_module(systems()[config.system].module).MODEL(config)
    return model


def __getattr__(name: str) -> Any:
    """What ``models.checkpoint`` defines, imported when first asked for: it needs torch."""
    if name in ("CheckpointError", "load_checkpoint", "save_checkpoint"):
        return getattr(import_module("models.checkpoint"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
