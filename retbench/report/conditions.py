"""The conditions of a set of rows in words, for the foot of every table and figure."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from retbench.record import Record

TOLERATED_LOAD = 0.5  # above the threads of the cell itself
TOLERATED_SHARE = 0.05  # of the processors' time, taken by the hypervisor


def measured_words(records: Sequence[Record]) -> str:
    """Device, dtype, threads, versions, seed, commit and number of samples; several values stand side by side."""
    parts = [
        hardware_words(records),
        _values("torch {}", records, lambda record: record.environment.get("torch")),
        _values("python {}", records, lambda record: record.environment.get("python")),
        _values("seed {}", records, lambda record: record.cell.seed),
        _values("commit {}", records, _commit),
        _samples(records),
    ]
    return ", ".join(part for part in parts if part)


def hardware_words(records: Sequence[Record]) -> str:
    """Device, dtype and threads."""
    parts = [
        _values("{}", records, lambda record: record.cell.device + _hardware(record)),
        _values("{}", records, lambda record: record.cell.dtype),
        _values("{}", records, lambda record: f"{record.cell.threads} thread{'s' * (record.cell.threads != 1)}"),
    ]
    return ", ".join(part for part in parts if part)


def version_words(records: Sequence[Record]) -> str:
    """Versions of torch and of this repository."""
    torch = _values("torch {}", records, lambda record: record.environment.get("torch"))
    return ", ".join(part for part in (torch, _values("commit {}", records, _commit)) if part)


def disturbance_words(records: Sequence[Record]) -> tuple[str, ...]:
    """A warning where others used the processors: processes by the load average, other machines by stolen time."""
    loads = [record.notes.get("load_average", 0.0) - record.cell.threads * _ranks(record) for record in records]
    shares = [record.notes.get("stolen_share", 0.0) for record in records]
    pairs = zip(loads, shares, strict=True)
    busy = sum(load > TOLERATED_LOAD or share > TOLERATED_SHARE for load, share in pairs)
    if not busy:
        return ()
    causes = [f"load average up to {max(loads):.1f} above the measured threads"] * (max(loads) > TOLERATED_LOAD)
    causes += [f"up to {max(shares):.0%} of the time stolen by the hypervisor"] * (max(shares) > TOLERATED_SHARE)
    return (
        f"DISTURBED: others used the processors beside {busy} of {len(records)} cells ({', '.join(causes)}); "
        "timings and ratios are unreliable: measure with --fresh when it is quiet",
    )


def _hardware(record: Record) -> str:
    name = record.environment.get("cpu" if record.cell.device == "cpu" else "gpu")
    return f" ({' '.join(str(name).split())})" if name else ""


def _commit(record: Record) -> str | None:
    commit = record.environment.get("commit")
    return f"{str(commit)[:12]}{' (dirty)' if record.environment.get('dirty') else ''}" if commit else None


def _samples(records: Sequence[Record]) -> str:
    counts = sorted(len(record.samples.get("step_ns", [])) for record in records if record.samples.get("step_ns"))
    if not counts:
        return ""
    return f"{counts[0]}{f' to {counts[-1]}' if counts[0] != counts[-1] else ''} timed steps a cell"


def _values(words: str, records: Sequence[Record], pick: Callable[[Record], Any]) -> str:
    found = _distinct(str(value) for record in records if (value := pick(record)) is not None)
    return words.format(" / ".join(found)) if found else ""


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _ranks(record: Record) -> int:
    """The processes that measured the cell together."""
    return record.cell.training.ranks if record.cell.training else 1
