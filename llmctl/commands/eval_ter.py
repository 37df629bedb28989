"""eval-ter: how many words of a translation would have to be edited, or moved, to make it a reference."""

from typing import Annotated

import typer

from llmctl.flags import Shown, expand
from llmctl.spec.limits import parse_limits
from llmctl.spec.pairs import Pairing
from llmctl.spec.translation import Comparison, Scored, Ter


@expand
def eval_ter(
    predictions: Annotated[str, typer.Argument(help="Texts to score, a line or a JSON record each; - for stdin.")],
    pairing: Pairing,
    options: Ter,
    comparison: Comparison,
    scored: Scored,
    shown: Shown,
    references: Annotated[
        tuple[str, ...],
        typer.Argument(help="Files of references, one for each text; none: the records of PREDICTIONS hold them."),
    ] = (),
    fail_over: Annotated[
        tuple[str, ...],
        "End with exit code 6 if the score is above a number, or a figure that is named: low=20.5; repeatable. "
        "Figures: score, low and high (--ci), difference (--baseline; the largest).",
    ] = (),
) -> None:
    """Report the translation edit rate of texts against their references, as sacrebleu computes it.

    Score and signature are those of sacrebleu's own command; less is better. Two or more text files, a text a line,
    or JSON lines that hold both. --baseline compares systems, --sentence-level scores texts one by one.
    """
    limits = parse_limits("--fail-over", fail_over, "score", comparison.figures)
    from llmctl.console import Console
    from llmctl.translated import Evaluation

    inputs = (predictions, *references)
    Evaluation(Console(shown), inputs, pairing, options, comparison, scored).run({}, limits)
