"""What is predicted of a step on several ranks equals, to the byte, what each of two real ones holds and exchanges."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import get_args

import pytest
from torch import distributed, multiprocessing

from models.catalogue import paper_systems
from retbench.measure.predict import Predictor
from retbench.report.training_cost import BF16_BYTES, WHOLE, WHOLE_AT_THE_HEAD, whole_bytes
from retbench.spec import Cell, Checkpointing, Dtype, Training
from tests.retbench import memory_ranks

pytestmark = pytest.mark.usefixtures("one_thread")

WAYS = [Training(tensor_parallel=2), Training(data_parallel=2), Training(data_parallel=2, fsdp=True)]


# Gloo copies what it reduces, at most the parameters of a block, in memory that no operator shows.
COPIED_BYTES = 12 * 128**2 * 4


def cell(system: str, training: Training, dtype: Dtype = "fp32") -> Cell:
    return Cell(system, "tiny", "train_step", 96, 2, dtype, "cpu", 1, training=training, vocab_size=512)


def predicted(of: Cell) -> dict[str, int]:
    return Predictor(of).train(of.seq_len, of.batch_size)


def test_ranks_that_share_heads_or_parameters_hold_half_and_leave_no_group_behind() -> None:
    whole = predicted(cell("retnet", Training()))["weights_bytes"]
    heads, repeated, shards = (predicted(cell("retnet", way)) for way in WAYS)

    norms = 4 * 5 * 2 * 128
    assert not distributed.is_initialized()
    assert heads["weights_bytes"] == (whole - norms) / 2 + norms
    assert repeated["weights_bytes"] == whole == 2 * shards["weights_bytes"]
    assert shards["optimizer_bytes"] < 0.51 * repeated["optimizer_bytes"]


def test_more_ranks_hold_less_each() -> None:
    degrees = [Training(tensor_parallel=2, data_parallel=count, fsdp=True) for count in (2, 4)]
    peaks = [predicted(cell("transformer-flash", training, "bf16"))["peak_memory_bytes"] for training in degrees]

    assert peaks[1] < peaks[0]


@pytest.mark.parametrize("kind", get_args(Checkpointing))
@pytest.mark.parametrize("system", ["retnet", "transformer-flash"])
def test_what_table_4s_model_does_not_divide_is_what_each_of_two_ranks_has_whole(
    system: str, kind: Checkpointing
) -> None:
    kept = {}
    for degree, layers in product((1, 2), (2, 3)):
        of = cell(system, Training(checkpointing=kind, tensor_parallel=degree), "bf16")
        of_plain_code = Predictor(replace(of, n_layers=layers), native=False)  # as on a GPU
        kept[degree, layers] = of_plain_code.train(of.seq_len, of.batch_size)["most_activations_bytes"]

    of_two, of_one = (kept[degree, 3] - kept[degree, 2] for degree in (2, 1))  # of a layer
    stream = of.batch_size * of.seq_len * 128 * BF16_BYTES
    more = (system, kind) == ("retnet", "none")  # RetNet keeps one more, about the gate
    assert 2 * of_two - of_one == pytest.approx((WHOLE[kind] + more) * stream, rel=0.05)
    assert whole_bytes("13b", kind, 8192) == (WHOLE[kind] * 40 + WHOLE_AT_THE_HEAD) * 8192 * 5120 * 2


def compare(folder: Path, cells: list[Cell]) -> list[tuple[Cell, dict[str, int], dict[str, int]]]:
    """Each cell with what was predicted, and what rank 0 measured."""
    multiprocessing.spawn(memory_ranks.run, (2, str(folder), cells), nprocs=2)  # type: ignore[no-untyped-call]
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]
    for cell, of_first, of_second in zip(cells, *ranks, strict=True):
        print(cell.label, predicted(cell), of_first, of_second, sep="\n")
    return [(cell, predicted(cell), of_first) for cell, of_first in zip(cells, ranks[0], strict=True)]


@pytest.mark.slow
def test_two_real_ranks_hold_what_was_predicted_of_every_system(tmp_path: Path) -> None:
    systems = [name for name in paper_systems() if name not in ("lstm", "transformer-concat-cache")]
    cells = [cell(system, way) for system in systems for way in WAYS]

    for of, wanted, found in compare(tmp_path, cells):
        kinds = ("weights_bytes", "gradients_bytes", "activations_bytes", "logits_bytes")
        assert {kind: found[kind] for kind in kinds} == {kind: wanted[kind] for kind in kinds}, of.label
        assert found["exchanged_bytes"] == wanted["step_exchanged_bytes"], of.label
        own = wanted["peak_memory_bytes"] - wanted["weights_bytes"] - wanted["optimizer_bytes"]
        assert 0 <= found["measured"] - own <= COPIED_BYTES, of.label
