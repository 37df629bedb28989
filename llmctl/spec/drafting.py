"""Drafting: how tokens are guessed ahead, so that the model reads several at once (speculative decoding)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.idle import changed, check_idle

Accept = Literal["same", "most"]

MOST = 32  # tokens guessed at a time; a cache with a window can take back twice as many


@dataclass(frozen=True)
class Drafting:
    """Guessing ahead.

    What is written stays what the model writes; where guesses are right it comes sooner.

    Raises:
        UserError: more than one source of guesses, options of guessing without one, or a value out of range.
    """

    draft_model: Annotated[
        Path | None, "Checkpoint of a smaller model with the same tokens, which guesses what comes next."
    ] = None
    lookup: Annotated[bool, "Guess that what followed the last tokens earlier in the text follows them again."] = False
    skip_layers: Annotated[
        tuple[str, ...],
        "Guess with the model itself less these layers: 9, or 9-20, repeatable; auto: the half that changes least.",
    ] = ()
    draft_tokens: Annotated[int, "Tokens guessed at a time; 0: as many as pay by how the last guesses fared."] = 0
    draft_accept: Annotated[
        Accept,
        "When sampling, keep the guesses that are what the seed draws without guessing (same), or some more, so that "
        "the texts are others, though no likelier or rarer (most).",
    ] = "same"

    def __post_init__(self) -> None:
        sources = {
            "--draft-model": self.draft_model is not None,
            "--lookup": self.lookup,
            "--skip-layers": bool(self.skip_layers),
        }
        given = [flag for flag, there in sources.items() if there]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} both guess the next tokens.", "Keep one.", Exit.USAGE)
        if not 0 <= self.draft_tokens <= MOST:
            raise UserError(
                f"--draft-tokens is {self.draft_tokens}, wanted 1 to {MOST}, or 0 for as many as pay.", code=Exit.USAGE
            )
        if not given:
            check_idle(changed(self), "where no tokens are guessed: add --draft-model DIR, --lookup or --skip-layers")
        for one in self.skip_layers:
            if one != "auto" and _span(one) is None:
                raise UserError(
                    f"--skip-layers is {one!r}, wanted a layer (9), layers (9-20), or auto.", code=Exit.USAGE
                )
        if "auto" in self.skip_layers and len(self.skip_layers) > 1:
            raise UserError("--skip-layers auto chooses all of them.", "Leave the others out.", Exit.USAGE)

    @property
    def on(self) -> bool:
        """Whether tokens are guessed."""
        return self.draft_model is not None or self.lookup or bool(self.skip_layers)

    @property
    def automatic(self) -> bool:
        """Whether the layers to skip are to be chosen."""
        return self.skip_layers == ("auto",)

    def skipped(self, layers: int) -> frozenset[int]:
        """The layers to skip, of so many; none where they are to be chosen.

        Raises:
            UserError: the model has not all of them, or none would be left.
        """
        spans = [] if self.automatic else [_span(one) for one in self.skip_layers]
        wanted = {layer for first, last in spans for layer in range(first, last + 1)}
        if wanted and max(wanted) >= layers:
            raise UserError(
                f"--skip-layers names layer {max(wanted)}, but the model's {layers} layers end with {layers - 1}.",
                code=Exit.MISMATCH,
            )
        if len(wanted) == layers:
            raise UserError("--skip-layers leaves no layer to guess with.", "Name fewer.", Exit.MISMATCH)
        return frozenset(wanted)


def _span(text: str) -> tuple[int, int] | None:
    """The first and the last layer of "9" or "9-20"; None: it is neither."""
    first, dash, last = text.partition("-")
    if not (first.isascii() and first.isdigit()) or (dash and not (last.isascii() and last.isdigit())):
        return None
    span = int(first), int(last if dash else first)
    return span if span[0] <= span[1] < 10_000 else None
