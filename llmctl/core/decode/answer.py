"""Requests in, answers out: in order, in batches, each the same whatever the batch."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from llmctl.core.data.requests import Request
from llmctl.core.decode.generate import Completion, complete
from llmctl.core.decode.prompt import prompt_ids
from llmctl.core.decode.rules import Rules
from llmctl.core.decode.sample import stream_key
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.sample import Sampling


@dataclass
class Answer:
    """What became of one request.

    Attributes:
        request: as it came.
        prompt_tokens: ids that the model read, a beginning-of-text token included.
        completions: as many as were asked for, in the order of their sample numbers; none after an error.
        error: why there are none.
    """

    request: Request
    prompt_tokens: int = 0
    completions: list[Completion] = field(default_factory=list)
    error: str = ""

    @property
    def tokens(self) -> int:
        """Tokens that were written, of all completions."""
        return sum(completion.tokens for completion in self.completions)


def answers(
    model: Transformer,
    tokenizer: Tokenizer,
    requests: Iterable[Request],
    sampling: Sampling,
    seed: int,
    eos: frozenset[int],
    stops: Sequence[str] = (),
    special: bool = False,
    rows: int = 16,
    hear: Callable[[str], None] | None = None,
    rules: Rules | None = None,
    kv_bits: int = 0,
) -> Iterator[Answer]:
    """Answer requests in their order, `rows` completions at a time; reads no further ahead than that.

    Args:
        seed: of all random streams; each is keyed by this, the request's number and the sample's.
        eos, stops, special, rules, kv_bits: as for `complete`.
        rows: completions in a batch.
        hear: told each text when it becomes final, for a single completion that someone is waiting for.

    Raises:
        UserError: the tokenizer does not fit the model, or the model's scores are not numbers. A request that
            cannot be answered is answered with an error instead.
    """
    first = "decoder" if model.encoder is None else "encoder"
    shape = replace(model.config, context=model.config.context - model.virtual_tokens(first))
    waiting: deque[Answer] = deque()
    jobs: list[tuple[Answer, int, list[int]]] = []

    def run(count: int) -> None:
        now, jobs[:] = jobs[:count], jobs[count:]
        prompts = [ids for _, _, ids in now]
        keys = [stream_key(seed, answer.request.number, sample) for answer, sample, _ in now]
        done: dict[int, Completion] = {}
        for piece in complete(model, tokenizer, prompts, sampling, keys, eos, stops, special, rules, kv_bits):
            if hear is not None:
                hear(piece.text)
            if piece.completion:
                done[piece.row] = piece.completion
        for row, (answer, _, _) in enumerate(now):
            answer.completions.append(done[row])

    def finished() -> Iterator[Answer]:
        while waiting and (waiting[0].error or len(waiting[0].completions) == sampling.n):
            yield waiting.popleft()

    for request in requests:
        answer = Answer(request, error=request.error)
        waiting.append(answer)
        if not answer.error:
            try:
                ids = prompt_ids(tokenizer, request.text, shape, special)
            except UserError as error:
                if error.code == Exit.MISMATCH:
                    raise
                answer.error = error.problem
            else:
                answer.prompt_tokens = len(ids)
                jobs += [(answer, sample, ids) for sample in range(sampling.n)]
        while len(jobs) >= rows:
            run(rows)
        yield from finished()
    while jobs:
        run(rows)
    yield from finished()
