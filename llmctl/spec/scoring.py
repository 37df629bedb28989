"""Scoring: how texts are put to a model that is to say how likely they are, each kind of model in its own way."""

from dataclasses import dataclass
from typing import Annotated, Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.model import ModelConfig

Masking = Literal["token", "word-l2r", "word"]
Undone = Literal["span", "denoise"]

WIDEST = 4096  # tokens of the default window, where the context is longer


@dataclass(frozen=True)
class Scoring:
    """Scoring.

    A decoder's windows slide; an encoder's too, and each token is masked by itself; to an encoder-decoder texts are
    put with noise, which it undoes.

    Raises:
        UserError: sizes or a seed out of range.
    """

    window: Annotated[int | None, "Tokens seen at once; default: the model's context, 4096 at most."] = None
    stride: Annotated[int | None, "Tokens by which the window moves on; default: half of it."] = None
    bos: Annotated[bool, "Begin documents after the beginning-of-text token; --no-bos: their first is unscored."] = True
    masking: Annotated[
        Masking, "Encoders: hide the scored token alone, with the rest of its word (word-l2r), or its whole word."
    ] = "token"
    batch_tokens: Annotated[int, "Tokens in one pass of the model; decides speed and memory."] = 8192

    def __post_init__(self) -> None:
        window = self.window
        wrong = [
            text
            for text, found in (
                (f"--window is {window}, wanted 2 or more", window is not None and window < 2),
                (f"--stride is {self.stride}, wanted 1 or more", self.stride is not None and self.stride < 1),
                (f"--batch-tokens is {self.batch_tokens}, wanted 1 or more", self.batch_tokens < 1),
            )
            if found
        ]
        if wrong:
            raise UserError("; ".join(wrong) + ".", code=Exit.USAGE)

    def sizes(self, config: ModelConfig) -> tuple[int, int]:
        """The window and the stride for a model, in tokens.

        Raises:
            UserError: they do not fit each other or the model; usage.
        """
        window = min(config.context, WIDEST) if self.window is None else self.window
        stride = max(1, window // 2) if self.stride is None else self.stride
        if self.masking != "token" and config.kind != "encoder":
            raise UserError(f"--masking {self.masking} is for encoders.", "Leave it out.", Exit.USAGE)
        if stride > window:
            raise UserError(f"--stride is {stride}, wanted from 1 to --window ({window}).", code=Exit.USAGE)
        if config.position == "learned" and window > config.context:
            raise UserError(
                f"--window is {window}, but the model's learned positions end at {config.context}.", code=Exit.USAGE
            )
        return window, stride
