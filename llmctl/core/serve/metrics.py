"""Metrics: what a server has done and is doing, in the text format of Prometheus."""

from collections import Counter
from collections.abc import Iterator, Sequence

BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)  # seconds


class Histogram:
    """How many durations were at most so long."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Note one."""
        self._counts[sum(seconds > bound for bound in BOUNDS)] += 1
        self._sum += seconds

    def lines(self, name: str) -> Iterator[str]:
        """Its samples."""
        count = 0
        for bound, more in zip([*map(str, BOUNDS), "+Inf"], self._counts, strict=True):
            count += more
            yield f'{name}_bucket{{le="{bound}"}} {count}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {count}"


class Metrics:
    """Counts of a server, written by one thread."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()  # by path and status
        self.aborted = 0
        self.prompt_tokens = 0
        self.tokens = 0
        self.seconds = Histogram()
        self.first = Histogram()

    def text(self, running: int, waiting: int) -> str:
        """All of it.

        Args:
            running: completions that are being made.
            waiting: completions that wait.
        """
        listed = sorted(self.requests.items())
        requests = [f'llmctl_requests_total{{path="{p}",status="{s}"}} {count}' for (p, s), count in listed]
        parts = [
            ("llmctl_requests_total", "counter", "Requests that were answered.", requests),
            _one("llmctl_requests_aborted_total", "counter", "Requests whose client went away.", self.aborted),
            _one("llmctl_prompt_tokens_total", "counter", "Tokens of prompts.", self.prompt_tokens),
            _one("llmctl_generated_tokens_total", "counter", "Tokens that were written.", self.tokens),
            _one("llmctl_completions_running", "gauge", "Completions that are being made.", running),
            _one("llmctl_completions_waiting", "gauge", "Completions that wait for a place.", waiting),
            _times("llmctl_request_seconds", "Time to the end of an answer.", self.seconds),
            _times("llmctl_first_token_seconds", "Time to the first token of an answer.", self.first),
        ]
        lines = []
        for name, kind, help, samples in parts:
            lines += [f"# HELP {name} {help}", f"# TYPE {name} {kind}", *samples]
        return "\n".join(lines) + "\n"


Part = tuple[str, str, str, Sequence[str]]


def _one(name: str, kind: str, help: str, value: int) -> Part:
    return name, kind, help, [f"{name} {value}"]


def _times(name: str, help: str, times: Histogram) -> Part:
    return name, "histogram", help, list(times.lines(name))
