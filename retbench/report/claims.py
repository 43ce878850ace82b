"""Claims as data: what the paper says in numbers, and the predicate that decides each."""

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

Measure = Literal["advantage", "saving", "over_length", "over_batch", "exponent", "value", "loss", "accuracy"]
Judged = Literal["strongest", "naive", "each"]

TUNED = ("advantage", "saving")  # where one baseline computes what another does, in less
COMPARING = (*TUNED, "loss", "accuracy")


class ClaimError(ValueError):
    """A file of claims that does not hold what it should: says which claim, and what is wrong."""


@dataclass(frozen=True)
class Claim:
    """One claim of the paper and the predicate that decides it; the fields are explained in experiments/claims.toml."""

    name: str
    says: str
    where: str
    setting: str
    paper: str
    experiment: str
    command: str
    measure: Measure
    metric: str
    system: str
    against: tuple[str, ...] = ()
    judged: Judged = "naive"
    above: float | None = None
    at_most: float | None = None
    from_size: str | None = None
    from_length: int | None = None
    chunk_size: int | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in (("measure", get_args(Measure)), ("judged", get_args(Judged))):
            if getattr(self, name) not in allowed:
                raise ClaimError(f"{self.name}: {name} must be one of {', '.join(allowed)}")
        if self.above is None and self.at_most is None:
            raise ClaimError(f"{self.name}: above or at_most must be given")
        if self.measure in COMPARING and not self.against:
            raise ClaimError(f"{self.name}: {self.measure} needs against")
        if self.judged == "each" and self.measure not in COMPARING:
            raise ClaimError(f"{self.name}: {self.measure} compares with no baseline, so it cannot be judged by each")


def read_claims(path: Path) -> list[Claim]:
    """The claims of a file; each takes what it does not say from its group. ClaimError names what is wrong."""
    claims, known = [], {field.name for field in fields(Claim)}
    tables = tomllib.loads(path.read_text(encoding="utf-8")).values()
    for group in (table for table in tables if isinstance(table, dict)):
        shared = {name: value for name, value in group.items() if name != "claims"}
        for name, own in group["claims"].items():
            data = {**shared, **own}
            if unknown := set(data) - known:
                raise ClaimError(f"{name}: unknown {', '.join(sorted(unknown))}")
            lists = {key: tuple(data[key]) for key in ("against", "notes") if key in data}
            try:
                claims.append(Claim(name=name, **{**data, **lists}))
            except TypeError as error:
                raise ClaimError(f"{name}: {error}") from error
    return claims
