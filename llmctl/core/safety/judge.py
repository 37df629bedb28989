"""judge: many prompts' completions before several judges, a bounded number at a time."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from llmctl.core.safety.told import Judge, Judged, Told

POOL = 256  # prompts that are judged together, so that a classifier's batches hold texts of like length


def judge(told: Iterable[Told], judges: Sequence[Judge], pool: int = POOL) -> Iterator[tuple[Told, Judged]]:
    """Each prompt's completions with what all the judges say of them, in order; holds `pool` at a time."""
    source = iter(told)
    while some := list(islice(source, pool)):
        verdicts = [one(some) for one in judges]
        for place, one in enumerate(some):
            scores: dict[str, float] = {}
            found: dict[str, object] = {}
            for verdict in verdicts:
                scores |= verdict[place].scores
                found |= verdict[place].found
            yield one, Judged(scores, found)
