"""Sampling: how the next token is chosen, how often, and for how long."""

from dataclasses import dataclass
from typing import Annotated, Literal

from llmctl.errors import Exit, UserError

Format = Literal["auto", "lines", "jsonl", "text"]  # how a file holds prompts
KvDtype = Literal["auto", "int8", "int4"]

# Bits of a number of the keys and values that are kept; 0: as it is computed.
KV_BITS: dict[KvDtype, int] = {"auto": 0, "int8": 8, "int4": 4}


@dataclass(frozen=True)
class Sampling:
    """Choice of tokens.

    Greedy when the temperature is 0. A temperature left out is 0, unless something is asked for that only makes
    sense when sampling (a filter, or more than one completion); then it is 1. After construction it is a number.

    Raises:
        UserError: a value out of range.
    """

    temperature: Annotated[
        float | None,
        "0 takes the likeliest token, 1 samples from the model as it is. "
        "Default: 0, or 1 with --top-k, --top-p, --min-p or --n.",
    ] = None
    top_k: Annotated[int, "Sample among the K likeliest tokens; 0: all."] = 0
    top_p: Annotated[float, "Sample among the likeliest tokens that hold this much probability."] = 1.0
    min_p: Annotated[float, "Drop tokens less likely than this share of the likeliest one."] = 0.0
    repetition_penalty: Annotated[float, "Divide the positive scores of tokens already seen by this."] = 1.0
    max_tokens: Annotated[int, "Stop after this many new tokens."] = 128
    n: Annotated[int, "Completions of each prompt."] = 1

    def __post_init__(self) -> None:
        sampled = self.top_k > 0 or self.top_p < 1 or self.min_p > 0 or self.n > 1
        if self.temperature is None:
            object.__setattr__(self, "temperature", 1.0 if sampled else 0.0)
        wrong = [
            f"--{name.replace('_', '-')} is {getattr(self, name)}, wanted {wanted}"
            for name, good, wanted in (
                ("temperature", 0 <= self.temperature < float("inf"), "0 or more"),
                ("top_k", self.top_k >= 0, "0 or more"),
                ("top_p", 0 < self.top_p <= 1, "more than 0, at most 1"),
                ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
                ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "more than 0"),
                ("max_tokens", self.max_tokens >= 0, "0 or more"),
                ("n", self.n >= 1, "1 or more"),
            )
            if not good
        ]
        if wrong:
            raise UserError("; ".join(wrong) + ".", code=Exit.USAGE)

    @property
    def greedy(self) -> bool:
        """True when no chance is involved."""
        return self.temperature == 0
