"""ROUGE: which kinds of it, of which words and sentences."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.idle import changed, check_idle
from llmctl.spec.limits import no_level

Words = Literal["rouge", "unicode"]
Sentences = Literal["newline", "split"]
KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


@dataclass(frozen=True)
class RougeConfig:
    """ROUGE.

    After construction `kinds` are names of their own: "rouge1", "rougeL".

    Raises:
        UserError: an unknown kind, an empty line break, or a weight below 1.
    """

    kinds: Annotated[
        tuple[str, ...],
        "rougeN (n-grams: rouge1, rouge2 ...), rougeL (longest common subsequence), rougeLsum (sentence by sentence, "
        "their union), rougeW (runs weigh more); with commas between them, or repeatable.",
    ] = KINDS
    stem: Annotated[bool, "Compare stems of English words (Porter), not words."] = False
    words: Annotated[
        Words,
        "rouge: runs of a-z and 0-9, as rouge_score has them; unicode: words of all scripts, or characters where a "
        "script has no spaces.",
    ] = "rouge"
    sentences: Annotated[
        Sentences, "Of rougeLsum: a sentence each line, or split at full stops, questions and exclamations, too."
    ] = "newline"
    line_break: Annotated[
        str | None, "Text that stands for a line break, in files with a text a line: <q>, <n>. Default: none does."
    ] = None
    weight: Annotated[float, "Of rougeW: the power to which the length of a run is raised."] = 1.2

    def __post_init__(self) -> None:
        kinds = dict.fromkeys(kind.strip() for text in self.kinds for kind in text.split(","))
        wrong = [kind for kind in kinds if not re.fullmatch(r"rouge([1-9][0-9]?|L|Lsum|W)", kind)]
        if wrong or not kinds:
            raise UserError(
                f"--kinds is {', '.join(wrong) or 'empty'}; wanted rougeL, rougeLsum, rougeW or rouge1, rouge2 ... "
                "rouge99.",
                code=Exit.USAGE,
            )
        if self.line_break == "":
            raise UserError("--line-break is empty; wanted the text that stands for a line break.", code=Exit.USAGE)
        if not 1 <= self.weight <= 10:
            raise UserError(f"--weight is {self.weight:g}, wanted 1 to 10.", code=Exit.USAGE)
        object.__setattr__(self, "kinds", tuple(kinds))

    @property
    def signature(self) -> list[str]:
        """What is computed: "name:value" each."""
        lsum = [f"sentences:{self.sentences}"] if "rougeLsum" in self.kinds else []
        power = [f"weight:{self.weight:g}"] if "rougeW" in self.kinds else []
        stem = "porter" if self.stem else "no"
        breaks = [] if self.line_break is None else [f"break:{self.line_break}"]
        return ["case:lower", f"words:{self.words}", f"stem:{stem}", *lsum, *breaks, *power, "best:f1"]

    @property
    def figures(self) -> tuple[str, ...]:
        """The names of figures that --fail-under may be about: each kind's F1, and its parts."""
        return tuple(name for kind in self.kinds for name in (kind, f"{kind}.precision", f"{kind}.recall"))


@dataclass(frozen=True)
class Intervals:
    """Intervals.

    Raises:
        UserError: a value out of range, or one that nothing would look at.
    """

    ci: Annotated[
        float | None, "Also the interval that holds this share of bootstrap resamples of each mean F1: 0.95."
    ] = None
    resamples: Annotated[int, "Bootstrap resamples."] = 1000
    seed: Annotated[int, "Of the resamples."] = 12345

    def __post_init__(self) -> None:
        if self.ci is None:
            check_idle(changed(self), "without --ci")
        wrong = {
            **no_level(self.ci),
            f"--resamples is {self.resamples}, wanted 2 to 100000": not 2 <= self.resamples <= 100_000,
            f"--seed is {self.seed}, wanted 0 or more": self.seed < 0,
        }
        if any(wrong.values()):
            raise UserError("; ".join(text for text, found in wrong.items() if found) + ".", code=Exit.USAGE)

    @property
    def signature(self) -> list[str]:
        """What a signature says of chance, where there is any."""
        return [] if self.ci is None else [f"bs:{self.resamples}", f"seed:{self.seed}"]
