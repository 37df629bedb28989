"""ROUGE of a prediction and its references."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

from llmctl import __version__
from llmctl.core.metrics.rouge.subsequence import Sentences, common, union, weighted
from llmctl.core.metrics.rouge.words import tokenizer
from llmctl.core.metrics.sentences import sentences
from llmctl.spec.rouge import KINDS, RougeConfig, Words
from llmctl.spec.rouge import Sentences as Splitting


class Score(NamedTuple):
    """How much of a prediction is in a reference (precision), the reverse (recall), and their harmonic mean."""

    precision: float
    recall: float
    f1: float


NOTHING = Score(0.0, 0.0, 0.0)


class Text:
    """A text's words, each taken from it when first asked for.

    Args:
        words: takes a text to its words, none of which goes on over the end of a sentence.
        split: takes a text to its sentences.
        whole: ask for all words without asking for sentences, which is quicker where nobody wants these.
    """

    def __init__(self, text: str, words: Callable[[str], list[str]], split: Callable[[str], list[str]], whole: bool):
        self._text, self._words, self._split, self._whole = text, words, split, whole
        self._tokens: list[str] | None = None
        self._sentences: list[list[str]] | None = None
        self._ngrams: dict[int, Counter[object]] = {}

    @property
    def tokens(self) -> list[str]:
        """All words."""
        if self._tokens is None:
            self._tokens = self._words(self._text) if self._whole else [*chain.from_iterable(self.sentences)]
        return self._tokens

    @property
    def sentences(self) -> list[list[str]]:
        """The words of each sentence that has some."""
        if self._sentences is None:
            self._sentences = [words for words in map(self._words, self._split(self._text)) if words]
        return self._sentences

    def ngrams(self, n: int) -> "Counter[object]":
        """How often each run of n words is there."""
        if n not in self._ngrams:
            tokens = self.tokens
            runs = tokens if n == 1 else zip(*(tokens[at:] for at in range(n)), strict=False)
            self._ngrams[n] = Counter(runs)
        return self._ngrams[n]


class Rouge:
    """ROUGE of pairs, one after another.

    Args:
        kinds: "rouge1" to "rouge99", "rougeL", "rougeLsum", "rougeW"; one, or several.
        stem: compare Porter's stems of English words.
        words, sentences, weight, line_break: as in `RougeConfig`.

    Raises:
        UserError: an unknown kind, or a weight below 1.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004; details as in rouge_score 0.1.2, whose
    scores these are: no stop words are left out, all texts are read whole, of several references that of the best F1
    counts, for each kind on its own.
    """

    def __init__(
        self,
        kinds: str | Sequence[str] = KINDS,
        stem: bool = False,
        words: Words = "rouge",
        sentences: Splitting = "newline",
        weight: float = 1.2,
        line_break: str | None = None,
    ):
        named = (kinds,) if isinstance(kinds, str) else tuple(kinds)
        self.config = RougeConfig(named, stem, words, sentences, line_break, weight)
        self._words = tokenizer(words, stem)
        self._split = SPLITTING[sentences]
        self._scores = {kind: _scorer(kind, weight) for kind in self.config.kinds}

    @property
    def signature(self) -> str:
        """What is computed: "case:lower|words:rouge|...|version:llmctl-X"."""
        return "|".join([*self.config.signature, f"version:llmctl-{__version__}"])

    def score(self, prediction: str, references: str | Sequence[str]) -> dict[str, Score]:
        """The score of each kind; of several references that with the best F1, the first of equals.

        Raises:
            ValueError: there is no reference.
        """
        said = self._text(prediction)
        wanted = [self._text(text) for text in ([references] if isinstance(references, str) else references)]
        if not wanted:
            raise ValueError("a prediction without a reference")
        return {kind: max((score(said, one) for one in wanted), key=_f1) for kind, score in self._scores.items()}

    def _text(self, text: str) -> Text:
        if self.config.line_break is not None:
            text = text.replace(self.config.line_break, "\n")
        return Text(text, self._words, self._split, "rougeLsum" not in self._scores)


def rouge(
    predictions: Sequence[str],
    references: Sequence[str | Sequence[str]],
    kinds: str | Sequence[str] = KINDS,
    stem: bool = False,
    words: Words = "rouge",
    sentences: Splitting = "newline",
    weight: float = 1.2,
) -> dict[str, Score]:
    """The mean score of each kind over some pairs.

    Raises:
        ValueError: there are not as many predictions as references, or none.
        UserError: an unknown kind, or a weight below 1.
    """
    if len(predictions) != len(references) or not len(predictions):
        raise ValueError(f"{len(predictions)} predictions and {len(references)} references, wanted as many, 1 or more")
    scorer = Rouge(kinds, stem, words, sentences, weight)
    found = [scorer.score(said, wanted) for said, wanted in zip(predictions, references, strict=True)]
    return {
        kind: Score(*(sum(one[kind][part] for one in found) / len(found) for part in range(3)))
        for kind in scorer.config.kinds
    }


def _f1(score: Score) -> float:
    return score.f1


def _scorer(kind: str, weight: float) -> Callable[[Text, Text], Score]:
    """What scores a prediction beside a reference."""
    if kind == "rougeL":
        return _longest
    if kind == "rougeLsum":
        return _summary
    if kind == "rougeW":
        return partial(_weighted, weight=weight)
    return partial(_ngrams, n=int(kind.removeprefix("rouge")))


def _ngrams(said: Text, wanted: Text, n: int) -> Score:
    ours, theirs = said.ngrams(n), wanted.ngrams(n)
    shared = ours.keys() & theirs.keys()
    hits = sum(map(min, map(ours.__getitem__, shared), map(theirs.__getitem__, shared)))
    return _score(hits, max(1, len(said.tokens) - n + 1), max(1, len(wanted.tokens) - n + 1))


def _longest(said: Text, wanted: Text) -> Score:
    if not said.tokens or not wanted.tokens:
        return NOTHING
    return _score(common(said.tokens, wanted.tokens), len(said.tokens), len(wanted.tokens))


def _summary(said: Text, wanted: Text) -> Score:
    """The union of the longest common subsequences of each sentence of the reference with all of the prediction.

    A word counts no more often than it is in the prediction.
    """
    ours, theirs = said.sentences, wanted.sentences
    if not ours or not theirs:
        return NOTHING
    total, of = sum(map(len, ours)), sum(map(len, theirs))
    if len(ours) == len(theirs) == 1:
        return _score(common(ours[0], theirs[0]), total, of)
    others = Sentences(ours)
    taken = Counter(chain.from_iterable(union(sentence, others) for sentence in theirs))
    hits = sum(min(count, others.columns[token].bit_count()) for token, count in taken.items())
    return _score(hits, total, of)


def _weighted(said: Text, wanted: Text, weight: float) -> Score:
    """The weighted common subsequence of runs, each side's share brought back by the inverse of the weights."""
    if not said.tokens or not wanted.tokens:
        return NOTHING
    found = weighted(wanted.tokens, said.tokens, weight) ** (1 / weight)
    return _score(found, len(said.tokens), len(wanted.tokens))


def _score(hits: float, said: int, wanted: int) -> Score:
    if not hits:
        return NOTHING
    precision, recall = hits / said, hits / wanted
    return Score(precision, recall, 2 * precision * recall / (precision + recall))


# A text's sentences for rougeLsum.
SPLITTING: dict[Splitting, Callable[[str], list[str]]] = {
    "newline": lambda text: [line for line in text.split("\n") if line],
    "split": sentences,
}
