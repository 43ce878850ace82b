"""What reading prefixes once saves: 4-shot documents of four choices, each choice alone and from shared prefixes.

Run by: python -m retbench.evaluate.benchmark [SYSTEM ...]. Both ways are timed in turn, so that their ratio holds while
the machine drifts.
"""

import random
import sys
from statistics import median

import torch

from models import build
from retbench.devices import find_device
from retbench.evaluate.scoring import Scorer
from retbench.timing import Stopwatch

SHOT_TOKENS, QUESTION_TOKENS, CHOICE_TOKENS = (40, 60), (30, 50), (4, 14)  # from, to
DOCUMENTS, SHOTS, CHOICES = 4, 4, 4
ROUNDS = 3
SIZE = "small"


def documents(vocab_size: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Requests of random tokens; every document has shots of its own, as lm-eval draws them."""
    generator = random.Random(seed)

    def some(least: int, most: int) -> list[int]:
        return [generator.randrange(vocab_size) for _ in range(generator.randint(least, most))]

    contexts = []
    for _ in range(DOCUMENTS):
        shots = [token for _ in range(SHOTS) for token in some(*SHOT_TOKENS)]
        contexts.append(shots + some(*QUESTION_TOKENS))
    return [(context, some(*CHOICE_TOKENS)) for context in contexts for _ in range(CHOICES)]


def compare(system: str) -> str:
    """A line: tokens read and the time of both ways, and the largest difference of a loglikelihood."""
    model = build(system, SIZE)
    requests = documents(model.config.vocab_size)
    ways = [Scorer(model, max_length=2048, reuse=reuse) for reuse in (False, True)]
    plain, shared = ([score.loglikelihood for score in way.score(requests)] for way in ways)  # warm-up
    error = max(abs(a - b) for a, b in zip(plain, shared, strict=True))
    work = ways[1].work
    tokens = f"{work.plain_tokens} tokens alone, {work.read_tokens} shared: {work.plain_tokens / work.read_tokens:.2f}x"
    stopwatch = Stopwatch(find_device("cpu"))
    for _ in range(ROUNDS):
        for way in ways:
            way.score(requests)
            stopwatch.lap()
    pairs = list(zip(stopwatch.laps_s[::2], stopwatch.laps_s[1::2], strict=True))
    seconds = [median(times) for times in zip(*pairs, strict=True)]
    ratios = sorted(alone / once for alone, once in pairs)
    times = f"{seconds[0]:.2f} s and {seconds[1]:.2f} s: {median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    return f"{system} {SIZE}: {tokens}; {times} faster; loglikelihoods differ by {error:.1e} at most"


def main() -> None:
    torch.set_num_threads(find_device("cpu").default_threads())
    for system in sys.argv[1:] or ("retnet", "transformer-flash"):
        print(compare(system), flush=True)


if __name__ == "__main__":
    main()
