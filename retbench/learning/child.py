"""The child's side of a learning cell: trains its system, or counts its n-grams, and scores documents."""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from models.language_model import LanguageModel
from retbench.devices import find_device
from retbench.errors import UsageError
from retbench.learning.loop import Interrupt, Loop
from retbench.learning.ngrams import count
from retbench.learning.perplexity import Losses, Score, at_contexts, carried, keeps_its_size, score, sliding
from retbench.learning.run import MOST_COUNTED, ORDERS, Run, claimed, read_metrics
from retbench.learning.scored import scored
from retbench.learning.telling import Send, Teller, curve
from retbench.learning.token_files import Ids, Tokens, open_tokens
from retbench.measure import TORCH_DTYPES
from retbench.spec import Cell, Learning
from retbench.timing import Stopwatch, rate
from retbench.tokenizer import Tokenizer, load_tokenizer

LAST = 128  # tokens that are scored at every context, as in the paper's Table 8

Documents = list[tuple[Ids, int]]


def learn(request: dict[str, Any], send: Send) -> Iterator[dict[str, Any]]:
    """``made`` tells how far the training is (by ``send``); at last ``metrics`` and ``notes`` of the record.

    ``waits`` tells that another process is training the same run: when it has done, the model is there to be scored.
    """
    cell, folder = Cell.from_dict(request["cell"]), Path(request["folder"])
    if cell.learning is None:
        raise ValueError(f"{cell.label} is not to be trained from scratch")
    torch.set_num_threads(cell.threads)
    corpora = {name: _opened(Path(place)) for name, place in request["corpora"].items()}
    trained = corpora[cell.learning.corpus]
    stopwatch = Stopwatch(find_device(cell.device))
    if cell.system in ORDERS:
        readings, model, parts = _count(cell, trained)
    else:
        readings, model, parts = _train(cell, folder, send)
    stopwatch.lap()
    tokenizer = load_tokenizer(folder)
    documents = {
        name: excerpts(islice(scored(corpus, trained), cell.learning.documents), cell.learning.excerpt, tokenizer)
        for name, corpus in corpora.items()
    }
    scores = _scores(readings, documents, corpora, cell.learning)
    contexts = _contexts(model, documents[cell.learning.corpus], cell.learning.contexts) if model else {}
    stopwatch.lap()
    parts["metrics"] |= _headline(scores, cell.learning, contexts) | {"scoring_s": stopwatch.laps_s[1]}
    parts["notes"] |= {
        "scores": {name: {how: _kept(found) for how, found in hows.items()} for name, hows in scores.items()},
        "contexts": contexts,
    }
    yield parts


def _train(cell: Cell, folder: Path, send: Send) -> tuple[dict[str, Losses], LanguageModel, dict[str, Any]]:
    """The trained model, how it reads, and what its training says."""
    torch.set_default_dtype(TORCH_DTYPES[cell.dtype])
    with claimed(folder, lambda: send({"waits": True})), torch.device(cell.device):
        loop = Loop.open(folder)
        trainer, _ = loop.train(Teller(loop.run.steps, send), Interrupt())
        lines = list(read_metrics(folder))
    model = trainer.model.eval()
    readings: dict[str, Losses] = {"windows": partial(sliding, model, context=cell.seq_len)}
    if keeps_its_size(model):
        readings["carried"] = partial(carried, model)
    points = curve([line["loss"] for line in lines], loop.run.step_tokens)
    train_s = sum(line["step_ms"] for line in lines) / 1e3
    metrics = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": lines[-1]["tokens"],
        "steps": len(lines),
        "train_s": train_s,
        "train_tokens_per_s": rate(lines[-1]["tokens"], train_s),
        "train_loss": points[-1][1],
    }
    return readings, model, {"metrics": metrics, "notes": {"curve": points}}


def _count(cell: Cell, trained: Tokens) -> tuple[dict[str, Losses], None, dict[str, Any]]:
    """N-grams of the tokens that a model with this cell's seed reads, of the first where these are very many."""
    run = Run.of_cell(cell)
    seen = run.batches(trained.train.ids).seen(run.steps, MOST_COUNTED)
    ngrams = count(seen, trained.header.vocab_size, ORDERS[cell.system])
    return {"windows": ngrams.losses}, None, {"metrics": {"tokens": len(seen)}, "notes": {}}


def excerpts(documents: Iterable[tuple[Ids, int]], most: int, tokenizer: Tokenizer) -> Documents:
    """The first ``most`` tokens of each document, with the bytes of their text.

    A character that is cut in two counts as the three bytes of its replacement.
    """
    found = []
    for ids, n_bytes in documents:
        cut = ids[:most]
        found.append((cut, len(tokenizer.decode(cut.tolist()).encode()) if len(cut) < len(ids) else n_bytes))
    return found


def _scores(
    readings: dict[str, Losses], documents: dict[str, Documents], corpora: dict[str, Tokens], learning: Learning
) -> dict[str, dict[str, Score]]:
    """Of every corpus by every reading; the state is carried in the corpus that was trained on alone."""
    return {
        name: {
            how: score(some, losses, corpora[name].header.eos, corpora[name].header.bos)
            for how, losses in readings.items()
            if how == "windows" or name == learning.corpus
        }
        for name, some in documents.items()
    }


def _contexts(model: LanguageModel, documents: Documents, contexts: tuple[int, ...]) -> dict[str, list[list[float]]]:
    """Nats and tokens of each document that is long enough, at every context (Table 8's protocol)."""
    long = [document for document in documents if len(document[0]) > max(contexts)]
    found = [at_contexts(model, [document], contexts, LAST) for document in long]
    return {str(context): [[one[context].nats, one[context].tokens] for one in found] for context in contexts}


def _headline(
    scores: dict[str, dict[str, Score]], learning: Learning, contexts: dict[str, list[list[float]]]
) -> dict[str, float]:
    """In domain, and out of it in the first of the other corpora; all of them are in the notes."""
    named = {"": learning.corpus, "out_of_domain_": next(iter(learning.others), None)}
    found: dict[str, float] = {}
    for prefix, corpus in named.items():
        if corpus is not None:
            one = scores[corpus]["windows"]
            found |= {f"{prefix}loss": one.total.loss, f"{prefix}perplexity": one.total.perplexity}
            found |= {f"{prefix}bits_per_byte": one.bits_per_byte}
    for context, pairs in contexts.items():
        if pairs:
            found[f"loss_at_{context}"] = sum(nats for nats, _ in pairs) / sum(tokens for _, tokens in pairs)
    return found


def _kept(found: Score) -> dict[str, Any]:
    """A score in JSON: nats and tokens of every document and of every bucket of positions."""
    return {
        "documents": [[one.nats, one.tokens] for one in found.documents],
        "positions": {str(first): [one.nats, one.tokens] for first, one in found.positions.items()},
        "bytes": found.n_bytes,
    }


def _opened(folder: Path) -> Tokens:
    tokens = open_tokens(folder)
    if tokens is None:
        raise UsageError(f"the token files in {folder} are gone: the same command makes them again")
    return tokens
