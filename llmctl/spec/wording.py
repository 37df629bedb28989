"""Wording: words that a completion must not have, must have, or may have more or less gladly, and ids that end it."""

from dataclasses import dataclass
from typing import Annotated

from llmctl.errors import Exit, UserError


@dataclass(frozen=True)
class Wording:
    """Words.

    Attributes:
        biases: each text or id of --logit-bias with its value.

    Raises:
        UserError: a word that is empty, or a bias that is not as wanted.
    """

    bad_word: Annotated[tuple[str, ...], "Never write this word, with or without a space before it; repeatable."] = ()
    forced_word: Annotated[
        tuple[str, ...], "Write this word at some place: at the latest where the text would end; repeatable."
    ] = ()
    logit_bias: Annotated[
        tuple[str, ...], "TEXT=VALUE adds VALUE to the score of this text's tokens, #ID=VALUE to an id's; repeatable."
    ] = ()
    stop_id: Annotated[tuple[int, ...], "End with this token id; repeatable."] = ()

    def __post_init__(self) -> None:
        wrong = [f"--{name} is empty" for name in ("bad-word", "forced-word") if "" in getattr(self, _field(name))]
        wrong += [f"--stop-id is {id}, wanted 0 or more" for id in self.stop_id if id < 0]
        wrong += [
            f"--logit-bias is {one!r}, wanted TEXT=VALUE or #ID=VALUE" for one in self.logit_bias if not _bias(one)
        ]
        if wrong:
            raise UserError("; ".join(wrong) + ".", code=Exit.USAGE)

    @property
    def biases(self) -> list[tuple[str | int, float]]:
        """The texts and ids of --logit-bias, with what is added to their scores."""
        return [bias for one in self.logit_bias if (bias := _bias(one))]


def _field(name: str) -> str:
    return name.replace("-", "_")


def _bias(said: str) -> tuple[str | int, float] | None:
    """What TEXT=VALUE or #ID=VALUE says; None where it is neither. A text may hold =; -inf forbids it."""
    text, sign, number = said.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        return None
    if not sign or not text or not value < float("inf"):
        return None
    return (int(text[1:]), value) if text[0] == "#" and text[1:].isdecimal() else (text, value)
