"""bench: how fast a model reads and writes on this machine."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.errors import Exit, UserError
from llmctl.flags import Shown, expand, model_path
from llmctl.spec.bench import Benching, Speed
from llmctl.spec.tasks import suited

if TYPE_CHECKING:
    from llmctl.core.decode.bench import Turn

SHOWN = ("prefill_tokens_per_second", "decode_tokens_per_second", "time_to_first_token", "peak_memory", "dtype")


@expand
def bench(
    model: Annotated[Path, typer.Argument(help="Checkpoint directory, or - for its path on stdin.")],
    benching: Benching,
    shown: Shown,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", metavar="NAME")] = "auto",
    threads: Annotated[int, "CPU threads; 0: one for each core."] = 0,
    fail_under: Annotated[float | None, "End with exit code 6 if fewer tokens a second are decoded."] = None,
) -> None:
    """Measure how fast a model reads a prompt and writes after it, for each type of arithmetic and each way.

    Ways take turns, so that a busy machine slows all alike, and in each turn the model is loaded anew. Shares are of
    what this machine's memory and matrix products were measured to reach with as many threads; a model that fits in a
    cache may pass them. In a report the first way's figures come first, and `runs` has those of all.
    """
    path = model_path(model)
    from llmctl.spec.families import read_config, read_config_json
    from llmctl.spec.peft import within

    config = within(path, read_config(path))
    suited("generate", config, path)
    longest = max(benching.prompt_tokens, 16 + benching.new_tokens)
    if config.position == "learned" and longest > config.context:
        raise UserError(
            f"{longest} tokens are wanted, but the model's learned positions end at {config.context}.",
            f"Add --prompt-tokens {config.context} or less, and --new-tokens {max(2, config.context - 16)} or less.",
            Exit.USAGE,
        )
    if threads < 0:
        raise UserError(f"--threads is {threads}; wanted 0 or more.", code=Exit.USAGE)

    import torch

    from llmctl.console import Console
    from llmctl.core.checkpoint.directory import Checkpoint
    from llmctl.core.decode.bench import ENGINES, Limits, Way, speeds, turns
    from llmctl.core.decode.rules import Rules
    from llmctl.core.device import DTYPES, pick

    console, checkpoint = Console(shown), Checkpoint.open(path)
    place = pick(device, "auto", threads)
    start = Rules.of(checkpoint.generation or read_config_json(path), config).start or ()
    dtypes = [DTYPES.get(name) for name in benching.dtype]
    ways = [Way(name, dtype) for dtype in dtypes for name in benching.engine or ENGINES]
    found: dict[Way, list[Turn]] = {way: [] for way in ways}
    closed: dict[str, str] = {}
    limits = Limits(place)
    with console.progress(benching.rounds * len(ways), "turns", "bench") as progress:
        every = turns(lambda dtype: checkpoint.model(place.device, dtype), ways, benching, limits, start)
        for done, (way, turn) in enumerate(every, 1):
            if isinstance(turn, str):
                closed.setdefault(way.engine, turn)
            else:
                found[way].append(turn)
            progress.update(done)
    found = {way: taken for way, taken in found.items() if taken}
    for name, reason in closed.items():
        console.say(f"{path} is not measured with --engine {name}: {reason}.")
    if not found:
        raise UserError(f"{path} cannot be computed with --engine {benching.engine[0]}.", "Use --engine stock.")
    made = speeds(found, benching, config, limits)
    report: dict[str, Any] = {
        "model": str(path),
        **{name: getattr(made[0], name) for name in SHOWN},
        "threads": torch.get_num_threads(),
        "device": str(place.device),
        "weights": "plain" if checkpoint.quantized is None else checkpoint.quantized.method,
        "prompt_tokens": benching.prompt_tokens,
        "new_tokens": benching.new_tokens,
        "rounds": benching.rounds,
        "bytes_per_second": limits.bandwidth,
        "runs": [asdict(one) for one in made],
    }
    console.report(report, None if shown.json else console.table(f"{path}: tokens/s", COLUMNS, map(_cells, made)))
    if fail_under is not None and not made[0].decode_tokens_per_second >= fail_under:
        raise UserError(
            f"{made[0].decode_tokens_per_second:.4g} tokens a second are decoded, under --fail-under {fail_under:g}.",
            code=Exit.THRESHOLD,
        )


COLUMNS = ("engine", "dtype", "rows", "prefill", "of FLOPs", "decode", "of GB/s", "first s", "GiB")


def _cells(one: Speed) -> tuple[object, ...]:
    read, written = (
        f"{value:.1f}" if value < 1000 else f"{value:.0f}"
        for value in (one.prefill_tokens_per_second, one.decode_tokens_per_second)
    )
    shares = (f"{100 * share:.0f} %" for share in (one.flops_share, one.bandwidth_share))
    last = (f"{one.time_to_first_token:.3f}", f"{one.peak_memory / 2**30:.2f}")
    used, got = shares
    return one.engine, one.dtype, str(one.rows), read, used, written, got, *last
