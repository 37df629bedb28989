"""Translation metrics: what BLEU, chrF and TER count, and how systems are told apart; sacrebleu's options by name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from llmctl.errors import Exit, UserError
from llmctl.spec.idle import changed, check_idle
from llmctl.spec.limits import no_level

Tokenizer = Literal[
    "13a", "intl", "zh", "char", "none", "ja-mecab", "ko-mecab", "spm", "flores101", "flores200", "spBLEU-1K"
]
Smoothing = Literal["exp", "floor", "add-k", "none"]
PairedTest = Literal["bootstrap", "randomization"]


@dataclass(frozen=True)
class Bleu:
    """BLEU.

    Raises:
        UserError: a value out of range, or one that the smoothing has no use for.
    """

    tokenize: Annotated[
        Tokenizer,
        "How texts become words; 13a: as mteval does; intl: by Unicode's classes; zh: Chinese by character; none: at "
        "spaces. The mecab ones need sacrebleu[ja] or [ko]; spm and what follows it sentencepiece and its model.",
    ] = "13a"
    lowercase: Annotated[bool, "Take capitals for small letters."] = False
    smooth_method: Annotated[
        Smoothing,
        "For orders without a match: exp halves again and again, floor puts --smooth-value in place of 0, add-k adds "
        "it to the counts of words in a row.",
    ] = "exp"
    smooth_value: Annotated[float | None, "Of floor (default: 0.1) and add-k (default: 1)."] = None
    max_order: Annotated[int, "Count runs of at most so many words."] = 4
    effective_order: Annotated[
        bool, "Leave out orders longer than the text; single sentences are always scored so."
    ] = False

    def __post_init__(self) -> None:
        known = get_args(Tokenizer), get_args(Smoothing)
        wrong = {
            f"--tokenize is {self.tokenize!r}, wanted one of {', '.join(known[0])}": self.tokenize not in known[0],
            f"--smooth-method is {self.smooth_method!r}, wanted one of {', '.join(known[1])}": (
                self.smooth_method not in known[1]
            ),
            f"--max-order is {self.max_order}, wanted 1 or more": self.max_order < 1,
            f"--smooth-value is {self.smooth_value}, wanted 0 or more": (self.smooth_value or 0) < 0,
            f"--smooth-value has no meaning with --smooth-method {self.smooth_method}": (
                self.smooth_value is not None and self.smooth_method not in ("floor", "add-k")
            ),
        }
        _refuse(wrong)


@dataclass(frozen=True)
class Chrf:
    """chrF.

    Raises:
        UserError: a value out of range.
    """

    char_order: Annotated[int, "Count runs of at most so many characters."] = 6
    word_order: Annotated[int, "Count runs of at most so many words, too; 2: chrF++."] = 0
    beta: Annotated[int, "How many times recall weighs as much as precision."] = 2
    lowercase: Annotated[bool, "Take capitals for small letters."] = False
    whitespace: Annotated[bool, "Spaces are characters, too."] = False
    eps_smoothing: Annotated[bool, "Smooth as chrF++.py, NLTK and Moses do; else leave out orders that are absent."] = (
        False
    )

    def __post_init__(self) -> None:
        wrong = {
            f"--char-order is {self.char_order}, wanted 1 or more": self.char_order < 1,
            f"--word-order is {self.word_order}, wanted 0 or more": self.word_order < 0,
            f"--beta is {self.beta}, wanted 1 or more": self.beta < 1,
        }
        _refuse(wrong)


@dataclass(frozen=True)
class Ter:
    """TER."""

    case_sensitive: Annotated[bool, "Tell capitals from small letters."] = False
    normalized: Annotated[bool, "Split punctuation from words, and read XML's entities."] = False
    punct: Annotated[bool, "Count punctuation."] = True
    asian_support: Annotated[
        bool, "With --normalized, split Chinese and Japanese into characters; with --no-punct, drop their punctuation."
    ] = False


Options = Bleu | Chrf | Ter


@dataclass(frozen=True)
class Comparison:
    """Significance.

    Raises:
        UserError: a value out of range, or one that nothing would look at.
    """

    ci: Annotated[float | None, "Also the interval that holds this share of bootstrap resamples: 0.95."] = None
    baseline: Annotated[
        tuple[str, ...],
        "Predictions of another system for the same references, to compare with; repeatable. Same form and fields.",
    ] = ()
    test: Annotated[
        PairedTest, "Is a difference from a baseline chance? By paired bootstrap, or approximate randomization."
    ] = "bootstrap"
    resamples: Annotated[int, "Bootstrap resamples, of --ci and of --test bootstrap."] = 1000
    shuffles: Annotated[int, "Trials of --test randomization."] = 10000
    seed: Annotated[int, "Of resamples and shuffles; the default is sacrebleu's."] = 12345

    def __post_init__(self) -> None:
        if not self.baseline:
            used = () if self.ci is None else ("ci", "resamples", "seed")
            check_idle(changed(self, used), "without --baseline" if used else "without --ci or --baseline")
        wrong = {
            **no_level(self.ci),
            f"--resamples is {self.resamples}, wanted 2 or more": self.resamples < 2,
            f"--shuffles is {self.shuffles}, wanted 1 or more": self.shuffles < 1,
            f"--seed is {self.seed}, wanted 0 or more": self.seed < 0,
        }
        _refuse(wrong)

    @property
    def drawn(self) -> dict[str, int]:
        """What a signature says of chance: the resamples (bs), the shuffles (ar) and the seed, where there are such."""
        shuffled = bool(self.baseline) and self.test == "randomization"
        resampled = self.ci is not None or (bool(self.baseline) and not shuffled)
        drawn = {"bs": self.resamples} if resampled else {}
        drawn |= {"ar": self.shuffles} if shuffled else {}
        return drawn | ({"seed": self.seed} if drawn else {})

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of figures that --fail-under and --fail-over may be about."""
        return (
            "score",
            *(("low", "high") if "bs" in self.drawn else ()),
            *(("difference",) if self.baseline else ()),
        )


@dataclass(frozen=True)
class Scored:
    """Output.

    Raises:
        UserError: no process is to count.
    """

    sentence_level: Annotated[bool, "Score each pair alone, a JSON line each, instead of all together."] = False
    samples: Annotated[Path | None, "Also write each pair with its score, a JSON line each, to this file."] = None
    force: Annotated[bool, "Replace the file of --samples that is there."] = False
    varying: Annotated[bool, "Pairs may have different numbers of references; the signature says nrefs:var."] = False
    jobs: Annotated[int, "Processes that count; more are faster where there are many pairs."] = 1

    def __post_init__(self) -> None:
        _refuse({f"--jobs is {self.jobs}, wanted 1 or more": self.jobs < 1})


def _refuse(wrong: dict[str, bool]) -> None:
    if any(wrong.values()):
        raise UserError("; ".join(text for text, found in wrong.items() if found) + ".", code=Exit.USAGE)
