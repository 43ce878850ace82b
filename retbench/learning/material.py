"""What the cells of a learning experiment share: corpora in token files and the tokenizer, read once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from retbench.errors import UsageError
from retbench.learning.corpus import find_corpus
from retbench.learning.scored import check_scored
from retbench.learning.token_files import Tokens, cache_folder, tokenize
from retbench.learning.vocabulary import Vocabulary, find_vocabulary
from retbench.spec import Cell


@dataclass(frozen=True)
class Material:
    """A corpus that is trained on and others that are only scored, in the ids of one tokenizer."""

    tokenizer: str  # as typed
    vocabulary: Vocabulary
    trained: Tokens
    others: tuple[Tokens, ...]

    @property
    def corpora(self) -> dict[str, Tokens]:
        """By name, the one that is trained on first."""
        return {tokens.header.corpus: tokens for tokens in (self.trained, *self.others)}


def read_material(corpus: str, others: Sequence[str], tokenizer: str) -> Material:
    """Tokenizes what is not in the user's cache yet; raises UsageError for what is not there or too little."""
    cache = cache_folder()
    found = [find_corpus(name) for name in dict.fromkeys((corpus, *others))]
    try:
        vocabulary = find_vocabulary(tokenizer, found[0], cache)
        trained = tokenize(found[0], vocabulary, cache)
        rest = tuple(tokenize(one, vocabulary, cache, needed=()) for one in found[1:])
    except OSError as error:
        raise UsageError(f"{error.filename or corpus}: {error.strerror or error}") from error
    for one in rest:
        check_scored(one, trained)
    return Material(tokenizer, vocabulary, trained, rest)


def bound(cells: Sequence[Cell], material: Material) -> list[Cell]:
    """The cells with the size of the vocabulary and the hashes of what is read."""
    data = tuple(tokens.header.data for tokens in material.corpora.values())
    size, identity = material.vocabulary.size, material.vocabulary.identity
    return [
        replace(cell, vocab_size=size, learning=replace(cell.learning, data=data, vocabulary=identity))
        for cell in cells
        if cell.learning is not None
    ]
