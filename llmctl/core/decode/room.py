"""Room: whether a prompt and its completion fit the context of a model, of which no weight is read."""

from dataclasses import dataclass, replace
from pathlib import Path

from llmctl.core.decode.prompt import prompt_ids
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.spec.families import read_config
from llmctl.spec.model import ModelConfig


@dataclass(frozen=True)
class Room:
    """The context of a model, a part of it kept for the completion.

    Attributes:
        completion: tokens kept.
    """

    tokenizer: Tokenizer
    config: ModelConfig
    completion: int

    @classmethod
    def of(cls, path: Path, completion: int) -> "Room":
        """That of a checkpoint.

        Raises:
            UserError: its config.json or its tokenizer cannot be read.
        """
        return cls(Tokenizer.open(path), read_config(path), completion)

    def tokens(self, prompt: str) -> int:
        """The tokens that `generate` reads of a prompt, those it begins with too.

        Raises:
            UserError: the prompt is empty and nothing begins a text, or its tokens are of another model.
        """
        return len(prompt_ids(self.tokenizer, prompt, replace(self.config, context=2**31 - 1)))

    def holds(self, tokens: int) -> bool:
        """Whether a prompt of so many tokens fits; an encoder-decoder has a context for each, prompt and completion."""
        if self.config.kind == "encoder-decoder":
            return max(tokens, self.completion) <= self.config.context
        return tokens + self.completion <= self.config.context
