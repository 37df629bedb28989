"""Threads of the tokenizers library, which takes their number from the environment when it first runs."""

import os


def use_threads(count: int) -> int:
    """Sets how many threads tokenizers use in this process; only the first call of a process has an effect.

    Args:
        count: 0 for one for each core that this process may use.

    Returns:
        the number of threads.
    """
    count = count or cores()
    os.environ["RAYON_NUM_THREADS"] = str(count)
    return count


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
