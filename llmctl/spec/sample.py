"""Sampling: how the next token is chosen, how often, and for how long."""

from dataclasses import dataclass
from typing import Annotated, Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.idle import changed

Format = Literal["auto", "lines", "jsonl", "text"]  # how a file holds prompts
KvDtype = Literal["auto", "int8", "int4"]

# Bits of a number of the keys and values that are kept; 0: as it is computed.
KV_BITS: dict[KvDtype, int] = {"auto": 0, "int8": 8, "int4": 4}


COLDEST = 1e-30


@dataclass(frozen=True)
class Sampling:
    """Choice of tokens.

    Greedy when the temperature is 0. A temperature left out is 0, unless something is asked for that only makes
    sense when sampling (a filter, or more than one completion); then it is 1. After construction it is a number.
    Filters come in the order of the fields, the penalties before them.

    Raises:
        UserError: a value out of range.
    """

    temperature: Annotated[
        float | None,
        "0 takes the likeliest token, 1 samples from the model as it is. "
        "Default: 0, or 1 with --top-k, --top-p, --min-p, --typical-p, --epsilon-cutoff, --eta-cutoff, --n, --best-of.",
    ] = None
    top_k: Annotated[int, "Sample among this many likeliest tokens; 0: all."] = 0
    top_p: Annotated[float, "Sample among the likeliest tokens that hold this much probability."] = 1.0
    min_p: Annotated[float, "Drop tokens less likely than this share of the likeliest one."] = 0.0
    typical_p: Annotated[
        float,
        "Sample among the tokens whose surprise is nearest to the expected one and that hold this much probability.",
    ] = 1.0
    epsilon_cutoff: Annotated[float, "Drop tokens less likely than this."] = 0.0
    eta_cutoff: Annotated[float, "Drop tokens less likely than this; where all are unlikely, fewer of them."] = 0.0
    repetition_penalty: Annotated[float, "Divide the positive scores of tokens already seen by this."] = 1.0
    presence_penalty: Annotated[float, "Take this off the scores of tokens already written."] = 0.0
    frequency_penalty: Annotated[float, "Take this off the scores of tokens for each time that they were written."] = (
        0.0
    )
    no_repeat_ngram: Annotated[
        int | None, "Write no run of this many tokens twice; 0: any. Default: as the checkpoint says."
    ] = None
    min_tokens: Annotated[int | None, "Do not end before this many new tokens. Default: as the checkpoint says."] = None
    max_tokens: Annotated[int, "Stop after this many new tokens."] = 128
    n: Annotated[int, "Completions of each prompt."] = 1
    best_of: Annotated[
        int, "Make this many completions of each prompt, and keep the --n likeliest by their mean per token."
    ] = 0
    logprobs: Annotated[
        int | None,
        "Give the log-probability (nats) of each token as the model has it before all filters, "
        "and those of this many likeliest beside it.",
    ] = None
    explain: Annotated[
        bool, "Show at each step the likeliest tokens with their probabilities before and after each filter."
    ] = False

    def __post_init__(self) -> None:
        sampled, several = self.top_k > 0, self.n > 1 or self.best_of > 1
        sampled |= min(self.top_p, self.typical_p) < 1 or max(self.min_p, self.epsilon_cutoff, self.eta_cutoff) > 0
        object.__setattr__(self, "_counted", self.temperature is None and several and not sampled)
        if self.temperature is None:
            object.__setattr__(self, "temperature", 1.0 if sampled or several else 0.0)
        infinite = float("inf")
        wrong = [
            f"--{name.replace('_', '-')} is {getattr(self, name)}, wanted {wanted}"
            for name, good, wanted in (
                ("temperature", 0 <= self.temperature < infinite, "0 or more"),
                ("top_k", self.top_k >= 0, "0 or more"),
                ("top_p", 0 < self.top_p <= 1, "more than 0, at most 1"),
                ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
                ("typical_p", 0 < self.typical_p <= 1, "more than 0, at most 1"),
                ("epsilon_cutoff", 0 <= self.epsilon_cutoff < 1, "from 0 to less than 1"),
                ("eta_cutoff", 0 <= self.eta_cutoff < 1, "from 0 to less than 1"),
                ("repetition_penalty", 0 < self.repetition_penalty < infinite, "more than 0"),
                ("presence_penalty", -infinite < self.presence_penalty < infinite, "a number"),
                ("frequency_penalty", -infinite < self.frequency_penalty < infinite, "a number"),
                ("no_repeat_ngram", (self.no_repeat_ngram or 0) >= 0, "0 or more"),
                ("min_tokens", (self.min_tokens or 0) >= 0, "0 or more"),
                ("max_tokens", self.max_tokens >= 0, "0 or more"),
                ("n", self.n >= 1, "1 or more"),
                ("best_of", self.best_of == 0 or self.best_of >= self.n, f"0, or --n ({self.n}) or more"),
                ("logprobs", (self.logprobs or 0) >= 0, "0 or more"),
            )
            if not good
        ]
        if wrong:
            raise UserError("; ".join(wrong) + ".", code=Exit.USAGE)

    @property
    def greedy(self) -> bool:
        """True when no chance is involved: a temperature of 0, or one that float32 cannot divide by."""
        return self.temperature < COLDEST

    @property
    def counted(self) -> bool:
        """True when chance is involved only because several completions are wanted, of which a search has its own."""
        return self._counted

    @property
    def drawing(self) -> list[str]:
        """Flags that were given which only mean something where tokens are drawn."""
        return [flag for flag in changed(self) if flag in _DRAWING]

    @property
    def samples(self) -> int:
        """Completions that are made of each prompt, of which `n` are kept."""
        return max(self.n, self.best_of)


_DRAWING = ("--top-k", "--top-p", "--min-p", "--typical-p", "--epsilon-cutoff", "--eta-cutoff", "--best-of")
