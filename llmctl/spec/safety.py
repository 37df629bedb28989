"""Safety: what texts that a model wrote are judged for, and how its memory of training text is probed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.idle import check_idle

PiiKind = Literal["email", "phone", "card", "iban", "ssn", "ip", "mac", "crypto", "secret"]
PII: tuple[PiiKind, ...] = ("email", "phone", "card", "iban", "ssn", "ip", "mac", "crypto", "secret")


@dataclass(frozen=True)
class Safety:
    """What is judged.

    Raises:
        UserError: a number out of range, or an option that nothing would look at.
    """

    refusals: Annotated[
        Path | None,
        "File of patterns of refusals, a regular expression a line (# begins a comment), in place of our own.",
    ] = None
    harmless: Annotated[
        str | None,
        "FIELD or FIELD=VALUE: records whose field is true, or that value, hold harmless prompts; refusing those is "
        "told apart (over_refusal).",
    ] = None
    classifier: Annotated[Path | None, "Checkpoint that classifies texts: toxicity is its --label's probability."] = (
        None
    )
    label: Annotated[
        tuple[str, ...],
        "Of --classifier: the label that means toxic; of several (repeatable) the sum, or the likeliest where several "
        "may hold.",
    ] = ()
    toxic_from: Annotated[float, "Texts of this toxicity or more are toxic."] = 0.5
    words: Annotated[
        Path | None,
        "List of words or phrases, one a line: texts that hold one, as whole words in any case, are listed.",
    ] = None
    pii: Annotated[bool, "Look for personal data and secrets that are not in the prompt already."] = False
    pii_kind: Annotated[
        tuple[str, ...],
        "With --pii, only this kind: email, phone, card, iban, ssn, ip, mac, crypto, secret; repeatable. Default: all.",
    ] = ()
    pii_from: Annotated[
        float, "With --pii: what is this sure, 0 to 1, counts. A phone number alone is 0.4; 0.75 where words say so."
    ] = 0.5
    terms: Annotated[
        Path | None,
        'JSON file of groups of terms, {"female": ["she", "her"], "male": ["he"]}: how evenly texts speak of them.',
    ] = None

    def __post_init__(self) -> None:
        if self.classifier is None:
            check_idle(["--label"] if self.label else [], "without --classifier")
            check_idle(["--toxic-from"] if self.toxic_from != 0.5 else [], "without --classifier")
        if not self.pii:
            check_idle(["--pii-kind"] if self.pii_kind else [], "without --pii")
            check_idle(["--pii-from"] if self.pii_from != 0.5 else [], "without --pii")
        wrong = [
            f"--{name} is {value:g}, wanted 0 to 1"
            for name, value in (("toxic-from", self.toxic_from), ("pii-from", self.pii_from))
            if not 0 <= value <= 1
        ]
        wrong += [f"--pii-kind is {kind}, wanted one of {', '.join(PII)}" for kind in self.pii_kind if kind not in PII]
        if self.harmless is not None and not self.harmless.partition("=")[0]:
            wrong.append(f"--harmless is {self.harmless!r}, wanted FIELD or FIELD=VALUE")
        if wrong:
            raise UserError("; ".join(wrong) + ".", code=Exit.USAGE)

    @property
    def kinds(self) -> tuple[PiiKind, ...]:
        """Of personal data, those that are looked for."""
        return tuple(kind for kind in PII if kind in self.pii_kind or not self.pii_kind) if self.pii else ()

    @property
    def names(self) -> tuple[str, ...]:
        """The figures that come of it, each from 0 to 1."""
        found = ["refusal", *(("over_refusal", "harmful_refusal") if self.harmless else ()), "empty"]
        found += ["toxicity", "toxic", "max_toxicity", "any_toxic"] if self.classifier else []
        found += ["listed", "any_listed"] if self.words else []
        found += ["pii", "any_pii"] if self.pii else []
        return (*found, *(["imbalance"] if self.terms else []))


@dataclass(frozen=True)
class Probe:
    """What the model is asked to remember.

    Raises:
        UserError: a number out of range.
    """

    prefix: Annotated[tuple[int, ...], "Tokens of a passage that the model reads before it goes on; repeatable."] = (
        50,
    )
    suffix: Annotated[int, "Tokens that it writes, beside those of the passage."] = 50
    count: Annotated[int, "Passages, drawn evenly from all that the text has; 0: all."] = 1000
    control: Annotated[
        tuple[str, ...],
        "Text that the model was not trained on, for what can be guessed; repeatable. Of a directory of tokens the "
        "held-out part is, where there is one.",
    ] = ()
    seed: Annotated[int, "Of the draw of passages."] = 0

    def __post_init__(self) -> None:
        wrong = {
            f"--prefix is {min(self.prefix, default=0)}, wanted 1 or more": min(self.prefix, default=0) < 1,
            f"--suffix is {self.suffix}, wanted 1 or more": self.suffix < 1,
            f"--count is {self.count}, wanted 0 or more": self.count < 0,
        }
        if any(wrong.values()):
            raise UserError("; ".join(text for text, found in wrong.items() if found) + ".", code=Exit.USAGE)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of prefixes, the shortest first."""
        return tuple(sorted(set(self.prefix)))

    @property
    def tokens(self) -> int:
        """Of a passage."""
        return max(self.prefix) + self.suffix
