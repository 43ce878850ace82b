"""Runs all that a preset lists, whole experiments and then the report, and continues where it was stopped.

Each step is a command of its own. What is stored already is not measured again, so after any end, kill -9 too, the same
command goes on. Times are expected, not limits: a step is ended, as one that hangs, after five times its own and five
minutes more. Exit status: 0 done, 1 a step failed (the rest has run), 2 bad input, 130 interrupted.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Annotated

import typer
from rich.console import Console

from retbench import options
from retbench.errors import UsageError
from retbench.preset import Preset, Step, find_preset, presets
from retbench.quantities import format_duration, parse_duration
from retbench.registry import choose
from retbench.report.tables import Column, Entry, Table, render
from retbench.steps import Ended, run_verb

VERB = "reproduce"
OVERRUN, HANGING_S = 5.0, 300.0  # a step that takes so many times what was planned and this besides is ended: it hangs

PresetName = Annotated[str, typer.Option("--preset", help=f"{', '.join(presets())}, or a file ending in .toml.")]
Only = Annotated[str, typer.Option(help="Comma-separated steps of the preset; --dry-run lists them.")]
TotalBudget = Annotated[str, typer.Option("--budget", help="Time for all steps: their budgets get longer or shorter.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the steps and their times; run nothing.")]


def command(
    context: typer.Context,
    preset: PresetName,
    only: Only = "all",
    budget: TotalBudget = "",
    out: options.Out = Path(),
    dry_run: DryRun = False,
) -> int:
    group = context.find_root().command
    verbs = {name: verb for name, verb in getattr(group, "commands", {}).items() if name != VERB}
    chosen = find_preset(preset, verbs)
    names = choose(only, [step.name for step in chosen.steps], "step")
    chosen = replace(chosen, steps=tuple(step for step in chosen.steps if step.name in names))
    if budget:
        chosen = chosen.scaled(parse_duration(budget, "--budget"))
    render(plan_table(chosen), "table", sys.stdout)
    sys.stdout.flush()
    if dry_run:
        return 0
    if chosen.missing:
        raise UsageError(f"{chosen.missing}, or --only the other steps; nothing was run")
    path = out / "results" / f"reproduce-{chosen.name}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab", buffering=0) as log:
            ends = run_steps(chosen, out, log)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    render(outcome_table(chosen.steps, ends, path), "table", sys.stdout)
    return int(any(ended.outcome != "done" for ended in ends))


def run_steps(preset: Preset, out: Path, log: IO[bytes]) -> list[Ended]:
    """How every step ended; one that fails does not keep the others from running."""
    console, ends = Console(stderr=True), list[Ended]()

    def hear(data: bytes) -> None:
        log.write(data)
        sys.stderr.buffer.write(data)
        sys.stderr.flush()

    for at, step in enumerate(preset.steps):
        left = format_duration(sum(later.takes_s for later in preset.steps[at:]))
        title = f"[{at + 1}/{len(preset.steps)}] {step.name}: {_words(step)} ... about {left} left"
        _say(title, console, log)
        try:
            ends.append(run_verb(step.arguments, out, hear, OVERRUN * step.takes_s + HANGING_S))
        except KeyboardInterrupt:
            _say(f"interrupted in {step.name}; the same command continues", console, log)
            raise
        _say(f"[{at + 1}/{len(preset.steps)}] {step.name}: {_outcome(ends[-1])}", console, log)
    return ends


def plan_table(preset: Preset) -> Table:
    """The steps with what each runs and the time that it is expected to take."""
    columns = (
        Column("planned_s", "takes", "s"),
        Column("step", "step", justify="left"),
        Column("command", "command", justify="left"),
    )
    rows = tuple((_duration(step.takes_s), _text(step.name), _text(_words(step))) for step in preset.steps)
    notes = (
        f"{len(rows)} step{'s' * (len(rows) != 1)}, about {format_duration(preset.takes_s)} on two cores; "
        "what is stored already is not measured again",
        "times are expected, not limits: a step is ended, as one that hangs, after "
        f"{OVERRUN:g} times its own and {format_duration(HANGING_S)} more",
        *([preset.missing] if preset.missing else []),
    )
    return Table("plan", f"{preset.name}: {preset.summary}", columns, rows, notes)


def outcome_table(steps: Sequence[Step], ends: Sequence[Ended], log: Path) -> Table:
    """The steps with the time planned and used, and what became of each."""
    columns = (
        Column("step", "step", justify="left"),
        Column("planned_s", "planned", "s"),
        Column("used_s", "used", "s"),
        Column("outcome", "outcome", justify="left"),
    )
    rows = [
        (
            _text(step.name),
            _duration(step.takes_s),
            _duration(ended.seconds),
            Entry(ended.outcome, ended.outcome, failed=ended.outcome != "done"),
        )
        for step, ended in zip(steps, ends, strict=True)
    ]
    planned_s, used_s = sum(step.takes_s for step in steps), sum(ended.seconds for ended in ends)
    failures = [f"{step.name}: {ended.reason}" for step, ended in zip(steps, ends, strict=True) if ended.reason]
    rows.append((_text("all"), _duration(planned_s), _duration(used_s), _text(f"{len(failures)} failed")))
    notes = (*failures, *["the same command runs what is missing"] * bool(failures), f"log: {log}")
    return Table("outcome", "What became of each step", columns, tuple(rows), notes)


def _say(text: str, console: Console, log: IO[bytes]) -> None:
    log.write(f"{text}\n".encode())
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def _words(step: Step) -> str:
    return shlex.join(["retbench", *step.arguments])


def _outcome(ended: Ended) -> str:
    took = format_duration(ended.seconds)
    return f"{ended.outcome} in {took}" if ended.reason is None else f"{ended.outcome} after {took}, {ended.reason}"


def _text(text: str) -> Entry:
    return Entry(text, text)


def _duration(seconds: float) -> Entry:
    return Entry(round(seconds, 1), format_duration(seconds))
