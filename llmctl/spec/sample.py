"""Sampling: how the next token is chosen."""

from dataclasses import dataclass
from typing import Annotated

from llmctl.errors import Exit, UserError


@dataclass(frozen=True)
class Sampling:
    """Options of decoding; greedy when temperature is 0.

    Raises:
        UserError: a value out of range.
    """

    temperature: Annotated[float, "0 takes the likeliest token; 1 samples from the model as it is."] = 0.0
    top_k: Annotated[int, "Sample among the K likeliest tokens; 0: all."] = 0
    top_p: Annotated[float, "Sample among the likeliest tokens that hold this much probability."] = 1.0
    min_p: Annotated[float, "Drop tokens less likely than this share of the likeliest one."] = 0.0
    repetition_penalty: Annotated[float, "Divide the positive scores of tokens already seen by this."] = 1.0
    max_tokens: Annotated[int, "Stop after this many new tokens."] = 128

    def __post_init__(self) -> None:
        checks = {
            "temperature": self.temperature >= 0,
            "top-k": self.top_k >= 0,
            "top-p": 0 < self.top_p <= 1,
            "min-p": 0 <= self.min_p <= 1,
            "repetition-penalty": self.repetition_penalty > 0,
            "max-tokens": self.max_tokens >= 0,
        }
        wanted = {
            "temperature": "0 or more",
            "top-k": "0 or more",
            "top-p": "more than 0, at most 1",
            "min-p": "from 0 to 1",
            "repetition-penalty": "more than 0",
            "max-tokens": "0 or more",
        }
        wrong = [name for name, good in checks.items() if not good]
        if wrong:
            found = "; ".join(f"--{n} is {getattr(self, n.replace('-', '_'))}, wanted {wanted[n]}" for n in wrong)
            raise UserError(f"{found}.", code=Exit.USAGE)
