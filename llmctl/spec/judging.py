"""Judging: what a smaller model is measured by, and the figures that it must not miss."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, nan
from typing import Annotated

from llmctl.errors import Exit, UserError
from llmctl.spec.limits import check_limits, parse_limits

GUARDED = ("kept", "smaller", "faster")  # larger is better


@dataclass(frozen=True)
class Judging:
    """Before and after.

    Raises:
        UserError: a figure or a number that --fail-under does not know.
    """

    eval: Annotated[
        str | None,
        "Held-out text, or a directory of tokens (its held-out part): perplexity and speed before and after, and how "
        "far the distributions of tokens have moved (KL, nats a token). Default: the size alone.",
    ] = None
    eval_tokens: Annotated[int, "Tokens of it that are scored, at most."] = 20_000
    speed_tokens: Annotated[int, "Tokens that either model generates, or reads, for its speed; 0: not measured."] = 32
    fail_under: Annotated[
        tuple[str, ...],
        "End with exit code 6, and without OUT, if kept (perplexity before over after), smaller (bytes before over "
        "after) or faster (tokens/s after over before) is under a number: kept=0.95; a number alone is about kept.",
    ] = ()

    def __post_init__(self) -> None:
        limits = self.limits
        if self.eval_tokens < 2 or self.speed_tokens < 0:
            raise UserError("--eval-tokens is at least 2, and --speed-tokens 0 or more.", code=Exit.USAGE)
        unmeasured = sorted({name for name in limits if name != "smaller"})
        if unmeasured and self.eval is None:
            raise UserError(f"--fail-under {unmeasured[0]} needs --eval TEXT.", "Name a held-out text.", Exit.USAGE)
        if "faster" in limits and not self.speed_tokens:
            raise UserError("--fail-under faster needs --speed-tokens.", code=Exit.USAGE)

    @property
    def limits(self) -> dict[str, float]:
        """The least that each guarded figure may be."""
        return parse_limits("--fail-under", self.fail_under, "kept", GUARDED, least=0)

    def check(self, figures: Mapping[str, float]) -> None:
        """Whether the figures, as `ratios` gives them, are what was asked for.

        Raises:
            UserError: one is under its limit; the exit code is THRESHOLD.
        """
        check_limits({name: figures.get(name, nan) for name in GUARDED}, under=self.limits)


def ratios(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """The guarded figures, from what was measured before and after: bytes, loss (nats), tokens_per_second."""
    found = {"smaller": before["bytes"] / max(1, after["bytes"])}
    if "loss" in before and "loss" in after:
        found["kept"] = exp(min(700.0, before["loss"] - after["loss"]))
    if before.get("tokens_per_second") and after.get("tokens_per_second"):
        found["faster"] = after["tokens_per_second"] / before["tokens_per_second"]
    return found
