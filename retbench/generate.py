"""Lets a checkpoint speak: streams the continuation of a prompt, then says how fast it was."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from retbench import options
from retbench.checkpoints import find_checkpoint
from retbench.devices import find_device
from retbench.errors import UsageError
from retbench.timing import Stopwatch, rate
from retbench.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from models.language_model import LanguageModel

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # how a decoder shows the first half of a character


def command(
    checkpoint: Annotated[
        str, typer.Option(help="Folder with config.json and safetensors, or hub:OWNER/NAME@REVISION.")
    ],
    prompt: Annotated[str, typer.Option(help="The text to continue.")],
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.", min=1)] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0)] = 0.0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens of this total probability.")] = 1.0,
    seed: options.Seed = 0,
    dtype: options.DtypeName = "auto",
    device: options.DeviceName = "auto",
    threads: options.Threads = 0,
) -> None:
    if not 0 < top_p <= 1:
        raise UsageError(f"--top-p {top_p} is not possible: above 0 and at most 1")
    chosen = find_device(device)
    torch_dtype = None if dtype == "auto" else options.check_dtype(dtype)
    folder = find_checkpoint(checkpoint).folder

    import torch

    from models.checkpoint import CheckpointError, load_checkpoint
    from retbench.measure import TORCH_DTYPES

    torch.set_num_threads(options.check_threads(threads, chosen))
    try:
        model = load_checkpoint(folder, torch_dtype and TORCH_DTYPES[torch_dtype], chosen.name)
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    tokenizer = load_tokenizer(folder)
    prompt_ids = tokenizer.encode(prompt)
    _check(model, tokenizer, prompt_ids)
    stopwatch = Stopwatch(chosen)
    ids = generate(model, prompt_ids, temperature, top_p, seed)
    count = _stream(ids, tokenizer, max_tokens, stopwatch)
    print(f"\n{_summary(len(prompt_ids), count, stopwatch)}", file=sys.stderr)


def generate(
    model: "LanguageModel", prompt: list[int], temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
) -> Iterator[int]:
    """Token ids without end: greedy at temperature 0, else sampled from the nucleus of probability ``top_p``."""
    import torch

    device = model.embedding.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    logits, state = model.prefill(torch.tensor([prompt], device=device))
    while True:
        token = choose(logits, temperature, top_p, generator)  # (1,)
        yield int(token)
        logits, state = model.step(token, state)


def choose(logits: "Tensor", temperature: float, top_p: float, generator: object) -> "Tensor":
    """logits (B, V) -> ids (B,)."""
    import torch

    if temperature == 0:
        return logits.argmax(-1)
    probabilities, order = (logits.float() / temperature).softmax(-1).sort(-1, descending=True)
    before = probabilities.cumsum(-1) - probabilities  # what is likelier than each: 0 for the first, which always stays
    probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    picked = torch.multinomial(probabilities, 1, generator=generator)  # type: ignore[arg-type]
    return order.gather(-1, picked).squeeze(-1)


def _check(model: "LanguageModel", tokenizer: Tokenizer, prompt: list[int]) -> None:
    if not prompt:
        raise UsageError("--prompt is empty: give at least one character")
    if max(prompt) >= model.config.vocab_size:
        sizes = f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}"
        raise UsageError(f"the tokenizer does not belong to this checkpoint: {sizes}")


def _stream(ids: Iterator[int], tokenizer: Tokenizer, max_tokens: int, stopwatch: "Stopwatch") -> int:
    """Prints text as it becomes certain; returns how many tokens were generated."""
    seen: list[int] = []
    printed = 0
    for token in ids:
        stopwatch.lap()
        if token == tokenizer.eos:
            break
        seen.append(token)
        text = tokenizer.decode(seen)
        if not text.endswith(INCOMPLETE) or len(seen) == max_tokens:
            print(text[printed:], end="", flush=True)
            printed = len(text)
        if len(seen) == max_tokens:
            break
    return len(seen)


def _summary(prompt_tokens: int, count: int, stopwatch: "Stopwatch") -> str:
    laps = stopwatch.laps_s
    words = [f"prompt {prompt_tokens} tokens", f"TTFT {laps[0] * 1e3:.1f} ms", f"{count} tokens"]
    if len(laps) > 1:
        words.append(f"{rate(len(laps) - 1, sum(laps[1:])):.1f} tokens/s")
    return ", ".join(words)
