"""follow: a training run, shown as it goes and saved when it is asked to stop."""

from typing import TYPE_CHECKING

from llmctl.console import Console
from llmctl.errors import Interrupted
from llmctl.signals import Stop

if TYPE_CHECKING:
    from llmctl.core.train.run import Run


def follow(run: "Run", console: Console) -> dict[str, float]:
    """Train to the end, with progress on stderr; returns the summary for llmctl.json.

    Raises:
        Interrupted: Ctrl-C or SIGTERM came; the state is saved, and the same command goes on from it.
    """
    from llmctl.core.train.loop import Step

    with Stop() as stop, console.progress(run.steps, "steps", "training") as progress:
        if run.resume():
            console.say(f"Going on after step {run.done}.")
        loss = float("nan")
        for event in run.go(lambda: stop.asked):
            if isinstance(event, Step):
                loss = event.loss
                rate = f"{event.read / event.seconds:,.0f}"
                progress.update(event.number, loss=f"{loss:.4f}", tokens_per_second=rate)
            else:
                console.say(f"step {event.step}: held-out {event}")
            if stop.asked and run.done < run.steps:
                break
        if stop.asked and (run.done < run.steps or run.due):
            run.save()
            raise Interrupted(f"Interrupted after step {run.done} of {run.steps}; the same command goes on there.")
    run.finish()
    if run.evaluations:
        before, after = run.evaluations[0].figures, run.evaluations[-1].figures
        names = {name: name.replace("heldout", "held-out").replace("_", " ") for name in after}
        spelled = (f"{names[name]} {before[name]:.4g} before, {after[name]:.4g} after" for name in after)
        console.say("; ".join(spelled))
    return _summary(run, loss)


def _summary(run: "Run", loss: float) -> dict[str, float]:
    summary = {"steps": run.done, "tokens": run.tokens, "train_seconds": round(run.seconds, 3), "loss": loss}
    if run.seconds:
        summary["tokens_per_second"] = round(run.tokens / run.seconds, 1)
    if run.evaluations:
        first, last = run.evaluations[0].figures, run.evaluations[-1].figures
        summary |= {**{f"{name}_before": value for name, value in first.items()}, **last}
    if run.best is not None:
        summary |= {"best_step": run.best.step, "best_heldout_loss": run.best.loss}
    return summary
