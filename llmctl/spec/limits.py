"""Limits: the figures that a command must not miss, as --fail-under and --fail-over name them; levels of intervals."""

from collections.abc import Collection, Iterable, Mapping
from math import isfinite, nan

from llmctl.errors import Exit, UserError


def parse_limits(
    option: str, texts: Iterable[str], main: str, names: Collection[str] | None = None, least: float | None = None
) -> dict[str, float]:
    """The limits that an option names, figure by figure.

    Args:
        option: its flag, for errors: "--fail-under".
        texts: NAME=NUMBER each; a number alone is about the main figure. Of a name given twice the last counts.
        main: name of the main figure.
        names: of the figures that may be limited; None: not known yet, `check_limits` looks.
        least: the smallest number that makes sense; None: any.

    Raises:
        UserError: another form, no finite number, one under `least`, or a name that is not among `names`; usage.
    """
    limits = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        name = name or main
        try:
            limit = float(number)
        except ValueError:
            limit = nan
        if not isfinite(limit) or (least is not None and limit < least) or (names is not None and name not in names):
            known = "" if names is None else f", NAME one of {', '.join(names)}"
            above = "" if least is None else f", NUMBER {least:g} or more"
            raise UserError(f"{option} is {text!r}, wanted NAME=NUMBER{known}{above}.", code=Exit.USAGE)
        limits[name] = limit
    return limits


def check_limits(
    figures: Mapping[str, float], under: Mapping[str, float] | None = None, over: Mapping[str, float] | None = None
) -> None:
    """Whether figures are what --fail-under (`under`) and --fail-over (`over`) ask for; nan is not.

    Raises:
        UserError: a figure misses its limit, and the exit code is THRESHOLD; or there is no figure of a name.
    """
    under, over = under or {}, over or {}
    for option, limits in (("--fail-under", under), ("--fail-over", over)):
        unknown = [name for name in limits if name not in figures]
        if unknown:
            hint = f"There are {', '.join(figures)}." if figures else ""
            raise UserError(f"{option} is about {unknown[0]}, which was not measured.", hint, Exit.USAGE)
    missed = [
        f"{name} is {figures[name]:.6g}, {word} {limit:g} ({option})"
        for option, word, limits, sign in (("--fail-under", "under", under, 1), ("--fail-over", "over", over, -1))
        for name, limit in limits.items()
        if not sign * figures[name] >= sign * limit
    ]
    if missed:
        raise UserError(f"{'; '.join(missed)}.", code=Exit.THRESHOLD)


def no_level(ci: float | None) -> dict[str, bool]:
    """What is wrong with --ci, the share of samples that an interval holds, and whether it is."""
    return {f"--ci is {ci}, wanted a share between 0 and 1, as 0.95": ci is not None and not 0 < ci < 1}
