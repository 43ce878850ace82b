"""Which requests share which prefix: families that are read once up to where they part, and batches of families."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

WORTHWHILE = 8  # tokens that joining a family must save: its rows are scored from a shorter prefix then
SLACK = 16  # a batch starts from its shortest prefix; another may be longer by this fraction of it, or by 4 tokens


@dataclass(frozen=True)
class Row:
    """What the model reads for one request, and how many of its last positions are scored."""

    index: int  # of the request
    tokens: tuple[int, ...]  # what is read; the targets are shifted by one
    targets: tuple[int, ...]

    @property
    def shareable(self) -> int:
        """Positions before the first whose logits are needed."""
        return len(self.tokens) - len(self.targets)


@dataclass(frozen=True)
class Family:
    """Rows that begin alike, and with how many tokens."""

    rows: tuple[Row, ...]
    prefix: int

    @property
    def longest(self) -> int:
        return max(len(row.tokens) for row in self.rows)


@dataclass(frozen=True)
class Batch:
    """Families that are read together up to ``split``; from there on each of their rows is read by itself."""

    families: tuple[Family, ...]
    split: int

    @property
    def rows(self) -> list[Row]:
        return [row for family in self.families for row in family.rows]


def common_prefix(rows: Sequence[Row]) -> int:
    """How many tokens all rows begin with, before any of their scored positions."""
    if len(rows) < 2:
        return 0
    first, last = min(row.tokens for row in rows), max(row.tokens for row in rows)  # as strings: all others lie between
    return min(_agreement(first, last), *(row.shareable for row in rows))


def families(rows: Sequence[Row], shared: int) -> list[Family]:
    """Groups rows whose common prefix saves reading, beyond the ``shared`` tokens that all have in common anyway.

    Rows are taken in the order of their tokens, so that neighbours share the most and the order of requests is nothing.
    """
    found: list[Family] = []
    for row in sorted(rows, key=lambda row: (row.tokens, row.targets)):
        joined = _joined(found[-1], row, shared) if found else None
        if joined:
            found[-1] = joined
        else:
            found.append(Family((row,), row.shareable))
    return [family if len(family.rows) > 1 else Family(family.rows, shared) for family in found]


def _joined(family: Family, row: Row, shared: int) -> Family | None:
    """The family with one row more, None where reading that row alone costs no more."""
    prefix = min(family.prefix, row.shareable, _agreement(family.rows[-1].tokens, row.tokens))
    saved = (prefix - shared) - (len(family.rows) - 1) * (family.prefix - prefix)
    return Family((*family.rows, row), prefix) if saved >= WORTHWHILE else None


def batches(found: Sequence[Family], batch_tokens: int) -> Iterator[Batch]:
    """Families with prefixes of about the same length, with at most ``batch_tokens`` tokens in all rows, or one."""
    chosen: list[Family] = []
    for family in sorted(found, key=lambda family: (family.prefix, family.longest)):
        together = [*chosen, family]
        tokens = sum(len(one.rows) for one in together) * max(one.longest for one in together)
        split = together[0].prefix
        if chosen and (tokens > batch_tokens or family.prefix - split > max(4, split // SLACK)):
            yield Batch(tuple(chosen), chosen[0].prefix)
            together = [family]
        chosen = together
    if chosen:
        yield Batch(tuple(chosen), chosen[0].prefix)


def _agreement(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    at = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    return min(len(one), len(other)) if at is None else at
