"""Several ranks make one record of a cell: their outcomes are combined, and what cannot start is said before."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import multiprocessing

from retbench import ranks
from retbench.errors import UsageError
from retbench.isolate import Outcome
from retbench.ranks import Ended, check_ranks, check_systems, combined
from retbench.record import Status
from retbench.spec import Cell, Training
from tests.retbench import trainer_ranks

TWO = Training(tensor_parallel=2)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are one process, whatever started them."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def ok(**metrics: int) -> Outcome:
    return Outcome("ok", None, [{"notes": {}}, {"metrics": metrics}])


def failed(status: Status, reason: str = "no reason", *messages: dict[str, Any]) -> Outcome:
    return Outcome(status, reason, list(messages))


def cell(system: str, degree: int, **fields: Any) -> Cell:
    training = Training(tensor_parallel=degree)
    return Cell(system, "tiny", "train_step", 16, 1, "fp32", "cpu", threads=1, training=training, **fields)


def test_the_memory_of_the_rank_that_needs_most_is_the_cells_and_every_peak_is_kept() -> None:
    parameters = {"metrics": {"parameters": 9}}
    own, other = ok(peak_memory_bytes=5, rest_bytes=1, parameters=8), ok(peak_memory_bytes=7, rest_bytes=3)
    outcome = combined([Ended(replace(own, messages=[*own.messages, parameters]), 1), Ended(other, 2)])

    most = {"peak_memory_bytes": 7, "rest_bytes": 3, "rank_peak_memory_bytes": [5, 7]}
    assert outcome.status == "ok"
    assert outcome.messages == [{"notes": {}}, {"metrics": most}, parameters]


def test_a_rank_that_was_killed_is_the_cause_and_not_the_one_that_missed_it() -> None:
    missed = failed("error", "RuntimeError: connection closed by peer", {"metrics": {"peak_memory_bytes": 5}})
    outcome = combined([Ended(missed, 1), Ended(failed("killed", "killed by SIGKILL"), 2)])

    assert (outcome.status, outcome.reason) == ("killed", "rank 1: killed by SIGKILL")
    assert outcome.messages == missed.messages  # the other rank's peak is not known


def test_memory_that_ran_out_on_one_rank_is_the_cause_of_whatever_became_of_the_others() -> None:
    outcome = combined([Ended(failed("killed"), 1), Ended(failed("timeout"), 2), Ended(failed("oom", "full"), 3)])

    assert (outcome.status, outcome.reason) == ("oom", "rank 2: full")


def test_of_equal_failures_the_first_is_the_cause() -> None:
    outcome = combined([Ended(failed("error", "second"), 2), Ended(failed("error", "first"), 1)])

    assert outcome.reason == "rank 1: first"


def test_what_all_ranks_say_is_said_once() -> None:
    outcome = combined([Ended(failed("unsupported", "no split"), 1), Ended(failed("unsupported", "no split"), 2)])

    assert (outcome.status, outcome.reason) == ("unsupported", "no split")


@pytest.mark.parametrize(
    ("training", "nproc", "message"),
    [
        (TWO, 1, "--tensor-parallel 2 x --data-parallel 1 needs 2 processes, not 1: give --nproc 2, or start"),
        (Training(data_parallel=2, tensor_parallel=2), 2, "needs 4 processes, not 2: give --nproc 4, or start it with"),
        (Training(), 2, "--tensor-parallel 1 x --data-parallel 1 needs 1 processes, not 2"),
        (Training(fsdp=True), 1, "--data-parallel must be 2 or more"),
        (Training(tensor_parallel=0), 1, "--tensor-parallel and --data-parallel are 1 or more"),
        (Training(), 0, "--nproc is 1 or more"),
    ],
)
def test_processes_that_the_options_do_not_need_are_refused(training: Training, nproc: int, message: str) -> None:
    with pytest.raises(UsageError) as error:
        check_ranks(training, nproc)

    assert message in str(error.value)


def test_the_processes_that_torchrun_has_started_count_and_not_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")

    check_ranks(TWO, nproc=1)

    assert ranks.is_follower()
    with pytest.raises(UsageError, match="needs 3 processes, not 2"):
        check_ranks(Training(tensor_parallel=3), nproc=3)


@pytest.mark.parametrize(
    ("exitcode", "status", "said"), [(2, 2, ""), (-9, 1, "retbench: rank 1 was killed by SIGKILL\n")]
)
def test_a_rank_that_failed_has_said_why_unless_it_was_killed(
    exitcode: int,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    def torchrun(arguments: object) -> None:
        logging.getLogger("torch.distributed.elastic.multiprocessing.api").error("failed (exitcode: %s)", exitcode)
        raise ChildFailedError("retbench", {1: ProcessFailure(1, 4000, exitcode, "no file")})

    elastic = logging.getLogger("torch.distributed.elastic")
    monkeypatch.setattr(elastic, "level", elastic.level)  # restored
    monkeypatch.setattr(run, "run", torchrun)
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    assert ranks.launch(2, "retbench", []) == status
    assert (capsys.readouterr().err, caplog.text) == (said, "")


def test_a_torch_without_torchrun_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "LAUNCHER", "torch.distributed.no_such_module")

    with pytest.raises(UsageError, match="torchrun is not there: this torch was built without"):
        check_ranks(TWO, nproc=2)


def test_heads_that_the_ranks_cannot_share_out_are_refused_with_the_degrees_that_can() -> None:
    with pytest.raises(UsageError, match="does not divide n_heads = 2 of retnet; possible are 1, 2"):
        check_systems([cell("retnet", 2), cell("retnet", 4)])


def test_a_checkpoint_of_no_model_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')

    with pytest.raises(UsageError, match=r"config\.json: \w+ is missing"):
        check_systems([cell("transformer-flash:bad", 2, checkpoint=str(tmp_path))])


def test_a_system_that_cannot_be_split_is_left_to_its_record() -> None:
    check_systems([cell("lstm", 2)])


@pytest.mark.slow
def test_optimizer_steps_of_two_ranks_are_those_of_one_process(tmp_path: Path) -> None:
    trainings = [TWO, Training(data_parallel=2), Training(data_parallel=2, fsdp=True, loss="chunked")]
    cases = [(system, training) for system in ("retnet", "hyena") for training in trainings]

    multiprocessing.spawn(trainer_ranks.run, (2, str(tmp_path), cases), nprocs=2)  # type: ignore[no-untyped-call]

    for rank in range(2):
        for case, (on_ranks, alone) in zip(cases, json.loads((tmp_path / f"{rank}.json").read_text()), strict=True):
            assert on_ranks == pytest.approx(alone, rel=1e-9), case
            assert alone[-1] != pytest.approx(alone[0], rel=1e-3)
