"""Contamination: which test records lie in the training text, by the runs of words (n-grams) that both have."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmctl.core.data.ids import documents_of
from llmctl.core.data.read import files_of, read_records
from llmctl.core.data.shards import Tokens
from llmctl.errors import UserError

LEAST = 8  # words: a record with fewer is never judged
BLOCK = 1 << 20  # characters of training text that are looked at together
# Words: letters and digits, accents with them; of scripts that put no spaces between words, each letter.
WORDS = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
    r"|[^\W_\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that a product forgets nothing


@dataclass(frozen=True)
class Contamination:
    """What was found of N test records in training text.

    Attributes:
        n: words of a run.
        overlaps: N shares of a record's runs that the training text has; None: the record is too short to be judged.
        words: of training text that was searched.
        documents: of training text.
    """

    n: int
    overlaps: tuple[float | None, ...]
    words: int
    documents: int

    @property
    def contaminated(self) -> tuple[bool, ...]:
        """Which records share at least one run with the training text."""
        return tuple(bool(overlap) for overlap in self.overlaps)

    @property
    def judged(self) -> int:
        """Records that are long enough."""
        return sum(overlap is not None for overlap in self.overlaps)

    @property
    def share(self) -> float:
        """Contaminated records over those judged; 0 where none is."""
        return sum(self.contaminated) / max(1, self.judged)


def contamination(records: Sequence[dict[str, Any]], training: Iterable[str], n: int = 13) -> Contamination:
    """Search training text for the runs of n words that test records have.

    Case, punctuation and white space do not count. Each text of a record is searched for by itself; of a record
    whose texts are all shorter than n words, the longest is searched for as a whole if it has LEAST words (or n).
    Memory holds the test records' runs and a block of training text, however long that is.

    Args:
        records: test records; every text in them counts, in lists and objects, too.
        training: texts of the training set, see `training_texts`.
        n: words of a run, 2 or more.

    Source: Brown et al., "Language Models are Few-Shot Learners", arXiv:2005.14165, appendix C: 13-grams, 8 words at
    least. There a run that more than 10 documents have does not count; here it does, so that a test set which was
    copied many times is found.
    """
    wanted = _Wanted(records, n)
    words = documents = 0
    block: list[str] = []
    size = 0
    for text in training:
        documents += 1
        block.append(text)
        size += len(text)
        if size >= BLOCK:
            words += wanted.search(block)
            block, size = [], 0
    words += wanted.search(block)
    return Contamination(n, wanted.overlaps(), words, documents)


def training_texts(sources: Sequence[str]) -> Iterator[str]:
    """The texts that a model was trained on, one at a time; a long plain text in pieces, cut at blank lines.

    Args:
        sources: directories of tokens, whose train split is turned back into text, or files as `read_records` takes
            them: of JSON lines, CSV and parquet every text of a record counts, whatever its field.

    Raises:
        UserError: nothing there, or it cannot be read.
    """
    for source in sources:
        if (Path(source) / "tokens.json").is_file():
            tokens = Tokens.open(source)
            tokenizer = tokens.tokenizer()
            if not tokens.splits["train"].documents:
                raise UserError(f"{source} has no train documents.", "Name the tokens that the model was trained on.")
            for ids in documents_of(tokens.splits["train"], tokenizer.size):
                yield tokenizer.decode(ids)
        else:
            for document in read_records([source]):
                yield "\n".join(texts_of(document.record))


def check_training(sources: Sequence[str]) -> None:
    """Whether training texts are there, before anything takes time.

    Raises:
        UserError: one is not.
    """
    for source in sources:
        if not (Path(source) / "tokens.json").is_file():
            files_of([source])


def texts_of(value: Any) -> Iterator[str]:
    """Every text in a record, in lists and objects, too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from texts_of(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from texts_of(item)


class _Wanted:
    """The runs of words of test records, and which were found.

    Words are numbered from 1; 0 stands for every word that no record has, and between two texts, so that no run that
    holds it is one of a record's.
    """

    def __init__(self, records: Sequence[dict[str, Any]], n: int):
        self.numbers: dict[str, int] = {}
        self.records = len(records)
        words: list[int] = []
        begins: dict[int, list[NDArray[np.int64]]] = {}  # length -> where its runs begin in `words`, and whose they are
        for number, record in enumerate(records):
            texts = [self._numbered(text) for text in texts_of(record)]
            longest = max(texts, key=len, default=[])
            if n > len(longest) >= min(LEAST, n):
                texts = [longest]
            for text in texts:
                length = min(n, len(text)) if text is longest else n
                if len(text) >= length >= min(LEAST, n):
                    places = np.arange(len(words), len(words) + len(text) - length + 1)
                    begins.setdefault(length, []).append(np.stack([places, np.full_like(places, number)]))
                words += [*text, 0]
        self.words = np.array(words, np.uint64)
        self.runs = {length: _Runs(self.words, length, *np.concatenate(some, 1)) for length, some in begins.items()}

    def _numbered(self, text: str) -> list[int]:
        return [self.numbers.setdefault(word, len(self.numbers) + 1) for word in WORDS.findall(text.lower())]

    def search(self, texts: list[str]) -> int:
        """Look for the runs in texts, none of which goes on in the next; how many words they have."""
        known, every = self.numbers.get, []
        for text in texts:
            every += [known(word, 0) for word in WORDS.findall(text.lower())]
            every.append(0)
        ids = np.array(every, np.uint64)
        for runs in self.runs.values():
            runs.search(ids, self.words)
        return len(every) - len(texts)

    def overlaps(self) -> tuple[float | None, ...]:
        """Of each record the share of its runs that were found; None where it has no run."""
        runs = np.zeros(self.records)
        found = np.zeros(self.records)
        for some in self.runs.values():
            runs += np.bincount(some.owners, minlength=self.records)
            found += np.bincount(some.owners, some.found[some.kinds], self.records)
        return tuple(float(f / r) if r else None for f, r in zip(found, runs, strict=True))


class _Runs:
    """The runs of one length of test records.

    Attributes:
        hashes: (K,) of the different runs, rising.
        found: (K,) whether the training text has it.
        begins: (K,) where one such begins in the records' words.
        owners, kinds: (R,) of every run the record that it is of, and its place among the K.
    """

    def __init__(self, words: NDArray[np.uint64], length: int, begins: NDArray[np.int64], owners: NDArray[np.int64]):
        self.length, self.owners = length, owners
        self.hashes, first, kinds = np.unique(_hashes(words, length)[begins], return_index=True, return_inverse=True)
        self.begins, self.kinds = begins[first], kinds.reshape(-1)
        self.found = np.zeros(len(self.hashes), np.bool_)

    def search(self, ids: NDArray[np.uint64], words: NDArray[np.uint64]) -> None:
        """Mark those that are in `ids`. Equal hashes are looked at word by word."""
        if len(ids) < self.length:
            return
        made = _hashes(ids, self.length)
        near = np.minimum(np.searchsorted(self.hashes, made), len(self.hashes) - 1)
        at = np.flatnonzero(self.hashes[near] == made)
        kinds = near[at]
        same = np.ones(len(at), np.bool_)
        for step in range(self.length):
            same &= ids[at + step] == words[self.begins[kinds] + step]
        self.found[kinds[same]] = True


def _hashes(ids: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """(N,) -> (N - length + 1,): a hash of the run that begins at each place, a polynomial modulo 2**64."""
    count = len(ids) - length + 1
    made = np.zeros(count, np.uint64)
    mixed = (ids ^ (ids >> np.uint64(7))) * FACTOR
    mixed ^= mixed >> np.uint64(29)
    for at in range(length):
        made = made * FACTOR + mixed[at : at + count]
    return made
