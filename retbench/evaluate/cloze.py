"""A task built of a corpus, which needs no data set: which of four continuations is the held-out document's own.

A question is ``CONTEXT`` words of a document; the choices are the ``ENDING`` words that follow there and as many out of
each of three other documents. Words are joined by single blanks. Examples come from documents that are not held out.
"""

import hashlib
import json
import random
import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from models.cache import cache_folder
from retbench.errors import UsageError
from retbench.evaluate.tasks import CLOZE
from retbench.learning.corpus import Corpus, find_corpus

CONTEXT, ENDING = 80, 16  # words
CHOICES = 4
DOCUMENTS = 256  # of each part of a corpus that are read at most
SPLITS = {"validation": (True, 400), "train": (False, 64)}  # whether held out, questions at most
VERSION = 1  # of the questions that a seed gives


def cloze_folder(name: str, seed: int) -> Path:
    """The folder with the questions of a corpus, as the task's files; they are made once.

    Raises UsageError for a corpus that cannot be read or has too few long documents.
    """
    corpus = find_corpus(name)
    facts = repr((VERSION, corpus.name, corpus.identity, seed))
    folder = cache_folder() / "cloze" / hashlib.sha256(facts.encode()).hexdigest()[:24]
    if not folder.is_dir():
        try:
            _write(corpus, seed, folder)
        except OSError as error:
            raise UsageError(f"{error.filename or name}: {error.strerror or error}") from error
    return folder


def questions(texts: Iterable[str], count: int, seed: int) -> list[dict[str, Any]]:
    """Up to ``count`` questions; none where fewer than four of the texts are long enough."""
    stretches = [found for text in texts if (found := _stretches(text))]
    if len(stretches) < CHOICES:
        return []
    generator = random.Random(seed)
    places = [(document, at) for document, found in enumerate(stretches) for at in range(len(found))]
    made = []
    for document, at in generator.sample(places, len(places)):
        others = generator.sample([other for other in range(len(stretches)) if other != document], CHOICES - 1)
        context, ending = stretches[document][at]
        wrong = [generator.choice(stretches[other])[1] for other in others]
        label = generator.randrange(CHOICES)
        if len({ending, *wrong}) == CHOICES:  # some phrases are in every document
            made.append({"query": context, "choices": [*wrong[:label], ending, *wrong[label:]], "label": label})
        if len(made) == count:
            break
    return made


def _stretches(text: str) -> list[tuple[str, str]]:
    """Context and ending of each stretch of a document; they do not overlap."""
    words, length = text.split(), CONTEXT + ENDING
    starts = range(0, len(words) - length + 1, length)
    return [(" ".join(words[at : at + CONTEXT]), " ".join(words[at + CONTEXT : at + length])) for at in starts]


def _write(corpus: Corpus, seed: int, folder: Path) -> None:
    """The files of both splits; the folder appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as private:
        new = Path(private) / "new"
        new.mkdir()
        for split, (held_out, count) in SPLITS.items():
            made = questions(islice(corpus.documents(held_out), DOCUMENTS), count, seed)
            if not made:
                which = "held-out" if held_out else "other"
                least = f"{CHOICES} {which} documents of at least {CONTEXT + ENDING} words"
                raise UsageError(f"--corpus {corpus.name}: {CLOZE.name} needs {least}")
            lines = "".join(json.dumps(question) + "\n" for question in made)
            CLOZE.file(new, split).write_text(lines, encoding="utf-8")
        try:
            new.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
