"""Run: a training in a directory: it resumes, evaluates, keeps the best and the last, and writes metrics.jsonl."""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llmctl.core.checkpoint.state import load_state, save_state
from llmctl.core.data.batch import Batch
from llmctl.core.device import Place
from llmctl.core.train.loop import Objective, Step, evaluate, train
from llmctl.core.train.measures import Measure
from llmctl.spec.train import Learning

STATE = ".state"  # below the run's directory; a dot, so it is gone from the finished one
METRICS = "metrics.jsonl"
BEST = "best"


class Probe(NamedTuple):
    """Data besides the held-out text that is measured before and after: of the old kind, to see what is forgotten.

    Attributes:
        batches: makes them.
        objective: what is asked of the model.
        tokens: its loss is of tokens, so that a perplexity says something.
    """

    batches: Callable[[], Iterable[Batch]]
    objective: Objective
    tokens: bool


class Evaluation(NamedTuple):
    """Held-out loss after some step.

    Attributes:
        step: steps taken.
        loss: nats a token, or whatever is scored; None: there is no held-out text, only further data.
        bits_per_byte: of the text; None where not all of it is scored, each token once.
        best: it is the lowest so far.
        measures: what else is known, by name; what `heldout` figures are called begins with heldout.
    """

    step: int
    loss: float | None
    bits_per_byte: float | None
    best: bool
    measures: dict[str, float]

    @property
    def figures(self) -> dict[str, float]:
        """Every figure there is, by name."""
        bits = {} if self.bits_per_byte is None else {"heldout_bits_per_byte": self.bits_per_byte}
        loss = {} if self.loss is None else {"heldout_loss": self.loss}
        return {**loss, **bits, **self.measures}

    def __str__(self) -> str:
        def digits(name: str) -> int:
            return 2 if name.endswith("perplexity") else 4

        named = {name: name.removeprefix("heldout_").replace("_", " ") for name in self.figures}
        return ", ".join(f"{named[name]} {value:.{digits(name)}f}" for name, value in self.figures.items())


@dataclass
class Run:
    """One training run. Iterate over `go()` to train; stop iterating and call `save` to go on another day.

    Attributes:
        directory: where the state, metrics.jsonl and best/ go; it exists.
        model, optimizers, config, objective, place, steps: as for `train`.
        batches: micro-batches of a step.
        heldout: makes the batches to evaluate on, or None.
        bytes_per_token: of the held-out text, for bits per byte; None where they would mean nothing.
        seed: of what is dropped in training.
        labelled: what is scored is no token, so a perplexity would mean nothing.
        probes: further data to measure before the first step and after the last, by the name of their figures.
        after: as for `train`.
        beside: tensors that `after` goes on from: saved with the state, and on resuming filled in place.
        settled: the step from which the model is what it is to be, so that one may be called the best.
        eval_every: steps between evaluations; there is one before the first step and one after the last, too.
        save_every: seconds between states written to disk.
        write: writes the model as a checkpoint into a directory.
        flops_per_token: for the utilisation; 0: not reported.
        sinks: called with each record of metrics.jsonl.
        facts: what the caller wants kept with the state; on resuming it is what was kept.
    """

    directory: Path
    model: torch.nn.Module
    optimizers: list[torch.optim.Optimizer]
    config: Learning
    objective: Objective
    place: Place
    steps: int
    batches: Callable[[int], Iterable[Batch]]
    heldout: Callable[[], Iterable[Batch]] | None
    bytes_per_token: float | None
    eval_every: int
    save_every: float
    write: Callable[[Path], None]
    flops_per_token: float = 0.0
    sinks: list[Callable[[dict[str, Any]], None]] = field(default_factory=list)
    seed: int = 0
    labelled: bool = False
    probes: dict[str, Probe] = field(default_factory=dict)
    after: Callable[[int], None] | None = None
    beside: dict[str, torch.Tensor] = field(default_factory=dict)
    settled: int = 0

    def __post_init__(self) -> None:
        self.done = 0  # steps taken
        self.tokens = 0  # read so far
        self.seconds = 0.0  # of steps and evaluations, in all sittings
        self.evaluations: list[Evaluation] = []
        self._peak = self.place.peak_flops() if self.flops_per_token else 0.0
        self._log = None

    def resume(self) -> bool:
        """Take up what an interrupted run left in the directory; False where it left nothing."""
        found = load_state(self.directory / STATE, self.model, self.optimizers, self.beside)
        kept = 0
        if found is not None:
            self.done, facts = found
            self.tokens, self.seconds, kept = facts["tokens"], facts["seconds"], facts["metrics_bytes"]
            self.evaluations = [Evaluation(*values) for values in facts["evaluations"]]
        self._log = open(self.directory / METRICS, "ab")  # noqa: SIM115 - open as long as the run
        self._log.truncate(kept)
        return found is not None

    def go(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Step | Evaluation]:
        """Train to the last step: every step, and every evaluation, as it is done.

        An evaluation that is cut short by leaving the loop is made again on resuming. After the last one the state
        is saved, so that a run that is killed from here on has nothing left to train.

        Args:
            stop: asked between the batches of an evaluation; where it says so, that is cut short, and the loop ends.
        """
        if self._log is None:
            self.resume()
        saved = time.monotonic()
        if self.due:
            if (made := self._evaluate(stop)) is None:
                return
            yield made
        for step in train(
            self.model,
            self.batches,
            self.objective,
            self.config,
            self.optimizers,
            self.place,
            self.steps,
            self.done,
            self.seed,
            self.after,
        ):
            self._note(step)
            yield step
            if self.due:
                if (made := self._evaluate(stop)) is None:
                    return
                yield made
            if time.monotonic() - saved >= self.save_every or self.done == self.steps:
                self.save()
                saved = time.monotonic()

    def save(self) -> None:
        """Write the state, from which the same run goes on to the same end, bit for bit."""
        self._log.flush()
        os.fsync(self._log.fileno())
        facts = {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "metrics_bytes": self._log.tell(),
            "evaluations": [list(evaluation) for evaluation in self.evaluations],
        }
        save_state(self.directory / STATE, self.done, self.model, self.optimizers, facts, self.beside)

    @property
    def best(self) -> Evaluation | None:
        """The evaluation with the lowest loss, of those from `settled` on."""
        known = [one for one in self.evaluations if one.loss is not None and one.step >= self.settled]
        return min(known, key=lambda evaluation: evaluation.loss, default=None)

    def finish(self) -> None:
        """Write the last model into the directory itself; best/ shares its files where the last is the best."""
        self.write(self.directory)
        best = self.best
        if best is not None and best.step == self.done:
            shutil.rmtree(self.directory / BEST, ignore_errors=True)
            (self.directory / BEST).mkdir()
            for path in self.directory.iterdir():
                if path.is_file() and path.name != METRICS and not path.name.startswith("."):
                    os.link(path, self.directory / BEST / path.name)
        self._log.close()

    @property
    def due(self) -> bool:
        """Whether the model as it is now is still to be evaluated."""
        measured = self.heldout is not None or bool(self.probes)
        if not measured or (self.evaluations and self.evaluations[-1].step == self.done):
            return False
        if self.heldout is None:
            return self.done in (0, self.steps)
        return self.done % self.eval_every == 0 or self.done == self.steps

    def _evaluate(self, stop: Callable[[], bool]) -> Evaluation | None:
        """What the model is worth now, or None where it was cut short."""
        start = time.perf_counter()
        measures: dict[str, float] = {}
        if self.heldout is not None:
            measures = self._measured("heldout", Probe(self.heldout, self.objective, not self.labelled), stop)
        for name, probe in self.probes.items() if self.done in (0, self.steps) else ():
            measures |= self._measured(name, probe, stop)
        if stop():
            return None
        mean = measures.pop("heldout_loss", None)
        bits = mean / math.log(2) / self.bytes_per_token if self.bytes_per_token and mean is not None else None
        best = mean is not None and self.done >= self.settled and (self.best is None or mean < self.best.loss)
        made = Evaluation(self.done, mean, bits, best, measures)
        self.seconds += time.perf_counter() - start
        self.evaluations.append(made)
        self._record({"step": self.done, "tokens": self.tokens, "seconds": round(self.seconds, 3), **made.figures})
        if best and 0 < self.done < self.steps:
            self._keep_best()
        return made

    def _measured(self, data: str, probe: Probe, stop: Callable[[], bool]) -> dict[str, float]:
        """The figures of some data, by its name and theirs: its mean loss first; of a part, where it is to stop."""
        sums = {"loss": Measure(torch.zeros(()), 0)}
        for loss in evaluate(self.model, probe.batches(), probe.objective, self.place):
            for name, one in {"loss": Measure(loss.total, loss.count), **loss.measures}.items():
                sums[name] = sums[name].plus(one) if name in sums else one
            if stop():
                break
        means = {known: value for name, one in sums.items() for known, value in one.figures(name).items()}
        more = {"perplexity": math.exp(min(means["loss"], 700.0))} if probe.tokens else {}
        return {f"{data}_{name}": value for name, value in {"loss": means.pop("loss"), **more, **means}.items()}

    def _keep_best(self) -> None:
        """Write best/; a run killed while it does so writes it anew, since its state is older."""
        path = self.directory / BEST
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        self.write(path)

    def _note(self, step: Step) -> None:
        self.done = step.number
        self.tokens += step.read
        self.seconds += step.seconds
        rate = step.read / step.seconds
        record = {
            "step": step.number,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "loss": step.loss,
            "lr": step.lr,
            "grad_norm": step.grad_norm,
            "tokens_per_second": round(rate, 1),
            "peak_memory": self.place.peak_memory(),
        }
        if self._peak:
            record["mfu"] = round(rate * self.flops_per_token / self._peak, 4)
        self._record(record)

    def _record(self, record: dict[str, Any]) -> None:
        self._log.write(json.dumps(record).encode() + b"\n")
        self._log.flush()
        for sink in self.sinks:
            sink(record)
