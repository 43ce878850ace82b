"""Reads the paper's inference numbers from experiments/inference.toml into typed values."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

How = Literal["read", "digitized", "estimated"]
Quantity = Literal["memory", "throughput", "latency"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)


class PaperError(ValueError):
    """A file of the paper's numbers that does not hold what it should: says the file, the place and what is missing."""


@dataclass(frozen=True)
class Setting:
    """The conditions of the paper's measurements; ``inferred`` names the fields that the paper does not state."""

    size: str
    device: str
    dtype: str
    batch_size: int
    inferred: tuple[str, ...]

    @property
    def words(self) -> str:
        parts = {
            "size": self.size,
            "device": self.device,
            "dtype": self.dtype,
            "batch_size": f"batch {self.batch_size}",
        }
        stated = ", ".join(words for name, words in parts.items() if name not in self.inferred)
        inferred = " and ".join(words for name, words in parts.items() if name in self.inferred)
        return f"{stated}; {inferred} inferred" if inferred else stated


@dataclass(frozen=True)
class Ratio:
    """RetNet's advantage over the Transformer, and how the number was obtained."""

    value: float
    how: How


@dataclass(frozen=True)
class Claim:
    """A headline ratio of the paper at one length."""

    ratio: Ratio
    seq_len: int
    conditions: str
    source: str


@dataclass(frozen=True)
class Bars:
    """One pair of bars of Figure 1, in ``unit``, read with an error of ``accuracy``."""

    unit: str
    transformer: float
    retnet: float
    accuracy: float
    how: How
    source: str


@dataclass(frozen=True)
class Curve:
    """One system's points in a panel; ``seq_len`` is set where the panel's x axis is the batch."""

    system: str
    x: tuple[int, ...]
    y: tuple[float, ...]
    seq_len: int | None = None

    def at(self, x: int) -> float | None:
        """The value at exactly ``x``, None where the paper has no point."""
        return dict(zip(self.x, self.y, strict=True)).get(x)


@dataclass(frozen=True)
class Panel:
    """One panel of Figure 6. ``weights`` is the line of the model's weights, in the panel's unit."""

    unit: str
    conditions: str
    how: How
    source: str
    curves: tuple[Curve, ...]
    weights: float | None = None

    def curve(self, system: str, seq_len: int | None = None) -> Curve | None:
        """The curve of a system, at ``seq_len`` where there is one per length."""
        found = [curve for curve in self.curves if curve.system == system and seq_len in (None, curve.seq_len)]
        return found[-1] if found else None


@dataclass(frozen=True)
class Paper:
    """The paper's inference numbers."""

    title: str
    setting: Setting
    claims: Mapping[Quantity, Claim]
    bars: Mapping[Quantity, Bars]
    panels: Mapping[Quantity, Panel]

    def ratio(self, quantity: Quantity, seq_len: int, batch_size: int) -> Ratio | None:
        """The paper's ratio under these conditions: its claim there, else that of Figure 6, else None."""
        claim = self.claims[quantity]
        if (seq_len, batch_size) == (claim.seq_len, self.setting.batch_size):
            return claim.ratio
        panel = self.panels[quantity]
        if quantity == "latency":
            # RetNet's only line is at one length: its step does not depend on the length.
            return _ratio(panel, panel.curve("transformer", seq_len), panel.curve("retnet"), batch_size)
        if batch_size != self.setting.batch_size:
            return None
        pair = (panel.curve("transformer"), panel.curve("retnet"))
        return _ratio(panel, *(pair if quantity == "memory" else pair[::-1]), seq_len)


def _ratio(panel: Panel, above: Curve | None, below: Curve | None, x: int) -> Ratio | None:
    over, under = above and above.at(x), below and below.at(x)
    return Ratio(over / under, panel.how) if over and under else None


@cache
def inference_paper() -> Paper:
    """The numbers of experiments/inference.toml, read once."""
    return read_paper(Path(__file__).parents[2] / "experiments" / "inference.toml")


def read_paper(path: Path) -> Paper:
    """The numbers of a file; raises PaperError where one is missing, of a wrong kind or contradicts another."""
    try:
        root = _Table(tomllib.loads(path.read_text(encoding="utf-8")), path.name)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PaperError(f"{path.name}: {error}") from error
    sources = root.table("sources")
    headline, figure1, figure6 = root.table("headline"), root.table("figure1"), root.table("figure6")
    return Paper(
        title=root.text("title"),
        setting=_setting(root.table("setting")),
        claims={name: _claim(headline.table(name), sources) for name in QUANTITIES},
        bars={name: _bars(figure1.table(name), sources) for name in QUANTITIES},
        panels={name: _panel(figure6.table(name), sources) for name in QUANTITIES},
    )


class _Table:
    """A table of the file that knows its place in it, so that an error can name it."""

    def __init__(self, data: dict[str, Any], where: str) -> None:
        self.data = data
        self.where = where

    def fail(self, problem: str) -> PaperError:
        return PaperError(f"{self.where}: {problem}")

    def _get(self, key: str, kind: type | tuple[type, ...], words: str) -> Any:
        value = self.data.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.fail(f"{key} must be {words}, not {value!r}" if key in self.data else f"{key} is missing")
        return value

    def table(self, key: str) -> "_Table":
        return _Table(self._get(key, dict, "a table"), f"{self.where}: {key}")

    def text(self, key: str) -> str:
        return str(self._get(key, str, "text"))

    def whole(self, key: str) -> int:
        return int(self._get(key, int, "a whole number"))

    def number(self, key: str) -> float:
        return float(self._get(key, (int, float), "a number"))

    def numbers(self, key: str) -> tuple[float, ...]:
        values = self._get(key, list, "a list of numbers")
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            raise self.fail(f"{key} must be a list of numbers, not {values!r}")
        return tuple(float(value) for value in values)

    def how(self) -> How:
        value = self.text("how")
        for how in get_args(How):
            if value == how:
                return how  # type: ignore[no-any-return]  # get_args is untyped
        raise self.fail(f"how must be one of {', '.join(get_args(How))}, not {value!r}")

    def source(self, sources: "_Table") -> str:
        return sources.text(self.text("source"))


def _setting(table: _Table) -> Setting:
    inferred = tuple(str(name) for name in table.data.get("inferred", []))
    if unknown := set(inferred) - set(table.data):
        raise table.fail(f"inferred names {', '.join(sorted(unknown))}, which is not a field of the setting")
    return Setting(table.text("size"), table.text("device"), table.text("dtype"), table.whole("batch_size"), inferred)


def _claim(table: _Table, sources: _Table) -> Claim:
    ratio = Ratio(table.number("ratio"), table.how())
    return Claim(ratio, table.whole("seq_len"), table.text("conditions"), table.source(sources))


def _bars(table: _Table, sources: _Table) -> Bars:
    values = (table.number("transformer"), table.number("retnet"), table.number("accuracy"))
    return Bars(table.text("unit"), *values, table.how(), table.source(sources))


def _panel(table: _Table, sources: _Table) -> Panel:
    over_batch = "batch_sizes" in table.data
    x = tuple(int(value) for value in table.numbers("batch_sizes" if over_batch else "lengths"))
    values = table.table("values")
    curves = [curve for system in values.data for curve in _curves(values, system, x, over_batch)]
    weights = table.number("weights") if "weights" in table.data else None
    return Panel(
        table.text("unit"), table.text("conditions"), table.how(), table.source(sources), tuple(curves), weights
    )


def _curves(values: _Table, system: str, x: tuple[int, ...], over_batch: bool) -> list[Curve]:
    """A system's curve; where the x axis is the batch, one for each length, the key of its list."""
    if not over_batch:
        return [Curve(system, x, _points(values, system, x))]
    lengths = values.table(system)
    if not all(key.isdecimal() for key in lengths.data):
        raise lengths.fail(f"keys must be lengths, not {', '.join(lengths.data)}")
    return [Curve(system, x, _points(lengths, key, x), int(key)) for key in sorted(lengths.data, key=int)]


def _points(table: _Table, key: str, x: tuple[int, ...]) -> tuple[float, ...]:
    y = table.numbers(key)
    if len(y) != len(x):
        raise table.fail(f"{key} has {len(y)} values for {len(x)} points of the x axis")
    return y
