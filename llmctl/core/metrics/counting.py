"""Counting of pairs for translation metrics, in several processes where there is much to count."""

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TYPE_CHECKING

from llmctl.core.metrics.translation import METRICS, Counts, Row, Told, count
from llmctl.spec.translation import Options

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

AHEAD = 3  # batches for each process that are read before the first is counted

Batch = tuple[Counts, list[Told]]  # pairs, and whose they are
_metric: "Metric | None" = None  # of a process that counts


def counted(batches: Iterable[Batch], options: Options, jobs: int) -> Iterator[tuple[Counts, list[Row]]]:
    """Adds batches of pairs to counts, and gives what was counted in each pair, batch by batch, in order.

    Args:
        options: of all the counts.
        jobs: processes; 1: this one.
    """
    if jobs == 1:
        for counts, pairs in batches:
            yield counts, counts.add(pairs)
        return
    # A process of its own, not a copy of this one, which may have threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _begin, (options,)) as pool:
        waiting: deque[tuple[Batch, Future[list[Row]]]] = deque()

        def done() -> tuple[Counts, list[Row]]:
            (counts, pairs), future = waiting.popleft()
            rows = future.result()
            counts.take(pairs, rows)
            return counts, rows

        try:
            for counts, pairs in batches:
                waiting.append(((counts, pairs), pool.submit(_count, pairs)))
                if len(waiting) == AHEAD * jobs:
                    yield done()
            while waiting:
                yield done()
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(options: Options) -> None:
    """Makes a process ready to count."""
    global _metric
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends when the first process does
    _metric = METRICS[type(options)](options)


def _count(pairs: list[Told]) -> list[Row]:
    assert _metric is not None
    return count(_metric, pairs)
