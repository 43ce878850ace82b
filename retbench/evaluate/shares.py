"""Requests shared out over ranks, each of which then has what came of all of them. Without ranks, nothing is shared."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TypeVar

from torch import distributed

from retbench.evaluate.scoring import Work

Request = TypeVar("Request")
Result = TypeVar("Result")


def rank() -> int:
    return distributed.get_rank() if _joined() else 0


def world() -> int:
    return distributed.get_world_size() if _joined() else 1


def gathered(value: Result) -> list[Result]:
    """The value of every rank, in order."""
    if not _joined():
        return [value]
    values = [value] * world()
    distributed.all_gather_object(values, value)
    return values


def shared(
    requests: Sequence[Request], parts: Sequence[Sequence[int]], run: Callable[[list[Request]], list[Result]]
) -> list[Result]:
    """What ``run`` gives of each request, in order, where rank n runs those at the places ``parts[n]``."""
    found: dict[int, Result] = {}
    for places, results in zip(parts, gathered(run([requests[at] for at in parts[rank()]])), strict=True):
        found.update(zip(places, results, strict=True))
    return [found[at] for at in range(len(requests))]


def by_prefix(requests: Sequence[tuple[Sequence[int], Sequence[int]]], count: int) -> list[list[int]]:
    """Places of (context, continuation) for each of ``count`` ranks, about as many tokens to read for each.

    Requests of one context stay together, and those that begin alike are neighbours, so that prefixes are still read
    once.
    """
    order = sorted(range(len(requests)), key=lambda at: (tuple(requests[at][0]), tuple(requests[at][1])))
    families = [list(places) for _, places in groupby(order, key=lambda at: tuple(requests[at][0]))]
    costs = [len(requests[some[0]][0]) + sum(len(requests[at][1]) for at in some) for some in families]
    parts: list[list[int]] = [[] for _ in range(count)]
    read, whole = 0, sum(costs)
    for places, cost in zip(families, costs, strict=True):
        parts[(2 * read + cost) * count // (2 * whole)] += places  # by where the middle of its tokens lies
        read += cost
    return parts


def by_length(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Places for each of ``count`` ranks: like lengths are shared out evenly."""
    order = sorted(range(len(lengths)), key=lambda at: lengths[at])
    return [order[first::count] for first in range(count)]


def total(work: Work) -> Work:
    """That of all ranks."""
    parts = gathered(work)
    return Work(sum(part.read_tokens for part in parts), sum(part.plain_tokens for part in parts))


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()
