"""The training loop: it learns, it goes on bitwise after any end, and a bad end is a result too."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from models import linear
from models.checkpoint import load_checkpoint
from models.language_model import LanguageModel
from retbench import train as command
from retbench import worker
from retbench.environment import ROOT
from retbench.errors import UsageError
from retbench.evaluate import child as evaluate
from retbench.isolate import variables_of
from retbench.learning import checkpoints as saved
from retbench.learning.corpus import Corpus
from retbench.learning.loop import main, train
from retbench.learning.progress import TrainingProgress
from retbench.learning.run import METRICS, RESULT, Run, checkpoints, claimed, read_metrics
from retbench.measure.train_step import Trainer
from retbench.options import Grid
from tests.learning.test_run import RUN

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Ten steps of 64 tokens, saved every four."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return replace(
        RUN, corpus=corpus.name, tokens=640, seq_len=16, batch_size=2, grad_accumulation=2, learning_rate=3e-3
    )


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoints(folder)[-1]).state_dict()


def assert_equal_runs(one: Path, other: Path) -> None:
    assert losses(one) == losses(other)
    for name, weight in weights(one).items():
        assert torch.equal(weight, weights(other)[name])


def test_a_run_learns_and_says_what_it_learnt_from(run: Run, tmp_path: Path) -> None:
    command.prepare(run := replace(run, tokens=64 * 40, save_every=100), tmp_path / "run", resume=False)
    result = train(tmp_path / "run")
    lines = [*read_metrics(tmp_path / "run")]

    assert json.loads((tmp_path / "run" / RESULT).read_text()) == result
    assert result["status"] == "ok"
    assert [line["step"] for line in lines] == [*range(1, 41)]
    assert [line["learning_rate"] for line in lines] == [run.learning_rate_at(step) for step in range(40)]
    assert lines[0]["loss"] == pytest.approx(5.545, abs=0.2)  # log 256
    assert result["held_out"]["perplexity"] < result["baselines"]["unigram"] < 256
    assert result["baselines"]["5-gram"] < result["baselines"]["unigram"]
    assert result["held_out"]["bits_per_byte"] > 1.4427 * result["held_out"]["loss"]  # the end of a text costs too
    assert len(result["data"]) == 64
    assert result["tokenizer"] == "bytes"


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("system", ["retnet", "h3"])
def test_a_run_that_was_asked_to_end_goes_on_as_if_it_had_not(
    system: str, dtype: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replace(run, system=system, dtype=dtype)  # type: ignore[arg-type]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        command.prepare(run, folder, resume=False)
    train(whole)

    def made(self: TrainingProgress, step: int, loss: float, seconds: float) -> None:
        if step == 6:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingProgress, "made", made)
        status = main(parts)
    interrupted = losses(parts)
    command.prepare(run, parts, resume=True)

    assert status == 130
    assert len(interrupted) == 6
    assert train(parts)["status"] == "ok"
    assert_equal_runs(whole, parts)


def test_a_run_that_was_killed_goes_on_bitwise(run: Run, tmp_path: Path) -> None:
    run = replace(run, tokens=64 * 30)
    folder, again = tmp_path / "run", tmp_path / "again"
    command.prepare(run, folder, resume=False)
    child = subprocess.Popen(
        [sys.executable, "-m", "retbench.learning.loop", str(folder)], cwd=ROOT, env=variables_of(1)
    )
    while len(losses(folder)) < 6:
        assert child.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    child.kill()
    child.wait()
    before = losses(folder)
    shutil.copytree(folder, again, ignore=shutil.ignore_patterns("step-*[1-9]*"))
    for each in (folder, again):  # from the newest checkpoint, and from the one before the first step
        assert train(each)["reason"] is None

    assert 6 <= len(before) < 30
    assert losses(folder)[: len(before)] == before
    assert_equal_runs(folder, again)


def test_a_kill_while_a_checkpoint_is_written_costs_no_more_than_the_steps_since_the_last(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        command.prepare(run, folder, resume=False)
    train(whole)
    save_file = saved.save_file

    def dies(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if path.parent.name.endswith("-8"):
            raise SystemExit
        save_file(tensors, path)

    with monkeypatch.context() as patched:
        patched.setattr(saved, "save_file", dies)
        with pytest.raises(SystemExit):
            train(parts)
    with (parts / METRICS).open("a") as metrics:
        metrics.write('{"step": 9, "los')

    assert [path.name for path in checkpoints(parts)] == ["step-00000000", "step-00000004"]
    assert (parts / ".saving-8").exists()
    train(parts)
    assert_equal_runs(whole, parts)
    assert not (parts / ".saving-8").exists()


def test_a_run_that_another_process_is_training_is_left_alone(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    command.prepare(run, folder, resume=False)
    (folder / RESULT).write_text("the other's")
    with claimed(folder):
        status = main(folder)
        with pytest.raises(UsageError, match="another process is training this run"):
            command.prepare(run, folder, resume=True)

    assert status == 2
    assert f"retbench: {folder}: another process is training this run" in capsys.readouterr().err
    assert (folder / RESULT).read_text() == "the other's"
    assert checkpoints(folder) == []


def test_a_checkpoint_is_measured_and_evaluated_by_other_commands(run: Run, tmp_path: Path) -> None:
    command.prepare(replace(run, tokens=64), tmp_path / "run", resume=False)
    train(tmp_path / "run")
    made = checkpoints(tmp_path / "run")[-1]
    grid = Grid("16", "1", "none", "auto", "fp32", "cpu", 1, "", 0, checkpoints=(str(made),))
    _, (cell,) = grid.cells("decode")
    asked = {"checkpoint": str(made), "dtype": "fp32", "device": "cpu", "threads": 1}
    model, found = cast(LanguageModel, worker._model(cell)), evaluate._prepared(asked)
    model.decode_backend = "torch"
    tokens = torch.tensor([list(b"the state")])
    state = model.prefill(tokens[:, :-1], model.init_state(1, 16))[1]
    logits, _ = model.step(tokens[:, -1], state)

    assert cell.system == "retnet:run/step-00000001"
    assert torch.allclose(logits, model(tokens)[:, -1], atol=1e-4)
    assert isinstance(found, tuple), found
    assert found[1].encode("the state") == tokens[0].tolist()
    assert torch.equal(found[0](tokens), model(tokens))


def test_old_checkpoints_are_deleted(run: Run, tmp_path: Path) -> None:
    command.prepare(replace(run, keep=2), tmp_path / "run", resume=False)
    train(tmp_path / "run")

    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000008", "step-00000010"]


def test_how_products_are_computed_is_kept(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command.prepare(run, tmp_path / "run", resume=False)
    monkeypatch.setattr(linear, "onednn_refusal", lambda threads: linear._decided.get(threads, "timed as slower"))
    monkeypatch.setattr(linear.onednn_refusal, "cache_clear", lambda: None, raising=False)
    monkeypatch.setattr(saved, "onednn_refusal", linear.onednn_refusal)
    train(tmp_path / "run")
    assert linear._decided == {}
    train(tmp_path / "run")

    assert linear._decided == {1: "timed as slower"}


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (float("nan"), "diverged, step 3: the loss is nan"),
        (9.7, "diverged, step 3: the loss is 9.70, a uniform guess has 5.55"),
    ],
)
def test_a_run_that_diverges_stops_with_a_result(
    loss: float,
    words: str,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command.prepare(run, tmp_path / "run", resume=False)
    backward, calls = Trainer.backward, []

    def diverges(self: Trainer, tokens: torch.Tensor) -> torch.Tensor:
        calls.append(backward(self, tokens))
        return torch.tensor(loss) if len(calls) == 3 else calls[-1]

    monkeypatch.setattr(Trainer, "backward", diverges)
    status = main(tmp_path / "run")
    result = json.loads((tmp_path / "run" / RESULT).read_text())

    assert status == 1
    assert words in capsys.readouterr().err
    assert result["status"] == "diverged"
    assert len(losses(tmp_path / "run")) == 2


def test_memory_that_runs_out_is_a_status(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(self: Trainer, tokens: torch.Tensor) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.\nmore")

    command.prepare(run, tmp_path / "run", resume=False)
    monkeypatch.setattr(Trainer, "backward", fails)

    assert main(tmp_path / "run") == 1
    assert "retbench: oom, DefaultCPUAllocator" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / RESULT).read_text())["status"] == "oom"


def test_micro_batches_and_chunked_loss_see_the_same_tokens(run: Run, tmp_path: Path) -> None:
    linear.decide_onednn(run.rank_threads, "it takes products of some sizes alone, and rounds otherwise")
    curves = []
    for name, shape in {"a": (4, 1, "plain"), "b": (1, 4, "plain"), "c": (2, 2, "chunked")}.items():
        batch_size, micro_batches, loss = shape
        changed = replace(run, save_every=100, batch_size=batch_size, grad_accumulation=micro_batches, loss=loss)  # type: ignore[arg-type]
        command.prepare(changed, tmp_path / name, resume=False)
        train(tmp_path / name)
        curves.append(losses(tmp_path / name))

    assert curves[0] == pytest.approx(curves[1], abs=1e-4)
    assert curves[0] == pytest.approx(curves[2], abs=1e-4)


def test_all_systems_see_the_same_batches(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    backward = Trainer.backward

    def watched(self: Trainer, tokens: torch.Tensor) -> torch.Tensor:
        seen.setdefault(self.model.config.system, []).append(tokens)
        return backward(self, tokens)

    monkeypatch.setattr(Trainer, "backward", watched)
    for system in ("retnet", "transformer"):
        command.prepare(replace(run, system=system, tokens=64 * 3, save_every=100), tmp_path / system, resume=False)
        train(tmp_path / system)

    assert torch.equal(torch.stack(seen["retnet"]), torch.stack(seen["transformer"]))
