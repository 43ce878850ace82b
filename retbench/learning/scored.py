"""Which documents a model is scored on: none that it was trained on, each text once."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from retbench.errors import UsageError
from retbench.learning.run import CHECKPOINT, REQUEST
from retbench.learning.token_files import Ids, Tokens, open_tokens


def scored(tokens: Tokens, trained: Tokens | None) -> Iterator[tuple[Ids, int]]:
    """Held-out documents, then all others but those in the train split of ``trained``; each text once.

    Of the corpus that was trained on this is the held-out part. A text is held out by its hash, whatever the corpus:
    such a one is in no train split.
    """
    seen: set[int] = set()
    others = np.flatnonzero(~_trained_on(tokens, trained))
    for split, places in ((tokens.held_out, np.arange(len(tokens.held_out.marks))), (tokens.train, others)):
        for place in places:
            mark = int(split.marks[place])
            if mark not in seen:
                seen.add(mark)
                yield split.document(int(place))


def check_scored(tokens: Tokens, trained: Tokens | None) -> None:
    """Raises UsageError where no document would be scored."""
    if next(scored(tokens, trained), None) is None:
        total = sum(tokens.header.documents.values())
        left = "none of them left to score: models were, or may have been, trained on all" if total else "it needs some"
        raise UsageError(f"corpus {tokens.header.corpus} has {total} documents, {left}")


def part(tokens: Tokens, trained: Tokens | None) -> str:
    """Which documents ``scored`` gives, in words."""
    count = int(_trained_on(tokens, trained).sum())
    if not count:
        return "all"
    return "held-out" if count == tokens.header.documents["train"] else f"all but {count}"


def _trained_on(tokens: Tokens, trained: Tokens | None) -> npt.NDArray[np.bool_]:
    """Of each document in the train split of ``tokens``, whether its text is in that of ``trained``."""
    marks = tokens.train.marks
    if trained is None:
        return np.zeros(len(marks), bool)
    if trained.header.data == tokens.header.data:  # which may be too large to be looked through
        return np.ones(len(marks), bool)
    return np.isin(marks, trained.train.marks)


@dataclass(frozen=True)
class Past:
    """What is known of a checkpoint's training: the corpus, and its token files where they are still there."""

    corpus: str | None = None
    tokens: Tokens | None = None

    def trained(self, tokens: Tokens) -> Tokens | None:
        """Whose train split is left out of ``tokens``: their own where that of the corpus can no longer be read."""
        return self.tokens or (tokens if self.corpus else None)

    @property
    def words(self) -> str:
        """What is scored of the checkpoint, and why."""
        if self.corpus is None:
            return "nothing beside it says what it was trained on: all documents are scored"
        if self.tokens is None:
            return f"trained on {self.corpus}, whose token files are gone: of every corpus the held-out part is scored"
        return f"trained on {self.corpus}: all documents are scored but those whose text was in its train split"


def past_of(checkpoint: Path) -> Past:
    """By the run whose folder it is in; raises UsageError where that cannot be read."""
    folder = checkpoint.resolve()
    path = folder.parent / REQUEST
    if not folder.name.startswith(CHECKPOINT) or not path.exists():
        return Past()
    try:
        request = json.loads(path.read_text(encoding="utf-8"))
        return Past(str(request["run"]["corpus"]), open_tokens(Path(request["tokens"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not what retbench train writes: {error}") from error
