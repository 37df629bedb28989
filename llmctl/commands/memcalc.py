"""memcalc: what a model needs to train or to run, from its config alone."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from llmctl.errors import Exit, UserError
from llmctl.flags import Shown, expand, model_path
from llmctl.spec.amount import size_of
from llmctl.spec.memory import Memory, Solvable, classic, estimate, gib, kv_cache, solve, trainable_parameters
from llmctl.spec.model import ModelConfig
from llmctl.spec.presets import Shape
from llmctl.spec.setting import ELEMENT, Dtype, Setting, Tuning
from llmctl.spec.sizes import chinchilla_tokens, flops_per_token, forward_flops, parameters, six_n
from llmctl.spec.spent import spent_flops

CLASSIC = (
    "Classic rule: 4 bytes a parameter to hold it and 20 more to train it (8 Adam, 4 gradients, 8 activations and "
    "temporaries): 24 GB for 10^9 parameters; the 80 GB that circulates is 4 x 20, a slip."
)
MODEL = "Checkpoint directory, config.json, token directory (with --preset), or - for a path on stdin."


@expand
def memcalc(
    shape: Shape,
    setting: Setting,
    tuning: Tuning,
    shown: Shown,
    model: Annotated[Path | None, typer.Argument(help=MODEL)] = None,
    vocab_size: Annotated[int | None, "Vocabulary of a --preset; default: that of the token directory."] = None,
    stored: Annotated[
        Dtype | None, "With --method: type of the frozen tensors beside the layers' matrices; default: --dtype."
    ] = None,
    rule: Annotated[Literal["exact", "classic"], "classic: the 4 + 20 bytes a parameter of LLM courses."] = "exact",
    fit: Annotated[str | None, "Memory of one device, as in 24GiB or 80GB: solve for the largest --solve."] = None,
    solve_for: Annotated[Solvable, typer.Option("--solve", help="What --fit solves for.")] = "batch",
    tokens: Annotated[float | None, "Tokens to train on; default: Chinchilla's 20 a parameter."] = None,
    flops: Annotated[float | None, "FLOP/s that one device sustains (its peak times the utilisation)."] = None,
) -> None:
    """Say what a model needs: parameters, memory to train or run it, operations, time.

    Bytes are those of one device, at their peak: weights, gradients, optimizer states, activations, logits, KV cache.
    Not in them: the CUDA context (0.3 to 1 GiB), the allocator's fragments, buffers of communication.
    """
    budget = None if fit is None else size_of(fit, "--fit")
    config, name = _config(model, shape, vocab_size)
    setting, value = tuning.applied(setting, stored), None
    if budget is not None:
        if rule == "classic":
            raise UserError(
                "--rule classic knows no batch, so --fit cannot solve.", "Leave one of them out.", Exit.USAGE
            )
        value, setting, memory = solve(config, setting, budget, solve_for)
    else:
        memory = classic(config) if rule == "classic" else estimate(config, setting)
    lengths = setting.lengths(config)
    source = lengths["encoder"] if config.kind == "encoder-decoder" else None
    setting = replace(setting, sequence=lengths[config.last_stack], source=source, scored=setting.share(config))
    report = _report(config, setting, memory) | {"model": name, "rule": rule} | _time(config, setting, tokens, flops)
    if budget is not None:
        report["fit"] = {"bytes": budget, "solve": solve_for, "value": value, "free": budget - memory.total}
    from llmctl.console import Console

    console = Console(shown)
    if rule == "classic":
        console.say(CLASSIC)
    if _in_few_bits(Path(name)) and setting.quantize == "none":
        console.warn(f"{name} is quantized, and is counted as if it were not: --quantize says what its matrices take.")
    console.report(report, None if shown.json else _table(console, config, setting, report))


def _config(model: Path | None, shape: Shape, vocab: int | None) -> tuple[ModelConfig, str]:
    """The model asked for, and what to call it."""
    from llmctl.spec.families import family_of, read_config
    from llmctl.spec.layout import read_json

    path = None if model is None else model_path(model)
    if path is not None and (path / "tokens.json").is_file():
        if shape.preset is None:
            raise UserError(f"{path} holds tokens, not a model.", "Add --preset to say which model.", Exit.USAGE)
        if vocab is None:
            vocab = read_json(path / "tokens.json", "token directory's list of contents").get("vocab")
        if not isinstance(vocab, int):
            raise UserError(f"{path}/tokens.json names no vocabulary.", "Make it again: llmctl tokenize", Exit.MISMATCH)
    elif path is not None:
        if shape.preset is not None or vocab is not None:
            flag = "--preset" if shape.preset is not None else "--vocab-size"
            raise UserError(f"{flag} is for a fresh model, but {path} is given.", "Leave one of them out.", Exit.USAGE)
        if path.is_file():
            found = read_json(path, "config.json")
            config = family_of(found).to_config(found)
        else:
            config = read_config(path)
        return _changed(config, shape.overrides), str(path)
    if shape.preset is None:
        raise UserError("Neither a model nor --preset is given.", "Name a checkpoint, or add --preset 5m.", Exit.USAGE)
    return shape.config(vocab), f"{shape.preset} ({shape.family})"


def _in_few_bits(path: Path) -> bool:
    """Whether it is a checkpoint that holds its matrices in few bits."""
    from llmctl.spec.families import read_config_json
    from llmctl.spec.quantized_config import KEY

    return (path / "config.json").is_file() and bool(read_config_json(path).get(KEY))


def _changed(config: ModelConfig, changes: dict[str, Any]) -> ModelConfig:
    """Another shape; of fewer layers, those that differ from the rest are still the same ones."""
    for name in ("window_layers", "rope_skip"):
        if "layers" in changes and getattr(config, name):
            changes = changes | {name: tuple(i for i in getattr(config, name) if i < changes["layers"])}
    return config.resized(**changes)


def _report(config: ModelConfig, setting: Setting, memory: Memory) -> dict[str, Any]:
    row = {"sequence": setting.sequence or config.context, "source": setting.source, "scored": setting.scored}
    training = setting.mode == "training"
    flops = {
        "six_n": six_n(config),
        "forward": forward_flops(config, **row),
        "forward_causal": forward_flops(config, **row, causal=True),
        "training": flops_per_token(config, **row),
        "training_causal": flops_per_token(config, **row, causal=True),
        "spent": spent_flops(config, setting),
    }
    return {
        "parameters": parameters(config),
        "trainable_parameters": trainable_parameters(config, setting),
        "bytes": memory.bytes() | {"total": memory.total},
        "activation_bytes": dict(memory.parts),
        "kv_cache_bytes_per_token": _cached_token(config, setting),
        "flops_per_token": flops["training" if training else "forward"],
        "flops": flops,
        "chinchilla_tokens": chinchilla_tokens(config),
        "kind": config.kind,
        "mode": setting.mode,
        "method": setting.tuning.method if training else None,
        "dtype": setting.dtype,
        "precision": setting.precision if training and setting.dtype != "fp32" else setting.dtype,
        "batch": setting.batch,
        **row,
        "devices": setting.devices,
    }


def _cached_token(config: ModelConfig, setting: Setting) -> int:
    """Bytes by which one token more lengthens the cache, where no window ends: none in linear attention."""
    sizes = [kv_cache(config, tokens, ELEMENT[setting.dtype], setting.tensor_parallel) for tokens in (0, 1)]
    return sizes[1] - sizes[0]


def _time(config: ModelConfig, setting: Setting, tokens: float | None, flops: float | None) -> dict[str, Any]:
    """How long the training takes, where the speed is known."""
    for flag, value in (("--tokens", tokens), ("--flops", flops)):
        if value is not None and value <= 0:
            raise UserError(f"{flag} is {value:g}; wanted more than 0.", "As in --tokens 3e9 --flops 4e14.", Exit.USAGE)
    count = round(tokens) if tokens is not None else chinchilla_tokens(config)
    total = count * spent_flops(config, setting)
    seconds = {} if flops is None else {"seconds": total / (flops * setting.devices)}
    return {"tokens": count, "flops_total": total} | seconds


def _table(console: Any, config: ModelConfig, setting: Setting, report: dict[str, Any]) -> Any:
    """The report for people."""
    from rich.console import Group

    sizes = report["bytes"]
    decimal, binary, unit = (1e9, 2**30, "G") if sizes["total"] >= 1e8 else (1e6, 2**20, "M")

    def row(name: str, size: int, note: str) -> tuple[str, str, str, str]:
        return name, f"{size / decimal:,.3f}", f"{size / binary:,.3f}", note

    notes = _notes(setting, report)
    rows = [row(name.replace("_", " "), size, notes.get(name, "")) for name, size in sizes.items() if size]
    parts = [row(f"  {name}", size, "") for name, size in report["activation_bytes"].items()]
    at = next((i + 1 for i, one in enumerate(rows) if one[0] == "activations"), 0)
    rows[at:at] = parts
    memory = console.table(_title(config, setting, report), ("memory", f"{unit}B", f"{unit}iB", ""), rows)
    return Group(memory, console.table("", ("operations", "", ""), _facts(setting, report)))


def _title(config: ModelConfig, setting: Setting, report: dict[str, Any]) -> str:
    count = report["parameters"]
    short = f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M"
    devices = f", on each of {setting.devices} devices" if setting.devices > 1 else ""
    rows = f"{setting.batch} x {report['sequence']:,} tokens"
    if setting.source:
        rows = f"{setting.batch} x {setting.source:,} tokens to {report['sequence']:,}"
    how = f"{setting.mode}, {rows}, {report['precision']}"
    if report["precision"] not in ELEMENT:
        how = f"{setting.mode}, {rows}, {setting.dtype} {report['precision']}"
    return f"{report['model']}: {short} parameters; " + (
        "classic rule" if report["rule"] == "classic" else how + devices
    )


def _notes(setting: Setting, report: dict[str, Any]) -> dict[str, str]:
    """What each row of the table is made of."""
    if report["rule"] == "classic":
        names = {"weights": 4, "gradients": 4, "optimizer": 8, "activations": 8}
        return {name: f"{size} bytes a parameter" for name, size in names.items()} | {"total": "4 + 20"}
    training = setting.mode == "training"
    held = "fp32" if setting.casts and not setting.tuning.makes_adapter else setting.matrices
    return {
        "weights": held + (f", trained by {setting.tuning.method}" if setting.tuning.method != "full" else ""),
        "optimizer": setting.optimizer,
        "master_weights": "fp32",
        "activations": ("kept for the backward pass" if training else "of the layer at work"),
        "logits": _of_logits(setting, report),
        "kv_cache": _of_cache(setting, report),
        "total": f"shared out by ZeRO {setting.zero}" if setting.zero and setting.devices > 1 else "",
    }


def _of_logits(setting: Setting, report: dict[str, Any]) -> str:
    if setting.mode == "inference":
        return "of a token of each row" if report["kind"] == "encoder" else "of the last tokens"
    if setting.loss_chunk != 0:
        return "of a chunk"
    return "of all tokens" if setting.scored == 1 else f"of {setting.scored:.0%} of the tokens"


def _of_cache(setting: Setting, report: dict[str, Any]) -> str:
    each = report["kv_cache_bytes_per_token"]
    if not each:
        return "sums, for any number of tokens"
    return f"{each:,} bytes a token" + (", of both rows" if setting.source else "")


def _facts(setting: Setting, report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Numbers besides memory: name, value, remark."""
    flops = report["flops"]
    rows = [("parameters", f"{report['parameters']:,}", "")]
    if setting.mode == "training":
        rows += [
            ("trained parameters", f"{report['trainable_parameters']:,}", ""),
            ("operations a token", f"{flops['training']:.4g}", f"exact; causal {flops['training_causal']:.4g}"),
            ("6 N", f"{flops['six_n']:.4g}", "the rule of thumb for the same"),
            ("Chinchilla tokens", f"{report['chinchilla_tokens']:,}", "20 a parameter"),
            ("tokens", f"{report['tokens']:,}", f"{report['flops_total']:.4g} operations"),
        ]
    else:
        rows.append(("operations a token", f"{flops['forward']:.4g}", f"exact; causal {flops['forward_causal']:.4g}"))
    if "seconds" in report:
        rows.append(("time", _duration(report["seconds"]), "at --flops on every device"))
    if "fit" in report:
        fit = report["fit"]
        rows.append(
            (f"largest {fit['solve']}", f"{fit['value']:,}", f"in {gib(fit['bytes'])}, {gib(fit['free'])} left")
        )
    return rows


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"
