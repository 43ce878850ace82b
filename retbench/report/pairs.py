"""Ratios of times that were measured in turn: what slows the machine for a while slows both, and cancels."""

from typing import TYPE_CHECKING

from retbench.record import Record

if TYPE_CHECKING:
    from retbench.statistics import Interval


def same_rounds(record: Record, other: Record) -> bool:
    """Whether the samples of one place in both records were measured one right after the other."""
    group = record.notes.get("group")
    return group is not None and group == other.notes.get("group")


def time_ratio(above: Record, below: Record, samples: str) -> "Interval | None":
    """The median over rounds of the times of one record / those of another; None where they shared no rounds."""
    if not same_rounds(above, below):
        return None
    from retbench.statistics import median_interval  # numpy: --help does without

    pairs = zip(above.samples[samples], below.samples[samples], strict=True)
    return median_interval([[one / other for one, other in pairs]])
