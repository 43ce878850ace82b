"""What reading prefixes once saves: 4-shot documents of four choices, from shared prefixes and in other ways.

Run by: python -m retbench.evaluate.benchmark [SYSTEM | FOLDER ...]. A system is timed against itself with each choice
alone, a Llama's checkpoint folder against lm-eval's own hf model of the same weights, which needs transformers and
accelerate. All ways are timed in turn, so that their ratios hold while the machine drifts.
"""

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from models import build, load_checkpoint
from retbench.devices import find_device
from retbench.evaluate.scoring import Scorer
from retbench.timing import Sample, sample

SHOT_TOKENS, QUESTION_TOKENS, CHOICE_TOKENS = (40, 60), (30, 50), (4, 14)  # from, to
DOCUMENTS, SHOTS, CHOICES = 4, 4, 4
ROUNDS = 3
SIZE = "small"
SYSTEMS = ("retnet", "transformer-flash")
MAX_LENGTH = 2048
HF_BATCH_SIZES = (1, 4)  # the default, and the number of choices

Request = tuple[list[int], list[int]]  # token ids of a context and of its continuation
Way = Callable[[], list[float]]  # to get the loglikelihoods of all requests


@dataclass(frozen=True)
class Comparison:
    """What ours took, round by round, and, by name, each other way; the largest difference of a loglikelihood."""

    ours: Sequence[Sample]
    others: Mapping[str, Sequence[Sample]]
    error: float

    def line(self, name: str) -> str:
        """Medians of another way and of ours, and the ratio, with its range, by which ours is faster."""
        theirs = self.others[name]
        seconds = " and ".join(f"{median(one.wall_ns for one in some) / 1e9:.2f} s" for some in (theirs, self.ours))
        pairs = list(zip(theirs, self.ours, strict=True))
        wall = _words([other.wall_ns / ours.wall_ns for other, ours in pairs])
        cpu = _words([other.cpu_ns / ours.cpu_ns for other, ours in pairs])
        return f"{name} and shared {seconds}: {wall} faster, {cpu} less CPU time"


def documents(vocab_size: int, count: int = DOCUMENTS, seed: int = 0) -> list[Request]:
    """Requests of random tokens; every document has shots of its own, as lm-eval draws them."""
    generator = random.Random(seed)

    def some(least: int, most: int) -> list[int]:
        return [generator.randrange(vocab_size) for _ in range(generator.randint(least, most))]

    contexts = []
    for _ in range(count):
        shots = [token for _ in range(SHOTS) for token in some(*SHOT_TOKENS)]
        contexts.append(shots + some(*QUESTION_TOKENS))
    return [(context, some(*CHOICE_TOKENS)) for context in contexts for _ in range(CHOICES)]


def compared(ours: Way, others: Mapping[str, Way]) -> Comparison:
    """All ways once to warm up and to compare, then ``ROUNDS`` times in turn."""
    ways = [ours, *others.values()]
    expected, *found = (way() for way in ways)
    error = max(abs(a - b) for values in found for a, b in zip(values, expected, strict=True))
    rounds = [[sample(way, find_device("cpu")) for way in ways] for _ in range(ROUNDS)]
    of_ours, *of_others = zip(*rounds, strict=True)
    return Comparison(of_ours, dict(zip(others, of_others, strict=True)), error)


def beside_itself(system: str) -> list[str]:
    """A built system: tokens read and time, each choice alone and from shared prefixes."""
    model = build(system, SIZE)
    requests = documents(model.config.vocab_size)
    alone, shared = (Scorer(model, MAX_LENGTH, reuse=reuse) for reuse in (False, True))
    found = compared(_way(shared, requests), {"alone": _way(alone, requests)})
    plain, read = (count // (1 + ROUNDS) for count in (shared.work.plain_tokens, shared.work.read_tokens))
    tokens = f"{plain} tokens alone, {read} shared: {plain / read:.2f}x fewer"
    return [tokens, found.line("alone"), f"loglikelihoods differ by {found.error:.1e} at most"]


def beside_hf(folder: Path) -> list[str]:
    """A checkpoint: our time, and that of lm-eval's hf model at each batch size, in float32."""
    shared = Scorer(load_checkpoint(folder, torch.float32), MAX_LENGTH)
    requests = documents(shared.model.config.vocab_size, count=DOCUMENTS // 2)
    others = {f"hf, batch {size}": partial(_score, hf_model(folder, size), requests) for size in HF_BATCH_SIZES}
    found = compared(_way(shared, requests), others)
    return [*map(found.line, others), f"loglikelihoods differ by {found.error:.1e} at most"]


def hf_model(folder: Path, batch_size: int) -> Any:
    """lm-eval's own model of a checkpoint that transformers reads."""
    from lm_eval.models.huggingface import HFLM  # needs transformers and accelerate

    settings = {"device": "cpu", "dtype": "float32", "max_length": MAX_LENGTH}
    return HFLM(pretrained=str(folder), batch_size=batch_size, **settings)


def _words(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"


def _way(scorer: Scorer, requests: Sequence[Request]) -> Way:
    return lambda: [score.loglikelihood for score in scorer.score(requests)]


def _score(model: Any, requests: Sequence[Request]) -> list[float]:
    """By the method that lm-eval's loglikelihood calls once it has token ids."""
    given = [(("", ""), *request) for request in requests]
    return [value for value, _ in model._loglikelihood_tokens(given, disable_tqdm=True)]


def main() -> None:
    torch.set_num_threads(find_device("cpu").default_threads())
    for name in sys.argv[1:] or SYSTEMS:
        lines = beside_hf(Path(name)) if Path(name).is_dir() else beside_itself(name)
        print(f"{name}: {'; '.join(lines)}", flush=True)


if __name__ == "__main__":
    main()
