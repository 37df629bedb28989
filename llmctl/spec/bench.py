"""Benching: what a model's speed is measured on, and what is told of it."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from llmctl.errors import Exit, UserError

Engine = Literal["native", "stock"]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Benching:
    """Measurement.

    Raises:
        UserError: a number too small, an unknown name, or something twice.
    """

    dtype: Annotated[
        tuple[str, ...],
        "Type of the arithmetic: fp32, bf16, fp16, or auto, the checkpoint's own; repeatable.",
    ] = ("auto",)
    engine: Annotated[
        tuple[str, ...],
        "native, the step in C++ for this machine, or stock, torch's kernels; repeatable. Default: all that there are.",
    ] = ()
    rows: Annotated[tuple[int, ...], "Texts that are decoded side by side; repeatable."] = (1,)
    prompt_tokens: Annotated[int, "Tokens of the prompt that is read."] = 512
    new_tokens: Annotated[int, "Tokens that are decoded after a prompt of 16."] = 64
    rounds: Annotated[int, "Turns that each way of computing gets; figures are medians."] = 3

    def __post_init__(self) -> None:
        wrong = [
            f"--{name.replace('_', '-')} is {getattr(self, name)}, wanted {least} or more"
            for name, least in (("prompt_tokens", 1), ("new_tokens", 2), ("rounds", 1))
            if getattr(self, name) < least
        ]
        for name, given, known in (("dtype", self.dtype, get_args(Dtype)), ("engine", self.engine, get_args(Engine))):
            wrong += [f"--{name} is {one!r}, wanted one of {', '.join(known)}" for one in given if one not in known]
        wrong += [f"--rows is {count}, wanted 1 or more" for count in self.rows if count < 1]
        for name in ("dtype", "engine", "rows"):
            given = getattr(self, name)
            wrong += [f"--{name} {one} is given twice" for one in sorted(set(given), key=str) if given.count(one) > 1]
        if wrong:
            raise UserError("; ".join(wrong) + ".", code=Exit.USAGE)


@dataclass(frozen=True)
class Speed:
    """What one way of computing with a model was measured to do, medians of its turns.

    Attributes:
        engine: whose kernels.
        dtype: fp32, bf16 or fp16.
        rows: texts decoded side by side.
        prefill_tokens_per_second: of one prompt.
        decode_tokens_per_second: of all rows together.
        time_to_first_token: seconds from a prompt's ids to the first token after it, of a model that is loaded.
        load_seconds: to open the checkpoint and make it ready to decode.
        peak_memory: bytes this process held at most, that model alone loaded.
        bytes_per_step: that a step of decoding reads: weights, and keys and values in the middle of the text.
        bandwidth_share: those of all steps in a second, over what memory was measured to give.
        flops_share: of arithmetic in prefill, over what a matrix product of that dtype was measured to reach.
    """

    engine: Engine
    dtype: str
    rows: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    time_to_first_token: float
    load_seconds: float
    peak_memory: int
    bytes_per_step: int
    bandwidth_share: float
    flops_share: float
