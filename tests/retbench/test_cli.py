"""The command line: what it prints where, what it stores, how it ends. Children are stand-ins that answer at once."""

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from experiments import inference
from models.catalogue import systems
from retbench import __version__, cli, isolate, plan
from retbench.environment import ROOT
from retbench.isolate import Outcome
from retbench.record import Record
from retbench.venvs import Venv
from tests.retbench.conftest import PREDICTION, Children

SWEEP = [
    *["inference", "--systems", "retnet,transformer", "--size", "tiny", "--seq-len", "64", "--batch-size", "1"],
    *["--dtype", "fp32", "--device", "cpu", "--threads", "1"],
]
TWINS = ["retnet-torchscale", "llama"]
Run = Callable[..., "Done"]


@dataclass(frozen=True)
class Done:
    """How a command ended and what it wrote."""

    status: int
    out: str
    err: str


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in an empty folder, in this process; figures are left to the tests of the report."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inference, "figures", lambda records: {})

    def run_command(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["retbench", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return Done(int(caught.value.code or 0), *capsys.readouterr())

    return run_command


def stored(folder: Path) -> list[Record]:
    lines = [line for path in folder.glob("results/*/inference.jsonl") for line in path.read_text().splitlines()]
    return [Record.from_json(line) for line in lines]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---- help and lists ----


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_verb_there_is_help(arguments: list[str], run: Run) -> None:
    done = run(*arguments)

    assert (done.status, done.err) == (0, "")
    assert {"list", "inference"} <= set(done.out.split())


def test_the_help_of_an_experiment_names_its_options(run: Run) -> None:
    done = run("inference", "--help")

    assert done.status == 0
    for option in ("seq-len", "batch-size", "systems", "size", "dtype", "device", "threads", "budget", "mem-limit"):
        assert f"--{option}" in done.out
    for option in ("out", "fresh", "dry-run", "seed", "format"):
        assert f"--{option}" in done.out


def test_the_version_is_shown(run: Run) -> None:
    assert run("--version") == Done(0, f"retbench {__version__}\n", "")


def test_bad_input_is_said_by_one_of_the_processes_of_torchrun_and_by_every_other_process(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "1")  # by itself no sign of torchrun
    alone = run("inference", "--format", "xml")
    monkeypatch.setenv("WORLD_SIZE", "2")
    follower = run("inference", "--format", "xml")

    assert (alone.status, len(alone.err.splitlines())) == (2, 1)
    assert (follower.status, follower.err) == (2, "")


EXPERIMENTS = [
    "ablation",
    "claims",
    "complexity",
    "evaluate",
    "gate-power",
    "inference",
    "perplexity",
    "recall",
    "scaling",
    "speed",
    "training",
    "training-cost",
]


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("peers", ["torchscale", "transformers-llama"]),
        ("sizes", ["nano", "tiny", "micro", "mini", "small", "200m", "1.3b", "2.7b", "6.7b", "13b"]),
        ("experiments", EXPERIMENTS),
        ("devices", ["cpu", "cuda"]),
    ],
)
def test_lists_name_a_thing_a_line_and_say_what_it_is(what: str, names: list[str], run: Run) -> None:
    done = run("list", what)

    assert (done.status, done.err) == (0, "")
    assert [line.split()[0] for line in done.out.splitlines()] == names
    assert all(len(line.split()) > 1 for line in done.out.splitlines())


def test_all_lists_are_shown_by_default(run: Run) -> None:
    done = run("list")

    assert all(f"  {name} " in done.out for name in systems())
    assert [line for line in done.out.splitlines() if line.endswith(":")] == [
        "systems:",
        "peers:",
        "sizes:",
        "experiments:",
        "devices:",
    ]


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["inference", "--help"], ["inference", "--size", "huge"]])
def test_what_needs_no_measurement_loads_no_heavy_library(arguments: list[str]) -> None:
    code = f"""
import sys
sys.argv = ["retbench", *{arguments!r}]
from retbench.cli import main
try:
    main()
except SystemExit:
    print("loaded:", *sorted({{"torch", "numpy", "pandas", "matplotlib"}} & sys.modules.keys()), file=sys.stderr)
"""

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert done.stderr.splitlines()[-1] == "loaded:"


# ---- a sweep ----


@pytest.mark.usefixtures("children")
def test_a_sweep_stores_a_record_a_cell_and_says_where(run: Run, tmp_path: Path) -> None:
    done = run(*SWEEP)

    records = stored(tmp_path)
    (path,) = tmp_path.glob("results/*/inference.jsonl")
    assert done.status == 0
    assert [record.cell.system for record in records] == ["retnet", "transformer"]
    assert {record.status for record in records} == {"ok"}
    assert path.parent.name == records[0].environment["machine"]
    assert str(path.relative_to(tmp_path)) in done.err
    assert files(tmp_path) == [str(path.relative_to(tmp_path))]


@pytest.mark.usefixtures("children")
def test_stderr_tells_the_choice_and_the_progress_and_stdout_holds_the_table_alone(run: Run) -> None:
    done = run(*SWEEP, "--seq-len", "1k-2k*2")

    first, *steps, last = done.err.splitlines()
    assert first == "4 cells: size tiny, length 1024 2048, batch 1; fp32 on cpu, 1 thread, budget 2m30s"
    assert [step[:5] for step in steps] == [f"[{n}/4]" for n in (1, 1, 2, 2, 3, 3, 4, 4)]
    assert last.startswith("records: ")
    assert "[1/4]" not in done.out
    assert "retnet" in done.out


@pytest.mark.usefixtures("children")
def test_a_table_in_a_pipe_is_plain_and_80_columns_wide_at_most(run: Run) -> None:
    done = run(*SWEEP, "--systems", "all", "--seq-len", "64,1m", "--batch-size", "1,64k")

    assert "\x1b" not in done.out + done.err
    assert max(map(len, done.out.splitlines())) <= 80


@pytest.mark.usefixtures("children")
def test_the_plan_is_80_columns_wide_at_most(run: Run) -> None:
    done = run(*SWEEP, "--systems", "all", "--seq-len", "64,1m", "--batch-size", "1,64k", "--dry-run")

    assert max(map(len, done.out.splitlines())) <= 80


@pytest.mark.usefixtures("children")
def test_formats_that_machines_read_are_read_by_them(run: Run, tmp_path: Path) -> None:
    lines = run(*SWEEP, "--format", "jsonl").out.splitlines()
    data = json.loads(run(*SWEEP, "--format", "json").out)
    rows = list(csv.reader(io.StringIO(run(*SWEEP, "--format", "csv").out)))

    assert [Record.from_json(line) for line in lines] == stored(tmp_path)
    assert "retnet" in json.dumps(data)
    assert any("retnet" in row for row in rows)
    assert any("tpot_ms" in cell for cell in rows[0])


@pytest.mark.usefixtures("children")
def test_markdown_is_a_table_of_bars(run: Run) -> None:
    lines = run(*SWEEP, "--format", "md").out.splitlines()

    rows = [line for line in lines if line.startswith("|")]
    assert any("retnet" in row for row in rows)
    assert any(set(row) <= set("|-: ") for row in rows)


def test_a_second_run_reuses_what_is_stored(run: Run, children: Children, tmp_path: Path) -> None:
    first = run(*SWEEP)
    again = run(*SWEEP)

    assert len(children.measured) == len(stored(tmp_path)) == 2
    assert again.out == first.out
    assert again.err.count("(stored)") == 2
    assert len([request for request in children.requests if request["task"] == "predict"]) == 1


@pytest.mark.parametrize(
    "more",
    [["--fresh"], ["--seed", "1"], ["--mem-limit", "1GiB"], ["--dtype", "bf16"], ["--batch-size", "2"]],
)
def test_what_asks_for_something_else_is_measured(
    more: list[str], run: Run, children: Children, tmp_path: Path
) -> None:
    run(*SWEEP)
    run(*SWEEP, *more)

    assert len(children.measured) == len(stored(tmp_path)) == 4


def test_what_only_shows_differently_is_not(run: Run, children: Children) -> None:
    run(*SWEEP)
    run(*SWEEP, "--format", "md", "--budget", "10s")

    assert len(children.measured) == 2


def test_a_larger_sweep_measures_what_is_new_alone(run: Run, children: Children) -> None:
    run(*SWEEP)
    run(*SWEEP, "--seq-len", "64,128")

    assert [(cell["system"], cell["seq_len"]) for cell in children.measured[2:]] == [
        ("retnet", 128),
        ("transformer", 128),
    ]


def test_failures_are_shown_and_stored_and_tried_again(run: Run, children: Children, tmp_path: Path) -> None:
    children.outcomes["retnet"] = Outcome("killed", "killed by SIGKILL", [])

    first = run(*SWEEP)
    again = run(*SWEEP)

    assert (first.status, again.status) == (0, 0)
    assert [record.status for record in stored(tmp_path)] == ["killed", "ok", "killed"]
    assert "retnet tiny, batch 1, length 64: killed, killed by SIGKILL" in first.err
    assert "killed" in first.out


@pytest.mark.parametrize("output_format", ["table", "md", "csv", "json", "jsonl"])
def test_a_sweep_of_nothing_but_failures_is_shown(output_format: str, run: Run, children: Children) -> None:
    children.outcomes.update({name: Outcome("oom", "can't allocate memory", []) for name in ("retnet", "transformer")})

    done = run(*SWEEP, "--format", output_format)

    assert done.status == 0
    assert "oom" in done.out


def test_a_dry_run_shows_the_predicted_bytes_and_writes_and_measures_nothing(
    run: Run, children: Children, tmp_path: Path
) -> None:
    done = run(*SWEEP, "--dry-run")

    assert done.status == 0
    assert children.measured == []
    assert files(tmp_path) == []
    assert done.err.startswith("2 cells: ")
    assert "transformer" in done.out


@pytest.mark.usefixtures("children")
def test_a_dry_run_says_what_does_not_fit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PREDICTION, "peak_memory_bytes", 2**50)

    rows = list(csv.DictReader(io.StringIO(run(*SWEEP, "--dry-run", "--format", "csv").out)))

    assert [row["fits"] for row in rows] == ["no", "no"]
    assert {row["peak_memory_bytes"] for row in rows} == {str(2**50)}


@pytest.mark.usefixtures("children")
def test_a_dry_run_says_that_a_peer_is_predicted_as_its_twin(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Venv, "installed", True)

    done = run(*SWEEP, "--peer", "torchscale", "--dry-run", "--format", "json")

    table = json.loads(done.out)["plan"]
    assert [row["system"] for row in table["rows"]][-2:] == ["retnet-torchscale", "torchscale"]
    assert "torchscale: predicted as retnet-torchscale" in table["footnotes"]


@pytest.mark.usefixtures("children")
def test_a_cell_above_the_free_memory_is_skipped_with_its_predicted_bytes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PREDICTION, "peak_memory_bytes", 2**50)

    done = run(*SWEEP)

    assert [record.status for record in stored(tmp_path)] == ["skipped", "skipped"]
    assert "predicted to need 1048576.00 GiB" in done.err
    assert "skipped" in done.out


def test_what_could_not_be_predicted_is_told(run: Run, children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_child(command: Sequence[str], request: dict[str, Any], timeout_s: float, *_: object) -> Outcome:
        if request["task"] == "predict":
            return Outcome("killed", "killed by SIGKILL", [{"predicted": {}, "problem": "no prediction for it"}])
        return children.run(command, request, timeout_s)

    monkeypatch.setattr(isolate, "run_child", run_child)

    done = run(*SWEEP)

    assert done.status == 0
    assert "no prediction for it\n" in done.err
    assert "the prediction ended early (killed: killed by SIGKILL)\n" in done.err
    assert len(children.measured) == 2


def test_an_interrupt_ends_with_130_and_says_what_is_stored(
    run: Run, children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_child(command: Sequence[str], request: dict[str, Any], timeout_s: float, *_: object) -> Outcome:
        if request["task"] == "measure" and request["cell"]["system"] == "transformer":
            raise KeyboardInterrupt
        return children.run(command, request, timeout_s)

    monkeypatch.setattr(isolate, "run_child", run_child)
    done = run(*SWEEP)

    assert (done.status, done.out) == (130, "")
    assert "interrupted: 1 of 2 cells are stored in results/" in done.err
    assert [record.cell.system for record in stored(tmp_path)] == ["retnet"]


@pytest.mark.usefixtures("children")
def test_a_torn_last_line_is_reported_set_aside_and_measured_again(run: Run, tmp_path: Path) -> None:
    run(*SWEEP)
    (path,) = tmp_path.glob("results/*/inference.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])

    done = run(*SWEEP)

    assert done.status == 0
    assert f"torn last line of {len(whole.splitlines()[1]) - 99} bytes moved to results/" in done.err
    assert [record.cell.system for record in stored(tmp_path)] == ["retnet", "transformer"]
    assert path.with_name("inference.jsonl.torn").read_bytes() == whole.splitlines(keepends=True)[1][:-100] + b"\n"


@pytest.mark.usefixtures("children")
def test_a_line_that_is_no_record_is_reported_and_left(run: Run, tmp_path: Path) -> None:
    run(*SWEEP)
    (path,) = tmp_path.glob("results/*/inference.jsonl")
    path.write_text('{"schema_version": 99}\n' + path.read_text())

    done = run(*SWEEP)

    assert done.status == 0
    assert "inference.jsonl:1: skipped, schema version 99, this retbench reads 1" in done.err
    assert path.read_text().startswith('{"schema_version": 99}\n')


@pytest.mark.usefixtures("children")
def test_figures_that_cannot_be_written_are_one_line_after_the_table(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "figures", lambda records: {"figure6": Figure()})
    (tmp_path / "reports").write_text("a file in the way")

    done = run(*SWEEP)

    assert done.status == 2
    assert done.err.splitlines()[-1].startswith("retbench: cannot write figures to reports/inference: ")
    assert "retnet" in done.out
    assert len(stored(tmp_path)) == 2


# ---- bad input ----

BAD_INPUT = [
    (["nonsense"], ["'nonsense'", "verbs are list, ", "inference"]),
    (["inference", "--nope"], ["--nope", "inference --help"]),
    (["inference", "extra"], ["extra", "inference --help"]),
    (["inference", "--seq-len"], ["--seq-len", "requires an argument", "--help"]),
    (["--nope"], ["--nope", "verbs are list, ", "inference"]),
    (["list", "colours"], ["unknown list 'colours'", "systems, peers, sizes, experiments, devices"]),
    ([*SWEEP, "--systems", "retnt"], ["unknown system 'retnt'", "did you mean 'retnet'?", "transformer-flash"]),
    ([*SWEEP, "--systems", ""], ["no system given", "retnet, ", "transformer, "]),
    ([*SWEEP, "--size", "smal"], ["unknown size 'smal'", "did you mean 'small'?", "6.7b"]),
    ([*SWEEP, "--device", "tpu"], ["unknown device 'tpu'", "auto, cpu, cuda"]),
    ([*SWEEP, "--dtype", "fp8"], ["unknown dtype 'fp8'", "auto, fp32, bf16, fp16"]),
    ([*SWEEP, "--format", "xml"], ["unknown format 'xml'", "table, md, csv, json, jsonl"]),
    ([*SWEEP, "--seq-len", ""], ["--seq-len ''", "8192 or 8k"]),
    ([*SWEEP, "--seq-len", "0"], ["--seq-len '0'", "at least 1"]),
    ([*SWEEP, "--seq-len", "-1"], ["--seq-len '-1'", "from 1 to"]),
    ([*SWEEP, "--seq-len", "8k-1k"], ["--seq-len '8k-1k'", "from small to large"]),
    ([*SWEEP, "--seq-len", "1k-8k*1"], ["--seq-len '1k-8k*1'", "2 or more"]),
    ([*SWEEP, "--seq-len", "1k,"], ["--seq-len ''", "8192 or 8k"]),
    ([*SWEEP, "--seq-len", "1-1000"], ["1000 values", "at most 64"]),
    ([*SWEEP, "--seq-len", "2m"], ["--seq-len 2097152", "at most 1048576"]),
    ([*SWEEP, "--batch-size", "0"], ["--batch-size '0'", "at least 1"]),
    ([*SWEEP, "--batch-size", "8-1"], ["--batch-size '8-1'", "from small to large"]),
    ([*SWEEP, "--batch-size", "65537"], ["--batch-size 65537", "at most 65536"]),
    ([*SWEEP, "--threads", "-1"], ["--threads -1", "1 to", "0 for the default"]),
    ([*SWEEP, "--threads", "10000"], ["--threads 10000", "1 to", "0 for the default"]),
    ([*SWEEP, "--threads", "two"], ["--threads", "integer"]),
    ([*SWEEP, "--budget", "soon"], ["--budget 'soon'", "3m, 90s"]),
    ([*SWEEP, "--budget", "0s"], ["--budget '0s'", "more than 0"]),
    ([*SWEEP, "--budget", "-3s"], ["--budget '-3s'", "3m, 90s"]),
    ([*SWEEP, "--mem-limit", "lots"], ["--mem-limit 'lots'", "4GiB"]),
    ([*SWEEP, "--mem-limit", "0"], ["--mem-limit '0'", "at least 1 byte"]),
    ([*SWEEP, "--seed", "-1"], ["--seed", "greater than or equal to 0"]),
    ([*SWEEP, "--seed", "4294967296"], ["--seed", "4294967295"]),
    ([*SWEEP, "--out", "/proc"], ["cannot write /proc/results/"]),
    ([*SWEEP, "--out", "/dev/null"], ["cannot write /dev/null/results/", "is not a folder"]),
]


@pytest.mark.parametrize(("arguments", "words"), BAD_INPUT, ids=lambda value: " ".join(value[-2:]))
def test_bad_input_is_one_line_that_says_what_is_allowed_and_nothing_is_written(
    arguments: list[str], words: list[str], run: Run, children: Children, tmp_path: Path
) -> None:
    done = run(*arguments)

    assert (done.status, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("retbench: ")
    assert all(word in done.err for word in words)
    assert files(tmp_path) == []
    assert children.requests == []


@pytest.mark.parametrize("name", ["out", "out/results"])
def test_a_file_in_the_way_of_the_results_is_refused_and_left(
    name: str, run: Run, children: Children, tmp_path: Path
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("precious")

    done = run(*SWEEP, "--out", "out")

    assert (done.status, done.out, len(done.err.splitlines())) == (2, "", 1)
    assert f"{name} is not a folder" in done.err
    assert (tmp_path / name).read_text() == "precious"
    assert files(tmp_path) == [name]
    assert children.requests == []


def test_a_folder_that_does_not_exist_yet_is_made(run: Run, children: Children, tmp_path: Path) -> None:
    done = run(*SWEEP, "--out", "some/new folder")

    assert done.status == 0
    assert len(stored(tmp_path / "some" / "new folder")) == len(children.measured) == 2


def test_a_defect_is_not_dressed_up_as_bad_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(cells: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(plan, "predict", broken)

    with pytest.raises(ZeroDivisionError):
        run(*SWEEP)
