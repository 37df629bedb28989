"""Requests in, results out: in their order, read a pool at a time, batched by length so that little is padded."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from llmctl.core.data.requests import Request
from llmctl.core.infer.encode import Row

POOL = 16  # batches that are read ahead and sorted by length
TOKENS = 1 << 15  # of one batch, padding included, where it has more than one row

T = TypeVar("T")


@dataclass
class Answer(Generic[T]):
    """What became of one request.

    Attributes:
        request: as it came.
        row: what the model read, or None after an error.
        result: what it made of that.
        error: why there is none.
    """

    request: Request
    row: Row | None = None
    result: T | None = None
    error: str = ""


def answers(
    requests: Iterable[Request],
    encode: Callable[[Request], Row | str],
    work: Callable[[Sequence[Row]], Sequence[T]],
    batch: int,
) -> Iterator[Answer[T]]:
    """Answer requests in their order; holds POOL batches at a time.

    Args:
        encode: makes the row of a request, or says why it cannot.
        work: makes the results of the rows of a batch.
        batch: rows of one, at most.
    """
    source = iter(requests)
    while pool := [Answer(request, error=request.error) for request in islice(source, POOL * batch)]:
        for answer in pool:
            if not answer.error:
                made = encode(answer.request)
                if isinstance(made, Row):
                    answer.row = made
                else:
                    answer.error = made
        ready = sorted((one for one in pool if one.row is not None), key=lambda one: len(one.row or ()))
        while ready:
            rows = max(1, min(batch, TOKENS // max(1, len(ready[-1].row or ()))))
            now, ready = ready[-rows:], ready[:-rows]
            for answer, result in zip(now, work([one.row for one in now if one.row is not None]), strict=True):
                answer.result = result
        yield from pool
