"""prune: the least useful weights of a checkpoint become zero, or whole parts of it are cut out."""

from math import prod
from pathlib import Path
from typing import Annotated, Any

import typer

from llmctl.errors import Exit, UserError
from llmctl.flags import Compute, Shown, Written, expand, invocation, model_path
from llmctl.spec.calibration import Calibration
from llmctl.spec.families import read_config, read_config_json
from llmctl.spec.idle import changed, check_idle
from llmctl.spec.judging import Judging
from llmctl.spec.layout import Output
from llmctl.spec.memory import gib
from llmctl.spec.model import ModelConfig
from llmctl.spec.prune import PruneConfig, targets
from llmctl.spec.recovery import Recovery
from llmctl.spec.remade import check_plain
from llmctl.spec.safetensors import read_tensors
from llmctl.spec.sizes import parameters, shapes
from llmctl.spec.slim import SlimConfig, slimmed
from llmctl.spec.train import check_seed


@expand
def prune(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory, or - for its path on stdin.")],
    written: Written,
    single: PruneConfig,
    parts: SlimConfig,
    text: Calibration,
    recovery: Recovery,
    judging: Judging,
    compute: Compute,
    shown: Shown,
    seed: Annotated[int, "Of --rank random, and of the order of the text of --recover-steps."] = 0,
) -> None:
    """Zero the least useful weights of a checkpoint, or cut out whole parts of it.

    Single weights (--sparsity, --pattern) become zeros in a model of the same shape. Parts (--heads, --ff, --width,
    --layers) leave a smaller model. With both, parts go first. Embeddings, norms, biases and heads keep all weights.

    By magnitude tensors are pruned one after another, whatever the size of the model; what looks at --calibration text
    goes block by block, each on what the blocks before it, already pruned, give it.

    With --recover-steps the result is trained on, what was pruned staying so. Ctrl-C and SIGTERM then save the state
    and end with 75; the same command line goes on from there, and ends with the same weights, bit for bit.
    """
    check_seed(seed)
    source = model_path(model)
    check_plain(source, read_config_json(source))
    config = read_config(source)
    both, cutting = single.asked or not parts.asked, parts.asked
    _check_text(single if both else None, parts if cutting else None, text)
    _check_idle(single, parts, text, recovery, judging, seed)
    lesson = _lesson(recovery, text, config)
    smaller, along = slimmed(config, parts) if cutting else (config, "")
    names = targets(smaller, single) if both else []
    size = sum(info.bytes for info in read_tensors(source).values())
    inputs = [source, *(path for path in (text.calibration, recovery.recover_data, judging.eval) if path is not None)]
    need, again = size * (both + cutting + single.sparse), lesson is not None
    if again:
        need += 24 * parameters(smaller)  # float32 weights and their moments, and the state before the last
    output = Output.plan(written.out, invocation(), inputs, written.force, resumable=again, need=need)
    from llmctl.console import Console

    console = Console(shown)
    if along:
        console.warn(f"{along}.")
    if written.dry_run:
        facts = _facts(config, smaller, single, names, size) | {"path": str(written.out)}
        facts["up_to_date"] = output.up_to_date
        rows = [(name.replace("_", " "), gib(value) if name == "bytes" else value) for name, value in facts.items()]
        console.report(facts, None if shown.json else console.table(str(written.out), ("", ""), rows))
        return
    if output.up_to_date:
        judging.check(output.metrics.get("ratios", {}))
    else:
        with output as partial:
            from llmctl.core.compress.prune.files import compact
            from llmctl.core.compress.prune.stages import prune_checkpoint, slim_checkpoint, stage, take_out
            from llmctl.core.device import pick
            from llmctl.judged import judged, show

            place = pick(compute.device, compute.dtype, compute.threads)
            output.device, here = str(place.device), source
            cut: list[dict[str, Any]] = []
            layers: list[dict[str, Any]] = []
            if cutting:
                here, cut = stage(
                    partial,
                    ".slim",
                    lambda to: slim_checkpoint(source, to, parts, text, place.device, seed),
                )
            if both:
                with console.progress(len(names), "matrices", "prune") as progress:
                    before = here
                    here, layers = stage(
                        partial,
                        ".pruned",
                        lambda to: prune_checkpoint(before, to, single, text, place.device, progress.update),
                    )
            recovered: dict[str, Any] = {}
            if lesson is None:
                take_out(here, partial)
            else:
                from llmctl.core.train.recover import recover, settle
                from llmctl.follow import follow

                run = recover(partial, here, source, recovery, lesson, place, seed)
                recovered = {"recovery": follow(run, console)}
                settle(partial)
            if single.sparse:
                compact(partial, smaller)
            figures = judged(source, partial, judging, place)
            done = {"layers": layers, "parts": cut, **recovered}
            output.metrics = figures | _told(layers, single, output.device) | done
            for records, title in ((cut, "parts"), (layers, "pruned")):
                if records and not shown.quiet:
                    console.show(_table(records, title, console))
            show(figures, [], console, "")
            if layers:
                console.say(f"{output.metrics['speed']}; {_stored(single)}.")
    console.made(written.out, output.metrics, output.seconds, output.up_to_date)


def _check_text(single: PruneConfig | None, parts: SlimConfig | None, text: Calibration) -> None:
    """That there is text where something looks at it."""
    if text.calibration is not None:
        return
    if single is not None and single.calibrated:
        raise UserError(
            f"--score {single.score} ranks weights by what they are multiplied with, and there is no text to see that.",
            "Name one with --calibration, or use --score magnitude.",
            Exit.USAGE,
        )
    if parts is not None and parts.calibrated:
        raise UserError(
            "Which parts matter least, and how the rest makes up for them, is seen on text, and there is none.",
            "Name one with --calibration, or use --rank weight --no-repair.",
            Exit.USAGE,
        )


def _check_idle(
    single: PruneConfig, parts: SlimConfig, text: Calibration, recovery: Recovery, judging: Judging, seed: int
) -> None:
    """Whether something looks at every option that was given.

    Raises:
        UserError: nothing does.
    """
    both = single.asked or not parts.asked
    if not both:
        check_idle(changed(single), "where parts are cut out, without --sparsity or --pattern")
    elif not single.mends:
        check_idle([flag for flag in changed(single) if flag == "--damp"], f"beside --score {single.score}")
    if not parts.asked:
        check_idle(changed(parts), "without a part that is cut out")
    seen = parts.calibrated or (both and single.calibrated)
    lesson = recovery.recover_steps > 0
    if not lesson:
        check_idle(changed(recovery), "without --recover-steps")
    if not seen:
        taught = lesson and recovery.recover_data is None
        check_idle(changed(text, ("calibration",) if taught else ()), "where nothing looks at text")
    if seed and not (lesson or parts.rank == "random"):
        check_idle(["--seed"], "without --rank random or --recover-steps")
    if judging.eval is None:
        silent = ("eval", "fail_under", *(("speed_tokens",) if not judging.speed_tokens else ()))
        check_idle(changed(judging, silent), "without --eval TEXT")


def _lesson(recovery: Recovery, text: Calibration, config: ModelConfig) -> str | None:
    """The text to recover on; None: nothing is trained."""
    if not recovery.recover_steps:
        return None
    found = recovery.recover_data or text.calibration
    if found is None:
        raise UserError(
            "--recover-steps trains on text, and there is none.", "Name one with --recover-data.", Exit.USAGE
        )
    if not config.lm_head:
        raise UserError(
            "--recover-steps trains a model that scores tokens, and this one has no head for that.",
            "Prune it without, and fine-tune the result: llmctl finetune OUT DATA",
            Exit.MISMATCH,
        )
    return found


def _facts(config: ModelConfig, smaller: ModelConfig, single: PruneConfig, names: list[str], size: int) -> dict:
    """What will be done, in numbers."""
    wanted = shapes(smaller)
    weights = [prod(wanted[f"{name}.weight"]) for name in names]
    return {
        "parameters_before": parameters(config),
        "parameters": parameters(smaller),
        "matrices": len(names),
        "weights": sum(weights),
        "zeros": sum(int(count * single.share) for count in weights),
        "bytes": size * parameters(smaller) // max(1, parameters(config)),
    }


def _told(layers: list[dict[str, Any]], single: PruneConfig, device: str) -> dict[str, Any]:
    """What single weights were pruned, and whether that saves time here."""
    if not layers:
        return {}
    sizes = [prod(layer["shape"]) for layer in layers]
    zeros = sum(round(layer["sparsity"] * size) for layer, size in zip(layers, sizes, strict=True))
    speed = (
        f"zeros in the pattern {single.pattern or 'free'} save no time on {device}, where all weights are multiplied"
    )
    if single.pattern == "2:4":
        speed += "; sparse tensor cores (NVIDIA, from Ampere on) make use of it in other programs"
    return {"sparsity": zeros / sum(sizes), "pattern": single.pattern or "free", "saves_time": False, "speed": speed}


def _stored(single: PruneConfig) -> str:
    if single.sparse:
        return "on disk zeros are left out, which only llmctl opens"
    return "on disk they take what they took; --sparse leaves them out"


def _table(records: list[dict[str, Any]], title: str, console: Any) -> Any:
    """Records whose keys may differ, as a table."""
    keys = list(dict.fromkeys(key for record in records for key in record))
    rows = [[_spelled(record.get(key, "")) for key in keys] for record in records]
    return console.table(title, [key.replace("_", " ") for key in keys], rows)


def _spelled(value: Any) -> str:
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
