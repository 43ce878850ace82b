"""Table 3 from records of evaluations: accuracy of every task and checkpoint, and how far two checkpoints differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from retbench.evaluate.tasks import TASKS, find_task
from retbench.record import Record
from retbench.report.conditions import measured_words
from retbench.report.tables import Column, Entry, Table
from retbench.statistics import mean_interval

Numbers = Mapping[str, Any]  # the paper's, as in the .toml file of the experiment


def accuracy_table(records: Sequence[Record], paper: Numbers) -> Table:
    """A row for each task, shots and checkpoint, and the averages over what ran."""
    columns = (
        Column("num_fewshot", "shots"),
        Column("task", "task", justify="left"),
        Column("system", "checkpoint", justify="left"),
        Column("acc_percent", "acc, %", "%"),
        Column("acc_norm_percent", "acc_norm, %", "%"),
        Column("chance", "chance, %", "%"),
        Column("documents", "documents"),
        Column("paper", "paper, %", "%"),
        Column("limit", "limit", detail="data"),  # of documents; none where all were taken
    )
    rows: list[tuple[Entry, ...]] = []
    for shots in dict.fromkeys(record.cell.num_fewshot for record in records):
        here = [record for record in records if record.cell.num_fewshot == shots]
        for record in here:
            task, system = str(record.cell.task), record.cell.system
            start = (Entry(shots, str(shots)), Entry(task, task), Entry(system, system))
            reported = _number(_reported(paper, system, shots, task))
            if record.status == "ok":
                count = Entry(record.metrics["documents"], str(record.metrics["documents"]))
                measured = (_interval(record, "acc"), _interval(record, "acc_norm"))
                chance = _number(record.metrics.get("chance_percent"))
                rows.append((*start, *measured, chance, count, reported, _limit(here)))
            else:
                words = f"not run: {record.status}" if record.status != "skipped" else "not run"
                nothing = [Entry(None, "")] * 3
                rows.append((*start, Entry(None, words, failed=True), *nothing, reported, _limit(here)))
        rows += [
            row for system in dict.fromkeys(r.cell.system for r in here) for row in _average(here, system, shots, paper)
        ]
    return Table(
        name="accuracy",
        title="Table 3, measured" + _partial(records),
        columns=columns,
        rows=tuple(rows),
        footnotes=(*_notes(records, paper), f"evaluated on {measured_words(records)}"),
        section=("num_fewshot",),
    )


def _average(records: Sequence[Record], system: str, shots: int | None, paper: Numbers) -> list[tuple[Entry, ...]]:
    """The mean of acc over what ran, a row or none; the paper's is beside it where the tasks are the paper's."""
    ran = [record for record in records if record.cell.system == system and record.status == "ok"]
    if not ran:
        return []
    mean = sum(record.metrics["acc_percent"] for record in ran) / len(ran)
    whole = {record.cell.task for record in ran} == {task.name for task in TASKS}
    reported = _number(_reported(paper, system, shots, "average") if whole else None)
    count = f"{len(ran)} task" + "s" * (len(ran) > 1)
    start = (Entry(shots, str(shots)), Entry("average", "average"), Entry(system, system), Entry(mean, f"{mean:.1f}"))
    return [(*start, *[Entry(None, "")] * 2, Entry(len(ran), count), reported, _limit(ran))]


def difference_table(records: Sequence[Record], one: str, other: str, paper: Numbers) -> Table:
    """The first checkpoint minus the second, documents paired, beside the paper's RetNet minus Transformer."""
    columns = (
        Column("num_fewshot", "shots"),
        Column("task", "task", justify="left"),
        Column("difference", "difference, %", "%"),
        Column("low", "95 % from", "%"),
        Column("high", "to", "%"),
        Column("paper", "paper, %", "%"),
        Column("verdict", "verdict", justify="left"),
    )
    found = {(r.cell.system, r.cell.num_fewshot, r.cell.task): r for r in records if r.status == "ok"}
    rows = []
    for (system, shots, task), record in found.items():
        second = found.get((other, shots, task))
        if system != one or second is None:
            continue
        interval = mean_interval(_differences(record, second))
        theirs = [_reported(paper, name, shots, str(task)) for name in (one, other)]
        reported = None if None in theirs or theirs[0] == theirs[1] else theirs[0] - theirs[1]  # type: ignore[operator]
        verdict = _verdict(interval.low, interval.high, reported)
        numbers = (_number(value) for value in (interval.value, interval.low, interval.high, reported))
        rows.append((Entry(shots, str(shots)), Entry(task, str(task)), *numbers, Entry(verdict, verdict)))
    return Table(
        name="differences",
        title=f"{one} minus {other}, acc" + _partial(records),
        columns=columns,
        rows=tuple(rows),
        footnotes=(
            "bootstrap over documents, each paired with itself",
            "agrees: the interval lies on the paper's side of 0; differs: on the other side; undecided: it holds 0",
        ),
        section=("num_fewshot",),
    )


def _differences(one: Record, other: Record) -> list[float]:
    """acc of one minus acc of the other, in %, document by document."""
    theirs = {document["doc"]: document["acc"] for document in other.notes["documents"]}
    mine = [(d["acc"], theirs[d["doc"]]) for d in one.notes["documents"] if d["doc"] in theirs]
    return [100.0 * (a - b) for a, b in mine]


def _verdict(low: float, high: float, paper: float | None) -> str:
    if paper is None:
        return "not in the paper"
    if low <= 0 <= high:
        return "undecided"
    return "agrees" if (low > 0) == (paper > 0) else "differs"


def _partial(records: Sequence[Record]) -> str:
    limits = sorted({record.cell.limit for record in records if record.cell.limit})
    return f" (partial: the first {', '.join(map(str, limits))} documents of a task)" if limits else ""


def _notes(records: Sequence[Record], paper: Numbers) -> list[str]:
    tasks = [find_task(name) for name in dict.fromkeys(str(record.cell.task) for record in records)]
    notes = [task.note for task in tasks if task.note]
    built = [f"built of {r.notes['corpus']}, seed {r.notes['corpus_seed']}" for r in records if "corpus" in r.notes]
    notes += [f"cloze is {words}" for words in dict.fromkeys(built)]
    notes += [f"{r.cell.task}, {r.cell.num_fewshot}-shot, {r.cell.system}: {r.reason}" for r in records if r.reason]
    hub = {r.cell.system: r.cell.weights for r in records if "@" in str(r.cell.weights)}
    notes += [f"{system} is {weights}" for system, weights in hub.items()]
    notes += _averaged(records)
    cut = sum(record.metrics.get("truncated_requests", 0) for record in records)
    if cut:
        notes.append(f"{cut} requests were longer than {records[0].cell.seq_len} tokens and lost their left")
    setting = paper["setting"]
    tokens = setting["training_tokens"] // 10**9
    return [*notes, f"paper: {setting['size']}, {tokens}B tokens of training; acc where it does not say which metric"]


def _averaged(records: Sequence[Record]) -> list[str]:
    """Over which tasks an average is, where not all of them ran."""
    ran: dict[tuple[int | None, str], list[str]] = {}
    for record in records:
        names = ran.setdefault((record.cell.num_fewshot, record.cell.system), [])
        names += [str(record.cell.task)] * (record.status == "ok")
    partly = {(record.cell.num_fewshot, record.cell.system) for record in records if record.status != "ok"}
    words = {key: ", ".join(names) for key, names in ran.items() if names and key in partly}
    return [f"average, {shots}-shot, {system}: over {names}" for (shots, system), names in words.items()]


def _limit(records: Sequence[Record]) -> Entry:
    limit = records[0].cell.limit
    return Entry(limit, "" if limit is None else str(limit))


def _interval(record: Record, name: str) -> Entry:
    value = record.metrics.get(f"{name}_percent")
    if value is None:
        return Entry(None, "")
    low, high = record.metrics[f"{name}_percent_low"], record.metrics[f"{name}_percent_high"]
    return Entry(value, f"{value:.1f} ({low:.1f} to {high:.1f})")


def _number(value: float | None) -> Entry:
    return Entry(value, "" if value is None else f"{value:.1f}")


def _reported(paper: Numbers, system: str, shots: int | None, task: str) -> float | None:
    """The paper's accuracy for a checkpoint's kind: RetNet, or any Transformer."""
    built = system.partition(":")[0]
    kind = "transformer" if built.startswith("transformer") else built
    value: float | None = paper["shots"].get(str(shots), {}).get(kind, {}).get(task)
    return value
