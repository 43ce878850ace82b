"""The child's side of an evaluation: loads a checkpoint once, runs task after task by lm-eval, sends what came."""

import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retbench.devices import find_device
from retbench.evaluate.tasks import Data, definition, find_task
from retbench.timing import Stopwatch
from retbench.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from models.language_model import LanguageModel

SEED = 1234  # lm-eval's own for the choice of examples
BOOTSTRAP_ITERATIONS = 100  # of lm-eval's standard errors; that of a mean needs none
BYTES = 512  # a larger vocabulary is not one of bytes
METRICS = ("acc", "acc_norm")

Send = Callable[[dict[str, Any]], None]


def evaluate(request: dict[str, Any], send: Send) -> Iterator[dict[str, Any]]:
    """Of every job: that it started, how far it is (by ``send``), and ``metrics`` with ``documents``, or ``not_run``.

    ``refused`` says that this checkpoint cannot be evaluated at all.
    """
    if request["offline"]:
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"  # before anything reads them
    from retbench.evaluate.shares import rank

    if "group" in request:
        from retbench.measure.ranks import join_group, leave_group

        join_group(request["device"], request["group"])
    found = _prepared(request)
    if isinstance(found, str):
        yield {"refused": found}
    else:
        for at, job in enumerate(request["jobs"]):
            yield {"at": at, "started": True}
            outcome = _run(*found, request, job, partial(_tell, send, at))
            if rank() == 0:  # the others have the same
                yield {"at": at, **outcome}
    if "group" in request:
        leave_group()


def _prepared(request: dict[str, Any]) -> "tuple[LanguageModel, Tokenizer] | str":
    """The model and its tokenizer, or why this checkpoint cannot be evaluated."""
    import torch

    from models.checkpoint import CheckpointError, load_checkpoint
    from retbench.measure import TORCH_DTYPES

    torch.set_num_threads(request["threads"])
    folder = Path(request["checkpoint"])
    try:
        model = load_checkpoint(folder, TORCH_DTYPES[request["dtype"]], request["device"])
    except CheckpointError as error:
        return " ".join(str(error).split())
    tokenizer = load_tokenizer(folder)
    problem = mismatch(tokenizer, model.config.vocab_size)
    return f"{folder}: {problem}" if problem else (model, tokenizer)


def mismatch(tokenizer: Tokenizer, vocab_size: int) -> str | None:
    """Why texts of this tokenizer are nothing to a model of this vocabulary, None where they may be."""
    if isinstance(tokenizer, ByteTokenizer) and vocab_size > BYTES:
        return f"has no tokenizer.json or tokenizer.model, and a vocabulary of {vocab_size} is not one of bytes"
    if tokenizer.vocab_size > vocab_size:
        return f"the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}"
    return None


def _tell(send: Send, at: int, scored: int, total: int) -> None:
    send({"at": at, "scored": scored, "total": total})


def _run(
    model: "LanguageModel",
    tokenizer: Tokenizer,
    request: dict[str, Any],
    job: dict[str, Any],
    told: Callable[[int, int], None],
) -> dict[str, Any]:
    """One task with one number of shots."""
    from lm_eval import evaluator
    from lm_eval.loggers import EvaluationTracker

    from retbench.evaluate.lm import ContractLM
    from retbench.evaluate.scoring import Scorer
    from retbench.evaluate.shares import gathered, rank, total

    longest = min(request["max_length"], getattr(model.config, "l_max", request["max_length"]))
    lm = ContractLM(Scorer(model, longest), tokenizer, told)
    tracker = EvaluationTracker(output_path=request["output_path"]) if request["output_path"] else None
    with tempfile.TemporaryDirectory() as temporary:
        task, problem = _loaded(job, Path(temporary))
        problems = [one for one in gathered(problem) if one]
        if task is None or problems:
            return {"not_run": problems[0]}
        task.set_config(key="num_fewshot", value=job["num_fewshot"])
        task.set_fewshot_seed(seed=SEED)
        stopwatch = Stopwatch(find_device(request["device"]))
        tasks, iterations = {"tasks": {job["task"]: task}}, BOOTSTRAP_ITERATIONS
        found = evaluator.evaluate(lm=lm, task_dict=tasks, limit=request["limit"], bootstrap_iters=iterations)
        stopwatch.lap()
    samples = found.pop("samples")[job["task"]]
    documents = [_document(sample) for sample in samples]
    if tracker and rank() == 0:
        _write(tracker, found, samples, request, job)
    work = total(lm.scorer.work)
    return {
        "metrics": {
            "documents": len(samples),
            "truncated_requests": sum(score.truncated > 0 for score in lm.scores),
            "read_tokens": work.read_tokens,
            "plain_tokens": work.plain_tokens,
            "seconds": stopwatch.laps_s[0],
        },
        "documents": documents,
    }


def _loaded(job: dict[str, Any], folder: Path) -> tuple[Any, str]:
    """The task of a job, or None and why it cannot be had."""
    try:
        return _load(job, folder), ""
    except Exception as error:  # noqa: BLE001 - a download or a definition may fail in any way; the others go on
        return None, " ".join(str(error).split())[:300] or type(error).__name__


def _load(job: dict[str, Any], folder: Path) -> Any:
    """lm-eval's task of a job, from a definition written for it."""
    from lm_eval.tasks import TaskManager

    task = find_task(job["task"])
    data = Data(**job["data"]) if job["data"] else None
    spec = importlib.util.find_spec("lm_eval.tasks")
    assert spec is not None, "it was imported above"
    stock = Path(spec.origin or "").parent
    definitions = folder / "tasks"
    definitions.mkdir()
    text = json.dumps(definition(task, data, stock, folder / "cache"))  # JSON is YAML
    (definitions / f"{task.name}.yaml").write_text(text, encoding="utf-8")
    manager = TaskManager(include_path=str(definitions), include_defaults=False)
    return manager.load([task.name])["tasks"][task.name]


def _document(sample: dict[str, Any]) -> dict[str, Any]:
    """Of one document: its hash, the loglikelihood of each choice, the right one, and each metric."""
    return {
        "doc": sample["doc_hash"],
        "target": sample["target"],
        "loglikelihoods": [value for value, _ in sample["filtered_resps"]],
        **{name: sample[name] for name in METRICS if name in sample},
    }


def _write(
    tracker: Any, results: dict[str, Any], samples: list[dict[str, Any]], request: dict[str, Any], job: dict[str, Any]
) -> None:
    """lm-eval's own files by its own code. It changes the samples, and only warns where it fails: OSError then."""
    name, task = request["name"], job["task"]
    model_args = {"pretrained": name, "checkpoint": request["checkpoint"], "dtype": request["dtype"]}
    results["config"] = {
        "model": "retbench",
        "model_args": model_args,
        "device": request["device"],
        "limit": request["limit"],
        "max_length": request["max_length"],
        "bootstrap_iters": BOOTSTRAP_ITERATIONS,
        "fewshot_seed": SEED,
    }
    results["date"] = datetime.now(UTC).timestamp()
    tracker.general_config_tracker.log_experiment_args("retbench", model_args, None, None, False)
    tracker.save_results_aggregated(results, {task: samples})
    tracker.save_results_samples(task, samples)
    folder = Path(request["output_path"])
    if not list(folder.glob(f"*/samples_{task}_{getattr(tracker, 'date_id', None)}.jsonl")):
        raise OSError(f"lm-eval could not write its files to {folder}")
