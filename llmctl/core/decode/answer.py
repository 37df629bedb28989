"""Requests in, answers out: in order, side by side, each the same whatever is beside it."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from llmctl.core.data.requests import Request
from llmctl.core.decode.generate import Completion, Told
from llmctl.core.decode.prompt import prompt_ids
from llmctl.core.decode.sample import stream_key
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.model import ModelConfig


@dataclass
class Answer:
    """What became of one request.

    Attributes:
        request: as it came.
        prompt_tokens: ids that the model read, a beginning-of-text token included.
        completions: those that were asked for, in the order of their sample numbers, or the best first; none after an
            error.
        made: all that were made, by sample number.
        error: why there are none.
    """

    request: Request
    prompt_tokens: int = 0
    completions: list[Completion] = field(default_factory=list)
    made: dict[int, Completion] = field(default_factory=dict)
    error: str = ""
    left: int = 0  # askings that are not answered

    @property
    def tokens(self) -> int:
        """Tokens that were written, of all completions, those that are not given out too."""
        return sum(completion.tokens for completion in self.made.values())


class Writer(Protocol):
    """What completes prompts: token by token (`Scribe`), or by a search (`Seeker`).

    Attributes:
        tokenizer: of its model.
        asks: how often each prompt is asked.
    """

    tokenizer: Tokenizer
    asks: int

    @property
    def unfinished(self) -> int:
        """Askings that are not answered yet."""

    def ask(self, name: Any, prompt: Sequence[int], key: int) -> None:
        """Have a prompt completed under a name."""

    def step(self) -> list[Told]:
        """Go on for a while: what has become final."""


def readable(model: Transformer) -> ModelConfig:
    """The config of a model with the context that is left for a prompt's own tokens."""
    first = "decoder" if model.encoder is None else "encoder"
    return replace(model.config, context=model.config.context - model.virtual_tokens(first))


def answers(
    writer: Writer,
    requests: Iterable[Request],
    config: ModelConfig,
    seed: int,
    keep: int,
    special: bool = False,
    rows: int = 16,
    hear: Callable[[str], None] | None = None,
) -> Iterator[Answer]:
    """Answer requests in their order; reads on while fewer than `rows` completions are in the making.

    An answer that can be given is given before the next request is read.

    Args:
        config: `readable` of the model.
        seed: of all random streams; each is keyed by this, the request's number and the sample's.
        keep: completions that each request gets; of more, the likeliest by the mean of their tokens.
        special: parse special tokens typed in a prompt.
        hear: told each text when it becomes final, for a single completion that someone is waiting for.

    Raises:
        UserError: the tokenizer does not fit the model, or the model's scores are not numbers. A request that
            cannot be answered is answered with an error instead.
    """
    waiting: deque[Answer] = deque()
    source, more = iter(requests), True
    while more or waiting:
        while more and writer.unfinished < rows and (not waiting or waiting[0].left):
            request = next(source, None)
            more = request is not None
            if request is not None:
                waiting.append(_asked(writer, request, config, seed, special))
        for (answer, sample), text, completion, last in writer.step() if writer.unfinished else ():
            if hear is not None:
                hear(text)
            if completion is not None:
                answer.made[sample if writer.asks > 1 else len(answer.made)] = completion
            answer.left -= last
        while waiting and not waiting[0].left:
            yield _kept(waiting.popleft(), keep)


def _asked(writer: Writer, request: Request, config: ModelConfig, seed: int, special: bool) -> Answer:
    """An answer in the making, or one that says why there will be none."""
    answer = Answer(request, error=request.error)
    if answer.error:
        return answer
    try:
        ids = prompt_ids(writer.tokenizer, request.text, config, special)
        for sample in range(writer.asks):
            writer.ask((answer, sample), ids, stream_key(seed, request.number, sample))
            answer.left += 1
        answer.prompt_tokens = len(ids)
    except UserError as error:
        if error.code == Exit.MISMATCH:
            raise
        answer.error = error.problem
    return answer


def _kept(answer: Answer, keep: int) -> Answer:
    """With the completions that are given out."""
    made = [completion for _, completion in sorted(answer.made.items())]
    if len(made) > keep:
        made = sorted(made, key=lambda one: -one.mean_logprob)[:keep]
    answer.completions = made
    return answer
