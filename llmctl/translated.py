"""translated: pairs in, a translation metric's report, sentences or samples out; eval-bleu, eval-chrf, eval-ter."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import zip_longest
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from llmctl.console import Console
from llmctl.errors import Exit, UserError
from llmctl.flags import invocation
from llmctl.spec.files import write_file
from llmctl.spec.limits import check_limits
from llmctl.spec.pairs import Pairing, check_inputs
from llmctl.spec.translation import Comparison, Options, Scored

if TYPE_CHECKING:
    from llmctl.core.data.pairs import Pair
    from llmctl.core.metrics.resampling import Interval
    from llmctl.core.metrics.translation import Counts, Figures, Row

TOGETHER = 64  # pairs that are counted at a time
USUAL = 0.95  # share of resamples in the interval that a paired bootstrap gives
TOKENIZED = 100  # predictions that end in " ." from which on they are taken for tokenized texts, as sacrebleu does
Rows = Iterator[tuple["Pair", ...]]


class Evaluation:
    """One run of eval-bleu, eval-chrf or eval-ter.

    Args:
        inputs: paths of the predictions, then of the references, if they are apart.

    Raises:
        UserError: stdin would have to be read twice.
    """

    def __init__(
        self,
        console: Console,
        inputs: tuple[str, ...],
        pairing: Pairing,
        options: Options,
        comparison: Comparison,
        scored: Scored,
    ):
        self.console, self.inputs, self.pairing = console, inputs, pairing
        self.options, self.comparison, self.scored = options, comparison, scored
        self.name = invocation().command.removeprefix("eval-")
        if comparison.baseline and any(path == "-" or Path(path).is_fifo() for path in inputs[1:]):
            hint = "Write them to a file first; predictions, or a baseline, may come from stdin."
            raise UserError(
                "--baseline reads the references once more: they cannot come from a pipe.", hint, Exit.USAGE
            )
        check_inputs(inputs[0], (*inputs[1:], *comparison.baseline))

    def run(self, under: dict[str, float], over: dict[str, float]) -> None:
        """Score, and tell.

        Args:
            under, over: limits of --fail-under and --fail-over.

        Raises:
            UserError: what is read is no pairs, or a limit is missed, after the report.
        """
        if self.scored.sentence_level:
            if self.comparison.drawn or under or over or self.scored.samples is not None:
                others = "--ci, --baseline, --samples or a limit"
                raise UserError(f"--sentence-level scores pairs alone; {others} is about all of them.", code=Exit.USAGE)
            self._sentences()
        else:
            self._report(under, over)

    def _sentences(self) -> None:
        """Each pair's own score, a JSON line each on stdout."""
        from llmctl.core.metrics.translation import Counts

        counts = Counts(self.options)
        for pair, row in self._counted([counts]):
            figures = counts.alone(row, len(pair.references))
            record = pair.record
            if record is None:
                schema = f"llmctl/{invocation().command}/1"
                record = {"schema": schema, "prediction": pair.prediction, "references": pair.references}
            made = {"doc_id": pair.number, "name": figures.name, "score": figures.score}
            made |= {"scores": {self.name: figures.score}, "signature": figures.signature}
            self.console.jsonl({**record, **made})

    def _report(self, under: dict[str, float], over: dict[str, float]) -> None:
        """The score of all pairs together, and whatever else was asked for."""
        began = time.perf_counter()
        with ExitStack() as stack:
            path = self.scored.samples
            file = None if path is None else stack.enter_context(write_file(path, self.scored.force))
            ours, *theirs = self._count(file)
        if self.name == "bleu" and ours.tokenized >= TOKENIZED and getattr(self.options, "tokenize", "") != "none":
            self.console.warn(
                f'{ours.tokenized} predictions end in " .", as tokenized text does; BLEU wants it as people write.'
            )
        figures = ours.figures(self.comparison.drawn)
        intervals, chances = self._resample([ours, *theirs], figures)
        report: dict[str, Any] = {"name": figures.name, "score": figures.score, "signature": figures.signature}
        report |= {"verbose_score": figures.verbose} if figures.verbose else {}
        report |= figures.details | _confidence(intervals[0], self._level)
        if theirs:
            report["baselines"] = [
                {
                    "path": path,
                    "score": (score := counts.figures().score),
                    "difference": figures.score - score,
                    "p_value": chance,
                    **_confidence(interval, self._level),
                }
                for path, counts, interval, chance in zip(
                    self.comparison.baseline, theirs, intervals[1:], chances, strict=True
                )
            ]
        report |= {"pairs": ours.pairs, "seconds": time.perf_counter() - began}
        report |= dict(part.split(":", 1) for part in figures.signature.split("|"))
        self.console.report(report, None if self.console.shown.json else self._table(report))
        found: dict[str, float] = {name: report[name] for name in ("score", "low", "high") if name in report}
        worst = max if over else min  # where less is better, the largest
        found |= {"difference": worst(one["difference"] for one in report["baselines"])} if theirs else {}
        check_limits(found, under, over)

    def _read(self) -> Iterator[list[tuple["Pair", ...]]]:
        """Pairs of the predictions and of each baseline, side by side, some at a time."""
        from llmctl.core.data.pairs import read_pairs

        _, *references = self.inputs
        paths = (self.inputs[0], *self.comparison.baseline)
        with ExitStack() as stack:
            streams = [
                stack.enter_context(closing(read_pairs(path, references, self.pairing, same=not self.scored.varying)))
                for path in paths
            ]
            ready = []
            for pairs in zip_longest(*streams):
                _check_beside(paths, pairs)
                ready.append(pairs)
                if len(ready) == TOGETHER:
                    yield ready
                    ready = []
            if ready:
                yield ready

    def _count(self, samples: IO[bytes] | None) -> list["Counts"]:
        """The counts of the predictions, and of each baseline."""
        from llmctl.core.metrics.translation import Counts

        keep = self._resampled or bool(self.comparison.baseline)
        systems = [Counts(self.options, keep) for _ in (0, *self.comparison.baseline)]
        with self.console.progress(None, "pairs", "scoring") as progress:
            progress.update(0)
            for pair, row in self._counted(systems):
                if samples is not None:
                    samples.write(self._sample(pair, systems[0].alone(row)))
                if pair.number % TOGETHER == 0:
                    progress.update(pair.number)
            progress.update(systems[0].pairs)
        return systems

    def _counted(self, systems: Sequence["Counts"]) -> Iterator[tuple["Pair", "Row"]]:
        """Counts all systems' pairs; gives those of the first, each with what was counted in it."""
        from llmctl.core.metrics.counting import counted

        first: deque[Pair] = deque()  # those whose counts are awaited

        def batches() -> "Iterator[tuple[Counts, list[tuple[str, Sequence[str]]]]]":
            for ready in self._read():
                first.extend(pairs[0] for pairs in ready)
                for counts, pairs in zip(systems, zip(*ready, strict=True), strict=True):
                    yield counts, [(pair.prediction, pair.references) for pair in pairs]

        for counts, rows in counted(batches(), self.options, self.scored.jobs):
            if counts is systems[0]:
                for row in rows:
                    yield first.popleft(), row

    def _sample(self, pair: "Pair", figures: "Figures") -> bytes:
        import orjson

        told = {"doc_id": pair.number, "prediction": pair.prediction, "references": pair.references}
        return orjson.dumps({**told, "scores": {self.name: figures.score}}) + b"\n"

    @property
    def _resampled(self) -> bool:
        return "bs" in self.comparison.drawn

    @property
    def _level(self) -> float:
        return self.comparison.ci or USUAL

    def _resample(self, systems: Sequence["Counts"], figures: "Figures") -> tuple[list["Interval | None"], list[float]]:
        """An interval for each system, where resamples are drawn, and for each baseline how likely chance is."""
        from llmctl.core.metrics.resampling import bootstrap_p, interval, resampled, share_above, shuffled

        ours, *theirs = systems
        differences = [abs(counts.figures().score - figures.score) for counts in theirs]
        intervals: list[Interval | None] = [None] * len(systems)
        chances = []
        if self._resampled:
            drawn = []
            with self.console.progress(self.comparison.resamples, "resamples", "bootstrap") as progress:
                for scores in resampled(systems, self.comparison.resamples, self.comparison.seed):
                    drawn.append(scores)
                    progress.update(len(drawn))
            first, *others = zip(*drawn, strict=True)
            intervals = [interval(scores, self._level) for scores in (first, *others)]
            chances = [bootstrap_p(first, other, found) for other, found in zip(others, differences, strict=True)]
        if theirs and self.comparison.test == "randomization":
            chances = []
            total = self.comparison.shuffles * len(theirs)
            with self.console.progress(total, "shuffles", "randomization") as progress:
                for number, (counts, found) in enumerate(zip(theirs, differences, strict=True)):
                    spread: list[float] = []
                    for difference in shuffled(ours, counts, self.comparison.shuffles, self.comparison.seed):
                        spread.append(difference)
                        progress.update(number * self.comparison.shuffles + len(spread))
                    chances.append(share_above(spread, found))
        return intervals, chances

    def _table(self, report: dict[str, Any]) -> Any:
        """The report for a person."""
        if "baselines" not in report:
            rows = [(key.replace("_", " "), report[key]) for key in SHOWN if key in report]
            return self.console.table(self.inputs[0], ("", ""), rows)
        rows = []
        for one in ({**report, "path": self.inputs[0]}, *report["baselines"]):
            margin = f" ± {one['confidence_var']:.4g}" if "confidence_var" in one else ""
            told = [f"{one[key]:.4g}" if key in one else "" for key in ("difference", "p_value")]
            rows.append((one["path"], f"{one['score']:.6g}{margin}", *told))
        return self.console.table(report["signature"], ("system", report["name"], "difference", "p"), rows)


SHOWN = ("name", "score", "verbose_score", "low", "high", "pairs", "signature")


def _confidence(interval: "Interval | None", level: float) -> dict[str, Any]:
    """An interval in sacrebleu's keys, and its ends."""
    if interval is None:
        return {}
    return {
        "confidence_mean": interval.mean,
        "confidence_var": interval.margin,
        "confidence": f"μ = {interval.mean:.4f} ± {interval.margin:.4f}",
        "level": level,
        "low": interval.low,
        "high": interval.high,
    }


def _check_beside(paths: Sequence[str], pairs: Sequence["Pair | None"]) -> None:
    """Refuses baselines of another length, or with references of their own that differ."""
    there = next(pair for pair in pairs if pair is not None)
    for path, pair in zip(paths, pairs, strict=True):
        if pair is None:
            raise UserError(f"{path} ends before {there.where}.", "Give as many of each.", Exit.MISMATCH)
        if pair.references != there.references:
            raise UserError(
                f"{pair.where} has other references than {there.where}.",
                "Systems are compared on the same references, in the same order.",
                Exit.MISMATCH,
            )
