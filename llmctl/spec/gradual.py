"""Gradual: pruning while a model trains, and pruned weights that stay so."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.idle import changed, check_idle

PruneSchedule = Literal["cubic", "linear", "once"]
POWERS: dict[PruneSchedule, float] = {"cubic": 3.0, "linear": 1.0, "once": 0.0}


@dataclass(frozen=True)
class Gradual:
    """Pruning while training.

    Steps are numbers when 1 or more, shares of all steps when less.

    Raises:
        UserError: a value out of range, or options without the one that they belong to.
    """

    prune_to: Annotated[
        float | None, "Share of the weights of each matrix of the layers that are zero in the end: small ones go."
    ] = None
    prune_schedule: Annotated[
        PruneSchedule, "How the share grows: cubic, fast at first; linear; once, all of it at --prune-begin."
    ] = "cubic"
    prune_from: Annotated[float, "The share that it begins with."] = 0.0
    prune_begin: Annotated[float, "Step after which it begins to grow."] = 0.1
    prune_end: Annotated[float, "Step at which it is reached; which weights are zero does not change from there."] = 0.7
    prune_every: Annotated[int, "Steps between changes."] = 10
    keep_zeros: Annotated[
        bool, "Weights of a pruned checkpoint's layers that are zero stay zero; --prune-to prunes others beside them."
    ] = False

    def __post_init__(self) -> None:
        wrong = [
            f"--{name.replace('_', '-')} is {getattr(self, name)}, wanted {wanted}"
            for name, good, wanted in (
                ("prune_to", self.prune_to is None or 0 < self.prune_to < 1, "more than 0 and less than 1"),
                ("prune_from", 0 <= self.prune_from <= (self.prune_to or 1), "0 to --prune-to"),
                ("prune_begin", self.prune_begin >= 0, "0 or more"),
                ("prune_end", self.prune_end > 0, "more than 0"),
                ("prune_every", self.prune_every > 0, "1 or more"),
            )
            if not good
        ]
        if wrong:
            raise UserError("; ".join(wrong) + ".", code=Exit.USAGE)
        if self.prune_to is None:
            check_idle(changed(self, ("keep_zeros",)), "without --prune-to")
        if self.prune_schedule == "once":
            other = ("prune_to", "prune_schedule", "prune_begin", "keep_zeros")
            check_idle(changed(self, other), "beside --prune-schedule once, which is one step")

    @property
    def asked(self) -> bool:
        """Whether weights are pruned, or kept so."""
        return self.prune_to is not None or self.keep_zeros

    def check(self, steps: int, start: Path | None, whole: bool = True) -> None:
        """That it can be done in a run of so many steps.

        Args:
            start: the checkpoint that it begins with; None: fresh weights.
            whole: the run trains the model itself, no adapter.

        Raises:
            UserError: it cannot.
        """
        if not self.asked:
            return
        flag = "--prune-to" if self.prune_to is not None else "--keep-zeros"
        if not whole:
            raise UserError(
                f"{flag} is about a model's own weights, which an adapter leaves as they are.",
                "Use --method full, or prune after lora-merge.",
                Exit.USAGE,
            )
        if self.keep_zeros and start is None:
            raise UserError("--keep-zeros needs a checkpoint that has zeros.", "Name it with --from.", Exit.USAGE)
        self.span(steps)

    def span(self, steps: int) -> tuple[int, int]:
        """The step after which the share grows, and that at which it is reached, of a run of so many.

        Raises:
            UserError: the one is not before the other, or not in the run.
        """
        first, last = (round(at * steps) if at < 1 else int(at) for at in (self.prune_begin, self.prune_end))
        if self.prune_schedule == "once":
            last = first = max(1, first)
        if self.prune_to is not None and not (first < last <= steps or first == last <= steps):
            raise UserError(
                f"--prune-begin is step {first} and --prune-end step {last}, of {steps}.",
                "Let it begin before it ends, and end before the run does.",
                Exit.USAGE,
            )
        return first, last

    def changes(self, step: int, steps: int) -> bool:
        """Whether weights are pruned after a step, 1 to steps."""
        if self.prune_to is None:
            return False
        first, last = self.span(steps)
        return step == last or (first <= step < last and (step - first) % self.prune_every == 0)

    def share(self, step: int, steps: int) -> float:
        """The share of zeros after a step in which weights are pruned.

        Source: Zhu & Gupta, arXiv:1710.01878, equation 1.
        """
        first, last = self.span(steps)
        if step >= last:
            return self.prune_to or 0.0
        left = 1 - (step - first) / (last - first)
        target = self.prune_to or 0.0
        return target + (self.prune_from - target) * left ** POWERS[self.prune_schedule]
