"""A vocabulary of 200 ids and documents in memory, for tests of noise."""

import numpy as np

from llmctl.core.data.vocabulary import Vocabulary

PAD, CLS, SEP, MASK = 0, 1, 2, 3
PRE, MID, SUF = 4, 5, 6
STOP = 10  # the token that is a full stop
FIRST = 11  # the first of the plain words
SENTINELS = tuple(range(199, 169, -1))
SIZE = 200


def vocabulary(**changes) -> Vocabulary:
    """Ids 0 to 9 and 170 to 199 are special; odd ids from 11 on begin words, even ones go on with them."""
    special = np.zeros(SIZE, bool)
    special[:STOP] = special[170:] = True
    begins = np.arange(SIZE) % 2 == 1
    begins[:FIRST] = begins[170:] = True
    fields = {
        **{"mask": MASK, "cls": CLS, "sep": SEP, "bos": None, "eos": SEP, "pad": PAD},
        **{"sentinels": SENTINELS, "fim": (PRE, MID, SUF)},
        "special": special,
        "ordinary": np.flatnonzero(~special),
        "begins_word": begins,
        "ends_word": np.arange(SIZE) == STOP,
        "ends_sentence": np.arange(SIZE) == STOP,
    }
    return Vocabulary(**fields | changes)


class Memory:
    """Documents in memory, each closed by SEP."""

    def __init__(self, documents: list[list[int]]):
        self.documents = documents
        self.ids = np.array([i for document in documents for i in [*document, SEP]], np.int64)
        self.document_ends = np.cumsum([len(document) + 1 for document in documents]).astype(np.uint64)
        self.tokens = len(self.ids)

    def read(self, start: int, count: int) -> np.ndarray:
        assert start >= 0 and count >= 0 and start + count <= self.tokens
        return self.ids[start : start + count]


def documents(count: int, shortest: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Random documents of plain words and full stops."""
    draw = np.random.default_rng(seed)
    return [draw.integers(STOP, 170, draw.integers(shortest, longest + 1)).tolist() for _ in range(count)]
