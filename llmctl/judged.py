"""judged: what a smaller model is worth beside the one it was made from, as a report and a table."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmctl.console import Console
from llmctl.spec.judging import Judging, ratios

if TYPE_CHECKING:
    from llmctl.core.device import Place

SHOWN = {"bytes": "bytes", "parameters": "parameters", "perplexity": "perplexity", "kl": "KL, nats a token",
         "accuracy": "accuracy", "tokens_per_second": "tokens/s"}  # fmt: skip


def judged(before: Path, after: Path, judging: Judging, place: "Place") -> dict[str, Any]:
    """Measures two checkpoints, and checks what --fail-under asks for.

    Returns:
        `before` and `after`: bytes of weights, parameters, and with --eval loss, perplexity, accuracy and
        tokens_per_second, `after` also kl; `ratios`: kept, smaller, faster.

    Raises:
        UserError: a figure is under its limit.
    """
    from llmctl.core.checkpoint.directory import Checkpoint
    from llmctl.core.compress.judge import Judge, weighed

    old, new = weighed(before), weighed(after)
    if judging.eval is not None:
        checkpoints = Checkpoint.open(before), Checkpoint.open(after)
        judge = Judge(judging, checkpoints[0].config, checkpoints[0].tokenizer(), place)
        one, other = judge.compare(*(checkpoint.model(place.device) for checkpoint in checkpoints))
        old, new = old | one, new | other
    figures = {"before": old, "after": new, "ratios": ratios(old, new)}
    judging.check(figures["ratios"])
    return figures


def show(figures: dict[str, Any], layers: list[dict[str, Any]], console: Console, title: str) -> None:
    """The tables for people, on stderr: what was done by layer, then before and after.

    Args:
        layers: a record a matrix or a block, all with the same keys.
    """
    if layers:
        rows = [tuple(_spelled(value) for value in layer.values()) for layer in layers]
        console.show(console.table(title, tuple(name.replace("_", " ") for name in layers[0]), rows))
    rows = [
        (text, *(_spelled(figures[side].get(name, "")) for side in ("before", "after")))
        for name, text in SHOWN.items()
        if name in figures["before"] or name in figures["after"]
    ]
    rows += [(name, "", _spelled(value)) for name, value in figures["ratios"].items()]
    console.show(console.table("before and after", ("", "before", "after"), rows))


def _spelled(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if type(value) is int else str(value)
