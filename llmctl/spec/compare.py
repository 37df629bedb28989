"""Comparing: which figures of two systems are compared, by which test, and what B must not fall short of."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.limits import parse_limits

Test = Literal["randomisation", "bootstrap", "mcnemar"]

# Of what is measured under these names, less is better.
LOWER = frozenset({
    "nll", "nll_per_token", "nll_per_word", "bits_per_token", "bits_per_byte", "perplexity", "word_perplexity",
    "byte_perplexity", "loss", "brier", "brier_score", "ece", "ter", "wer", "cer", "rmse", "mse", "mae", "error",
    "errors", "seconds", "toxicity", "toxic", "max_toxicity", "any_toxic", "listed", "any_listed", "pii", "any_pii",
    "over_refusal", "empty", "memorized", "matched_tokens", "longest_run", "pii_recalled",
})  # fmt: skip


@dataclass(frozen=True)
class Comparing:
    """Comparison.

    Raises:
        UserError: a value out of range, or a limit that is none.
    """

    metric: Annotated[
        tuple[str, ...],
        "Compare this figure; repeatable. Two scores with / between are the ratio of their sums: nll/tokens. "
        "Default: all that both have.",
    ] = ()
    test: Annotated[
        Test,
        "randomisation: who is A and who is B is swapped at random, which for right and wrong is McNemar's exact test; "
        "bootstrap: examples are drawn again; mcnemar: for right and wrong alone.",
    ] = "randomisation"
    replicates: Annotated[int, "Random draws of each figure, for its test and its interval."] = 10_000
    ci: Annotated[
        float, "Level of the interval around each difference; B is said to differ where p is under 1 less this."
    ] = 0.95
    seed: Annotated[int, "Of the random draws."] = 0
    lower: Annotated[
        tuple[str, ...], "A figure of which less is better, where its name does not tell; repeatable."
    ] = ()
    fail_under: Annotated[
        tuple[str, ...],
        "End with exit code 6 if B gains less than this: acc=-0.01 lets it lose 0.01. A gain is what B is better, "
        "whether more or less of the figure is; a number alone is about every figure.",
    ] = ()
    fail_worse: Annotated[bool, "End with exit code 6 if any figure of B is worse by more than chance."] = False

    def __post_init__(self) -> None:
        wrong = {
            f"--replicates is {self.replicates}, wanted 100 or more": self.replicates < 100,
            f"--ci is {self.ci:g}, wanted more than 0.5, less than 1": not 0.5 < self.ci < 1,
            f"--seed is {self.seed}, wanted 0 or more": self.seed < 0,
            "--metric names a figure; one is empty": any(not part for name in self.metric for part in name.split("/")),
            "--metric has at most one / in a name": any(name.count("/") > 1 for name in self.metric),
        }
        if any(wrong.values()):
            raise UserError("; ".join(text for text, found in wrong.items() if found) + ".", code=Exit.USAGE)
        self.limits()

    def limits(self) -> dict[str, float]:
        """The least gain of each figure that has one; under "" that of all others."""
        return parse_limits("--fail-under", self.fail_under, "")

    def more_is_better(self, figure: str, said: bool | None = None) -> bool:
        """Whether more of a figure is better: as the user says, as its results say, or by its name."""
        if figure in self.lower:
            return False
        if said is not None:
            return said
        return figure.removeprefix("sentence_").partition("/")[0].partition("@")[0] not in LOWER

    def check(self, gains: Mapping[str, float], worse: Iterable[str]) -> None:
        """Whether B is as good as was asked for.

        Args:
            gains: what B is better in each figure, by its whole name (task:figure) or its own.
            worse: figures in which it is worse by more than chance.

        Raises:
            UserError: it is not, and the exit code is THRESHOLD; or a limit is about no figure.
        """
        limits = self.limits()
        least = limits.pop("", None)
        named = {name: [whole for whole in gains if name in (whole, whole.rpartition(":")[2])] for name in limits}
        if unknown := [name for name, found in named.items() if not found]:
            raise UserError(
                f"--fail-under is about {unknown[0]}, which was not compared.",
                f"There are {', '.join(gains)}.",
                Exit.USAGE,
            )
        wanted = dict.fromkeys(gains, least) | {whole: limits[name] for name, found in named.items() for whole in found}
        missed = [
            f"{name} gains {gain:.6g}, under --fail-under {wanted[name]:g}"
            for name, gain in gains.items()
            if wanted[name] is not None and not gain >= wanted[name]
        ]
        if self.fail_worse:
            missed += [f"{name} is worse by more than chance (--fail-worse)" for name in worse]
        if missed:
            raise UserError(f"{'; '.join(missed)}.", code=Exit.THRESHOLD)
