"""Of models that were trained from scratch, the records that stand in one table: those of one setting."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from retbench.record import Record
from retbench.spec import Cell


def longest_setting(records: Sequence[Record], blurred: Callable[[Cell], Cell] = lambda cell: cell) -> list[Record]:
    """The last record of each system, size and seed in the one setting of most tokens, the later one of equals.

    A setting in which no run has come to its end stands behind all others: a longer try that failed replaces no table.
    ``records`` are of cells with ``learning`` or ``recall``. A setting is the machine and all of the cell but system,
    seed and l_max, after ``blurred`` has taken out of it what may differ besides.
    """
    settings = [(replace(blurred(one.cell), system="", seed=0, l_max=None), one.machine) for one in records]
    if not settings:
        return []
    done = {setting for setting, one in zip(settings, records, strict=True) if one.status == "ok"}
    places = {setting: at for at, setting in enumerate(settings)}
    chosen = max(places, key=lambda setting: (setting in done, _tokens(setting[0]), places[setting]))
    found = {
        (one.cell.system, one.cell.size, one.cell.seed): one
        for setting, one in zip(settings, records, strict=True)
        if setting == chosen
    }
    return list(found.values())


def fate(runs: Sequence[Record]) -> str:
    """What became of runs none of which came to its end: oom, timeout, diverged; as in a table."""
    return ", ".join(dict.fromkeys("diverged" if _diverged(run) else run.status for run in runs))


def _diverged(run: Record) -> bool:
    """Whether the loss went astray, which a record holds as an error of that name."""
    return run.status == "error" and str(run.reason).startswith("DivergedError")


def _tokens(cell: Cell) -> int:
    trained = cell.learning or cell.recall
    if trained is None:
        raise ValueError(f"{cell.label} was not trained from scratch")
    return trained.tokens
