"""BLEU, chrF and TER by sacrebleu: of all texts or of each, over any number of pairs in bounded memory."""

import logging
import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmctl.errors import UserError
from llmctl.spec.translation import Bleu, Chrf, Options, Ter

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

Told = tuple[str, Sequence[str]]  # a prediction, and its references
Row = list[float]  # the counts of a pair, which add up over pairs; a score is made of their sum
# Packages of tokenizers that sacrebleu does not bring, and the file of sentencepiece's models in its directory.
EXTRAS = {"ja-mecab": "sacrebleu[ja]", "ko-mecab": "sacrebleu[ko]"}
SENTENCE_PIECES = {
    "spm": "sacrebleu_tokenizer_spm.model",
    "flores101": "sacrebleu_tokenizer_spm.model",
    "flores200": "flores200sacrebleuspm",
    "spBLEU-1K": "spbleu-1k_tokenizer_spm.model",
}


@dataclass(frozen=True)
class Figures:
    """A score.

    Attributes:
        name: "BLEU", "chrF2++", "TER".
        score: 0 to 100; of TER more where a text is all wrong, and less is better.
        signature: how it came about, in sacrebleu's words.
        details: the counts that it is made of.
        verbose: those that sacrebleu shows after a score, as it shows them.
    """

    name: str
    score: float
    signature: str
    details: dict[str, Any] = field(default_factory=dict)
    verbose: str = ""


def bleu(predictions: Sequence[str], references: Sequence[str | Sequence[str]], options: Bleu | None = None) -> Figures:
    """BLEU of texts, all taken together, against one or more references each.

    Raises:
        ValueError: there is no text, or not as many references.
        UserError: a package or a model of the tokenizer is not there.

    Source: Papineni et al., "BLEU: a method for automatic evaluation of machine translation", ACL 2002, as computed
    by Post, "A call for clarity in reporting BLEU scores", arXiv:1804.08771.
    """
    return _corpus(predictions, references, options or Bleu())


def chrf(predictions: Sequence[str], references: Sequence[str | Sequence[str]], options: Chrf | None = None) -> Figures:
    """chrF, or with words chrF++, of texts, all taken together, against one or more references each.

    Raises:
        ValueError: there is no text, or not as many references.

    Source: Popović, "chrF: character n-gram F-score for automatic MT evaluation", WMT 2015; "chrF++: words helping
    character n-grams", WMT 2017.
    """
    return _corpus(predictions, references, options or Chrf())


def ter(predictions: Sequence[str], references: Sequence[str | Sequence[str]], options: Ter | None = None) -> Figures:
    """The translation edit rate of texts, all taken together, against one or more references each.

    Raises:
        ValueError: there is no text, or not as many references.

    Source: Snover et al., "A study of translation edit rate with targeted human annotation", AMTA 2006.
    """
    return _corpus(predictions, references, options or Ter())


def _corpus(predictions: Sequence[str], references: Sequence[str | Sequence[str]], options: Options) -> Figures:
    if len(predictions) != len(references) or not len(predictions):
        raise ValueError(f"{len(predictions)} predictions and {len(references)} references; wanted as many, and some")
    counts = Counts(options)
    pairs = zip(predictions, references, strict=True)
    counts.add([(said, (told,) if isinstance(told, str) else told) for said, told in pairs])
    return counts.figures()


def count(metric: "Metric", pairs: Sequence[Told]) -> list[Row]:
    """What a metric of sacrebleu's counts in each pair.

    White space at a text's end is not read, as sacrebleu's command does not.

    Raises:
        ValueError: a text has no reference.
    """
    said = [prediction.rstrip() for prediction, _ in pairs]
    told = [[reference.rstrip() for reference in references] for _, references in pairs]
    if not all(told):
        raise ValueError("a text has no reference")
    most = max(map(len, told), default=0)
    streams = [[each[i] if i < len(each) else None for each in told] for i in range(most)]
    rows: list[Row] = metric._extract_corpus_statistics(said, streams) if said else []
    return rows


class Counts:
    """What a metric counts in pairs, which come a few at a time; the sums are the score's.

    Args:
        keep: keep each pair's own counts, as `rows` needs them: 40 to 96 bytes a pair.

    Raises:
        UserError: a package or a model of the tokenizer is not there.
    """

    def __init__(self, options: Options, keep: bool = False):
        self.options = options
        self.metric = METRICS[type(options)](options)
        self._alone: Metric | None = None  # for single pairs
        self.pairs = self.tokenized = 0
        self.sums: Row = []
        # A pair's counts are far below 2^24, so float32 holds them; TER's mean length of references may be a third.
        self._kept = array("d" if isinstance(options, Ter) else "f") if keep else None
        self._references: set[int] = set()

    def add(self, pairs: Sequence[Told]) -> list[Row]:
        """Count pairs; what is counted in each."""
        rows = count(self.metric, pairs)
        self.take(pairs, rows)
        return rows

    def take(self, pairs: Sequence[Told], rows: Sequence[Row]) -> None:
        """Add what was counted in pairs elsewhere."""
        self.pairs += len(rows)
        for (said, told), row in zip(pairs, rows, strict=True):
            self._references.add(len(told))
            self.tokenized += said.rstrip().endswith(" .")
            self.sums = self.sums or [type(value)() for value in row]
            for i, value in enumerate(row):
                self.sums[i] += value
            if self._kept is not None:
                self._kept.extend(row)

    def figures(self, drawn: dict[str, int] | None = None) -> Figures:
        """The score of all pairs so far.

        Args:
            drawn: what the signature says of resamples and shuffles, as `Comparison.drawn` does.
        """
        return self._figures(self.metric, self.sums, drawn)

    def alone(self, row: Row, references: int | None = None) -> Figures:
        """The score of one pair with these counts; of BLEU by the orders that its text is long enough for.

        Args:
            references: how many the pair has; None: as many as all pairs.
        """
        if self._alone is None:
            single = replace(self.options, effective_order=True) if isinstance(self.options, Bleu) else self.options
            self._alone = METRICS[type(single)](single)
        return self._figures(self._alone, row, None, references)

    def score(self, sums: np.ndarray) -> float:
        """The score that sums of counts (K,) make, in their precision."""
        found: float = self.metric._compute_score_from_stats(sums).score
        return found

    def rows(self) -> np.ndarray:
        """The counts of each pair that was added, (N, K); float32, of TER float64."""
        if self._kept is None:
            raise ValueError("the counts of single pairs were not kept")
        return np.frombuffer(self._kept, dtype=self._kept.typecode).reshape(self.pairs, -1)  # (N, K)

    def _figures(
        self, metric: "Metric", sums: Row, drawn: dict[str, int] | None, references: int | None = None
    ) -> Figures:
        found = metric._aggregate_and_compute([list(sums)])
        details = {name: getattr(found, name) for name in DETAILS[type(self.options)]}
        signature = self._signature(metric, drawn, references)
        return Figures(found.name, float(found.score), signature, details, found._verbose)

    def _signature(self, metric: "Metric", drawn: dict[str, int] | None, references: int | None) -> str:
        varying = -1  # sacrebleu's word for it
        metric.num_refs = references or (min(self._references) if len(self._references) == 1 else varying)
        signature = metric.get_signature()
        if isinstance(self.options, Bleu) and self.options.max_order != Bleu().max_order:
            signature.update("order", self.options.max_order)
        for name, number in (drawn or {}).items():
            signature.update(name, number)
        return str(signature)


def _bleu(options: Bleu) -> "Metric":
    _check_tokenizer(options.tokenize)
    from sacrebleu.metrics import BLEU

    logging.getLogger("sacrebleu").setLevel(logging.ERROR)  # spm is said to be flores101 by its signature, too
    try:
        return BLEU(
            lowercase=options.lowercase,
            force=True,
            tokenize=options.tokenize,
            smooth_method=options.smooth_method,
            smooth_value=options.smooth_value,
            max_ngram_order=options.max_order,
            effective_order=options.effective_order,
        )
    except (ImportError, RuntimeError, OSError) as error:
        if options.tokenize in SENTENCE_PIECES and not isinstance(error, ImportError):
            path = _pieces(options.tokenize)
            hint = f"Remove it, and fetch it again. {error}"
            raise UserError(f"{path} is no model of sentencepiece.", hint) from error
        package = EXTRAS.get(options.tokenize, "sentencepiece")
        raise UserError(
            f"--tokenize {options.tokenize} needs a package that is not installed.", f"pip install '{package}'"
        ) from error


def _chrf(options: Chrf) -> "Metric":
    from sacrebleu.metrics import CHRF

    return CHRF(
        char_order=options.char_order,
        word_order=options.word_order,
        beta=options.beta,
        lowercase=options.lowercase,
        whitespace=options.whitespace,
        eps_smoothing=options.eps_smoothing,
    )


def _ter(options: Ter) -> "Metric":
    from sacrebleu.metrics import TER

    return TER(
        normalized=options.normalized,
        no_punct=not options.punct,
        asian_support=options.asian_support,
        case_sensitive=options.case_sensitive,
    )


METRICS: dict[type, Callable[[Any], "Metric"]] = {Bleu: _bleu, Chrf: _chrf, Ter: _ter}
# What sacrebleu's scores are made of, by their attributes.
DETAILS = {
    Bleu: ("counts", "totals", "precisions", "bp", "sys_len", "ref_len"),
    Chrf: ("char_order", "word_order", "beta"),
    Ter: ("num_edits", "ref_length"),
}


def _check_tokenizer(name: str) -> None:
    """Refuses a model of sentencepiece that is not there, which sacrebleu would fetch."""
    if name in SENTENCE_PIECES and not (path := _pieces(name)).exists():
        hint = f"sacrebleu --tokenize {name} fetches it, once; or take --tokenize 13a, intl or char."
        raise UserError(f"--tokenize {name} needs the model {path}, which is not there.", hint)


def _pieces(name: str) -> Path:
    """Where sacrebleu has the model of a tokenizer of sentencepiece."""
    home = Path(os.environ.get("SACREBLEU", Path.home() / ".sacrebleu"))
    return home / "models" / SENTENCE_PIECES[name]
