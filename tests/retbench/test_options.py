"""The options that experiments share: what they expand to, and what they refuse in words."""

import os
from collections.abc import Callable
from dataclasses import replace

import pytest

from models.catalogue import paper_systems
from retbench import options
from retbench.devices import cpu
from retbench.devices.cpu import DEVICE as CPU
from retbench.errors import UsageError
from retbench.options import FORMATS, Grid, check_format
from retbench.venvs import Venv

GRID = Grid(
    seq_len="1k,2k",
    batch_size="1-4*2",
    systems="retnet,transformer",
    size="tiny,mini",
    dtype="fp32",
    device="cpu",
    threads=1,
    mem_limit="",
    seed=3,
)


def test_a_grid_is_every_combination_and_neighbours_differ_in_the_system() -> None:
    device, cells = GRID.cells("decode")

    assert device is CPU
    assert len(cells) == len(set(cells)) == 2 * 3 * 2 * 2
    assert [cell.system for cell in cells[:4]] == ["retnet", "transformer"] * 2
    assert [(cell.size, cell.seq_len, cell.batch_size) for cell in cells[::2]] == [
        (size, seq_len, batch_size) for size in ("tiny", "mini") for seq_len in (1024, 2048) for batch_size in (1, 2, 4)
    ]


def test_a_cell_holds_what_was_asked_for() -> None:
    _, (cell, *_) = replace(GRID, mem_limit="2GiB").cells("decode")

    assert (cell.workload, cell.dtype, cell.device, cell.threads) == ("decode", "fp32", "cpu", 1)
    assert (cell.seed, cell.mem_limit_bytes) == (3, 2 * 2**30)
    assert (cell.backend, cell.form) == ("auto", "auto")


def test_without_a_limit_there_is_none() -> None:
    _, cells = GRID.cells("decode")

    assert {cell.mem_limit_bytes for cell in cells} == {None}


def test_defaults_are_those_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu.Cpu, "default_dtype", lambda self: "fp16")
    monkeypatch.setattr(cpu.Cpu, "default_size", lambda self: "mini")
    monkeypatch.setattr(cpu.Cpu, "default_threads", lambda self: 1)

    _, cells = replace(GRID, size="auto", dtype="auto", threads=0, seq_len="64", batch_size="1").cells("decode")

    assert {(cell.size, cell.dtype, cell.threads) for cell in cells} == {("mini", "fp16", 1)}


def test_all_systems_and_all_sizes_can_be_asked_for() -> None:
    _, cells = replace(GRID, systems="all", size="all", seq_len="64", batch_size="1").cells("decode")

    assert {"retnet", "transformer", "transformer-flash", "transformer-concat-cache"} <= {c.system for c in cells}
    assert {"tiny", "small", "6.7b", "13b"} <= {cell.size for cell in cells}


def test_all_systems_are_those_of_the_paper_and_a_twin_can_be_named() -> None:
    _, everything = replace(GRID, systems=" all ").cells("decode")
    _, twin = replace(GRID, systems="llama").cells("decode")

    assert {cell.system for cell in everything} == set(paper_systems())
    assert {cell.system for cell in twin} == {"llama"}


@pytest.mark.parametrize(
    ("systems", "first"), [("none", []), ("retnet", ["retnet"]), ("retnet,llama", ["retnet", "llama"])]
)
def test_a_peer_adds_its_rows_and_once_its_twin(
    systems: str, first: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Venv, "installed", True)
    grid = replace(
        GRID, systems=systems, size="tiny", seq_len="64", batch_size="1", peers=("torchscale,transformers-llama",)
    )

    _, cells = grid.cells("decode")

    rows = [*first, "retnet-torchscale", "torchscale", "llama", "transformers-llama", "transformers-llama-static"]
    assert [cell.system for cell in cells] == list(dict.fromkeys(rows))


def test_a_peer_that_is_not_installed_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Venv, "installed", False)

    with pytest.raises(UsageError, match=r"torchscale: not installed; run: retbench peers install torchscale$"):
        replace(GRID, peers=("torchscale",)).cells("decode")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peers": ("torchscal",)}, ["unknown peer 'torchscal'", "did you mean 'torchscale'?"]),
        ({"systems": "retnt"}, ["unknown system 'retnt'", "did you mean 'retnet'?", "transformer-flash"]),
        ({"systems": ""}, ["no system given", "retnet"]),
        ({"size": "huge"}, ["unknown size 'huge'", "tiny", "13b"]),
        ({"dtype": "fp8"}, ["unknown dtype 'fp8'", "auto, fp32, bf16, fp16"]),
        ({"device": "tpu"}, ["unknown device 'tpu'", "auto, cpu, cuda"]),
        ({"threads": -1}, ["--threads -1", "1 to", "0 for the default"]),
        ({"threads": 10_000}, ["--threads 10000", f"1 to {os.cpu_count()}"]),
        ({"seq_len": "0"}, ["--seq-len", "'0'", "at least 1"]),
        ({"seq_len": "2m"}, ["--seq-len 2097152", "at most 1048576"]),
        ({"seq_len": "1k-1m*2,2m"}, ["--seq-len 2097152", "at most 1048576"]),
        ({"seq_len": "8k-1k"}, ["--seq-len '8k-1k'", "from small to large"]),
        ({"batch_size": "-1"}, ["--batch-size '-1'"]),
        ({"batch_size": "65537"}, ["--batch-size 65537", "at most 65536"]),
        ({"mem_limit": "lots"}, ["--mem-limit 'lots'", "4GiB"]),
        ({"mem_limit": "0"}, ["--mem-limit '0'", "at least 1 byte"]),
    ],
)
def test_bad_input_is_refused_with_what_is_allowed(change: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        replace(GRID, **change).cells("decode")  # type: ignore[arg-type]

    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("most", [options.MAX_SEQ_LEN, options.MAX_BATCH_SIZE])
def test_the_largest_values_are_allowed(most: int) -> None:
    field = "seq_len" if most == options.MAX_SEQ_LEN else "batch_size"

    _, cells = replace(GRID, **{field: str(most)}).cells("decode")  # type: ignore[arg-type]

    assert {getattr(cell, field) for cell in cells} == {most}


def test_a_known_format_passes_and_another_is_refused_with_the_known_ones() -> None:
    check: Callable[[str], str] = check_format

    assert [check(name) for name in FORMATS] == ["table", "md", "csv", "json", "jsonl"]
    with pytest.raises(UsageError, match="unknown format 'xml'; formats are table, md, csv, json, jsonl"):
        check("xml")


def test_weights_as_they_are_and_quantized_stand_side_by_side() -> None:
    _, cells = replace(GRID, size="tiny", seq_len="64", batch_size="1", weights="as-is,int8").cells("decode")

    assert [(cell.system, cell.quantize) for cell in cells] == [
        (system, quantize) for quantize in ("none", "int8") for system in ("retnet", "transformer")
    ]
    assert cells[-1].label == "transformer tiny int8, batch 1, length 64"


def test_unknown_weights_are_refused_with_what_is_allowed() -> None:
    with pytest.raises(UsageError, match=r"unknown --weights value 'int4'.*values are as-is, int8"):
        replace(GRID, weights="int4").cells("decode")
