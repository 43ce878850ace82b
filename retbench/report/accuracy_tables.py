"""Table 3 from records of evaluations: accuracy of every task and checkpoint, and how far two checkpoints differ."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from retbench.evaluate.tasks import TASKS, find_task
from retbench.record import Record
from retbench.report.conditions import measured_words
from retbench.report.tables import Column, Entry, Table
from retbench.statistics import mean_interval

Numbers = Mapping[str, Any]  # the paper's, as in the .toml file of the experiment
Checkpoint = tuple[str, str]  # its name, and what identifies its weights


def checkpoint_of(record: Record) -> Checkpoint:
    """Whose answers a record holds: two folders can have one name, and one folder other weights than before."""
    return record.cell.system, str(record.cell.weights or record.cell.checkpoint)


def best_records(records: Sequence[Record]) -> list[Record]:
    """One of each checkpoint, task and shots: what ran, of all documents or of the most, the last of equals."""
    found: dict[tuple[Any, ...], Record] = {}
    for record in records:
        key = (record.machine, checkpoint_of(record), record.cell.task, record.cell.num_fewshot)
        if key not in found or _fullness(record) >= _fullness(found[key]):
            found[key] = record
    return list(found.values())


def _fullness(record: Record) -> tuple[bool, bool, int]:
    return record.status == "ok", record.cell.limit is None, record.cell.limit or 0


def _names(records: Sequence[Record]) -> dict[Checkpoint, str]:
    """What each checkpoint is called: where several share a name, with the start of what identifies its weights."""
    known = list(dict.fromkeys(map(checkpoint_of, records)))
    shared = Counter(name for name, _ in known)
    return {one: one[0] + f" ({one[1].rpartition('@')[2][:8]})" * (shared[one[0]] > 1) for one in known}


def accuracy_table(stored: Sequence[Record], paper: Numbers) -> Table:
    """A row for each task, shots and checkpoint, and the averages over what ran."""
    records = best_records(stored)
    names = _names(records)
    columns = (
        Column("num_fewshot", "shots"),
        Column("task", "task", justify="left"),
        Column("system", "checkpoint", justify="left"),
        Column("acc_percent", "acc, %", "%"),
        Column("acc_norm_percent", "acc_norm, %", "%"),
        Column("chance", "chance, %", "%"),
        Column("documents", "documents"),
        Column("paper", "paper, %", "%"),
        Column("weights", "weights", justify="left", detail="data"),
        Column("limit", "limit", detail="data"),  # of documents; none where all were taken
    )
    rows: list[tuple[Entry, ...]] = []
    for shots in dict.fromkeys(record.cell.num_fewshot for record in records):
        here = [record for record in records if record.cell.num_fewshot == shots]
        for record in here:
            task, one = str(record.cell.task), checkpoint_of(record)
            start = (Entry(shots, str(shots)), Entry(task, task), Entry(one[0], names[one]))
            reported = _number(_reported(paper, one[0], shots, task))
            end = (reported, Entry(one[1], one[1]), _limit([record]))
            if record.status == "ok":
                count = Entry(record.metrics["documents"], str(record.metrics["documents"]))
                measured = (_interval(record, "acc"), _interval(record, "acc_norm"))
                chance = _number(record.metrics.get("chance_percent"))
                rows.append((*start, *measured, chance, count, *end))
            else:
                words = "not run" if record.status == "skipped" else record.status
                rows.append((*start, Entry(None, words, failed=True), *[Entry(None, "")] * 3, *end))
        for one in dict.fromkeys(map(checkpoint_of, here)):
            rows += _average([record for record in here if checkpoint_of(record) == one], names[one], paper)
    return Table(
        name="accuracy",
        title="Table 3, measured" + _partial(records),
        columns=columns,
        rows=tuple(rows),
        footnotes=(*_notes(records, paper), *_left_out(stored, records), f"evaluated on {measured_words(records)}"),
        section=("num_fewshot",),
    )


def _average(records: Sequence[Record], name: str, paper: Numbers) -> list[tuple[Entry, ...]]:
    """The mean of acc over what ran of a checkpoint, a row or none; the paper's is beside it over the same tasks."""
    ran = [record for record in records if record.status == "ok"]
    if not ran:
        return []
    shots, (system, weights) = ran[0].cell.num_fewshot, checkpoint_of(ran[0])
    mean = sum(record.metrics["acc_percent"] for record in ran) / len(ran)
    whole = {record.cell.task for record in ran} == {task.name for task in TASKS}
    reported = _number(_reported(paper, system, shots, "average") if whole else None)
    count = f"{len(ran)} task" + "s" * (len(ran) > 1)
    start = (Entry(shots, str(shots)), Entry("average", "average"), Entry(system, name), Entry(mean, f"{mean:.1f}"))
    end = (reported, Entry(weights, weights), _limit(ran))
    return [(*start, *[Entry(None, "")] * 2, Entry(len(ran), count), *end)]


def difference_table(stored: Sequence[Record], one: Checkpoint, other: Checkpoint, paper: Numbers) -> Table:
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
    records = best_records(stored)
    names = _names(records)
    found = {(checkpoint_of(r), r.cell.num_fewshot, r.cell.task): r for r in records if r.status == "ok"}
    rows = []
    for (checkpoint, shots, task), record in found.items():
        second = found.get((other, shots, task))
        if checkpoint != one or second is None:
            continue
        interval = mean_interval(_differences(record, second))
        theirs = [_reported(paper, name, shots, str(task)) for name, _ in (one, other)]
        reported = None if None in theirs or theirs[0] == theirs[1] else theirs[0] - theirs[1]  # type: ignore[operator]
        verdict = _verdict(interval.low, interval.high, reported)
        numbers = (_number(value) for value in (interval.value, interval.low, interval.high, reported))
        rows.append((Entry(shots, str(shots)), Entry(task, str(task)), *numbers, Entry(verdict, verdict)))
    return Table(
        name="differences",
        title=f"{names[one]} minus {names[other]}, acc" + _partial(records),
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


def _left_out(stored: Sequence[Record], shown: Sequence[Record]) -> list[str]:
    """That other settings of what is shown are not, where there are some."""
    count = len(stored) - len(shown)
    words = f"{count} more result{'s' * (count > 1)} of these tasks and checkpoints: shown are those of all documents"
    return [f"{words}, else of the most, and the last of these"] if count else []


def _notes(records: Sequence[Record], paper: Numbers) -> list[str]:
    tasks = [find_task(name) for name in dict.fromkeys(str(record.cell.task) for record in records)]
    notes = [task.note for task in tasks if task.note]
    built = [f"built of {r.notes['corpus']}, seed {r.notes['corpus_seed']}" for r in records if "corpus" in r.notes]
    notes += [f"cloze is {words}" for words in dict.fromkeys(built)]
    names = _names(records)
    failed = [record for record in records if record.reason]
    notes += [f"{r.cell.task}, {r.cell.num_fewshot}-shot, {names[checkpoint_of(r)]}: {r.reason}" for r in failed]
    notes += [f"{name} is {weights}" for (_, weights), name in names.items() if "@" in weights]
    notes += _averaged(records)
    cut = sum(record.metrics.get("truncated_requests", 0) for record in records)
    if cut:
        notes.append(f"{cut} requests were longer than {records[0].cell.seq_len} tokens and lost their left")
    setting = paper["setting"]
    tokens = setting["training_tokens"] // 10**9
    return [*notes, f"paper: {setting['size']}, {tokens}B tokens of training; acc where it does not say which metric"]


def _averaged(records: Sequence[Record]) -> list[str]:
    """Over which tasks an average is, where not all of them ran."""
    names = _names(records)
    ran: dict[tuple[int | None, Checkpoint], list[str]] = {}
    for record in records:
        tasks = ran.setdefault((record.cell.num_fewshot, checkpoint_of(record)), [])
        tasks += [str(record.cell.task)] * (record.status == "ok")
    partly = {(record.cell.num_fewshot, checkpoint_of(record)) for record in records if record.status != "ok"}
    words = {key: ", ".join(tasks) for key, tasks in ran.items() if tasks and key in partly}
    return [f"average, {shots}-shot, {names[one]}: over {tasks}" for (shots, one), tasks in words.items()]


def _limit(records: Sequence[Record]) -> Entry:
    """Of documents, none where all were taken; of several tasks with different ones the words for that."""
    limits = {record.cell.limit for record in records}
    limit: int | str | None = limits.pop() if len(limits) == 1 else "several"
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
