"""inspect: what a checkpoint, an adapter, a token directory or a tokenizer holds, and how two of them differ."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from llmctl.errors import Exit, UserError
from llmctl.flags import Shown, expand, model_path
from llmctl.spec.contents import Contents, manifest_of
from llmctl.spec.memory import gib
from llmctl.spec.model import ModelConfig
from llmctl.spec.safetensors import TensorInfo

PATH = "Checkpoint, adapter, token directory, tokenizer, .safetensors file, or - for a path on stdin."
Rows = list[tuple[Any, ...]]

# Fields of a shape that people are shown whatever they hold, and of which others what they mean depends on.
ALWAYS = (
    *("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "ff", "context"),
    *("norm", "norm_eps", "norm_place", "activation", "gated", "position"),
)
DEPENDS = {
    "rope_theta": ("position", "rope"),
    "relative_buckets": ("position", "relative"),
    "relative_distance": ("position", "relative"),
}
HEADS = (  # what `_scores` tells
    *("tie", "lm_head", "head_transform", "head_bias", "next_sentence"),
    *("classifier", "classifier_dense", "classifier_pool", "classifier_dropout", "problem", "labels"),
)
MOST_LABELS = 12  # that are named


@expand
def inspect(
    path: Annotated[Path, typer.Argument(help=PATH)],
    shown: Shown,
    diff: Annotated[Path | None, typer.Option(metavar="OTHER", help="Say instead what differs in OTHER.")] = None,
) -> None:
    """Say what a checkpoint, an adapter, a token directory or a tokenizer holds, or how two of them differ.

    Reads headers only; --diff reads the weights of both. Of tensors of unknown models, all elements are counted.
    """
    from llmctl.console import Console

    console = Console(shown)
    contents = Contents.of(model_path(path))
    if diff is not None:
        other = Contents.of(model_path(diff))
        report = _diff(console, contents, other)
        console.report(report, None if shown.json else _diff_table(console, report))
        return
    for remark in contents.remarks:
        console.warn(remark)
    report = _report(contents)
    console.report(report, None if shown.json else _table(console, report, contents.config))


def _report(contents: Contents) -> dict[str, Any]:
    manifest, _ = manifest_of(contents.folder) if contents.path.is_dir() else (None, [])
    made = {key: (manifest or {}).get(key) for key in ("command", "argv", "seed", "tool", "seconds", "device")}
    tensors = list(contents.tensors.values())
    report = {
        "path": str(contents.path),
        "kind": contents.kind,
        "config": _config(contents),
        "parameters": contents.parameters if contents.kind in ("checkpoint", "adapter", "tensors") else None,
        "bytes": sum(info.bytes for info in tensors),
        "dtypes": _dtypes(tensors),
        "quantization": _quantization(contents),
        "metadata": contents.metadata,
        "remarks": list(contents.remarks),
        "made": made if manifest else None,
        "lineage": _parents(manifest or {}),
    }
    listed = [
        {"name": info.name, "shape": list(info.shape), "dtype": info.dtype, "bytes": info.bytes, "file": info.file}
        for info in tensors
    ]
    return report | _texts(contents) | {"tensors": listed}


def _config(contents: Contents) -> dict[str, Any] | None:
    """Our fields; config.json as it is where the model is not known."""
    return contents.json if contents.config is None else asdict(contents.config)


def _quantization(contents: Contents) -> dict[str, Any] | None:
    """How matrices are held in few bits, and the bits of a parameter over all; None: all are plain numbers."""
    if contents.quantized is None:
        return None
    size = sum(info.bytes for info in contents.tensors.values())
    return contents.quantized.facts() | {"bits_per_parameter": round(8 * size / max(1, contents.parameters), 4)}


def _dtypes(tensors: list[TensorInfo]) -> dict[str, int]:
    """Bytes of each dtype, the most first."""
    sizes: dict[str, int] = {}
    for info in tensors:
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.bytes
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def _texts(contents: Contents) -> dict[str, Any]:
    """What is to say of a tokenizer, and of tokens."""
    if contents.kind == "tokenizer":
        from llmctl.core.text.tokenizer import Tokenizer

        return {"tokenizer": _tokenizer(Tokenizer.open(contents.path))}
    if contents.kind != "tokens":
        return {}
    from llmctl.core.data.shards import Tokens

    tokens = Tokens.open(contents.path)
    about = {"dtype": tokens.dtype.name, "eos": tokens.eos, "tokenizer_sha256": tokens.tokenizer_sha256}
    return {"tokens": about | tokens.summary(), "tokenizer": _tokenizer(tokens.tokenizer())}


def _tokenizer(tokenizer: Any) -> dict[str, Any]:
    roles = ("bos", "eos", "pad", "unk", "sep", "cls", "mask")
    ids = {role: getattr(tokenizer, role) for role in roles if getattr(tokenizer, role) is not None}
    return {
        "algorithm": type(tokenizer.backend.model).__name__,
        "vocab": tokenizer.size,
        "special": {role: {"id": number, "token": tokenizer.token(number)} for role, number in ids.items()},
        "special_tokens": len(tokenizer.special_ids),
        "begins_with_bos": tokenizer.begins,
        "sha256": tokenizer.sha256,
    }


def _table(console: Any, report: dict[str, Any], config: ModelConfig | None) -> Any:
    """The report for people."""
    from rich.console import Group

    parts = [console.table(report["path"], ("", ""), _facts(report, config))]
    if report["tensors"]:
        single = len({one["file"] for one in report["tensors"]}) == 1  # then the column would say little
        columns = ("tensor", "shape", "dtype", "size", "file")[: 4 if single else 5]
        rows = [
            (one["name"], " x ".join(map(str, one["shape"])), one["dtype"], gib(one["bytes"]), one["file"])
            for one in report["tensors"]
        ]
        parts.append(console.table("", columns, [row[: len(columns)] for row in rows]))
    lineage = list(_ancestors(report["lineage"]))
    if lineage:
        parts.append(console.table("", ("made from", "by", "with"), lineage))
    return Group(*parts)


def _facts(report: dict[str, Any], known: ModelConfig | None) -> Rows:
    config = report["config"] or {}
    model = f" of {config['model_type']}" if "model_type" in config else ""
    if report["kind"] == "adapter":
        model = f" ({config.get('peft_type')}) for {config.get('base_model_name_or_path')}"
    if known is not None:
        model += f", {'a' if known.kind == 'decoder' else 'an'} {known.kind}"
    rows: Rows = [("holds", f"{report['kind']}{model}")]
    if report["parameters"] is not None:
        kinds = ", ".join(f"{dtype} {gib(size)}" for dtype, size in report["dtypes"].items())
        rows += [("parameters", f"{report['parameters']:,}"), ("size", f"{gib(report['bytes'])} ({kinds or 'none'})")]
    if (few := report["quantization"]) is not None:
        rows += [("quantized", f"{few['method']}; {few['bits_per_parameter']:.2f} bits a parameter")]
        rows += [("", _group(one)) for one in few["groups"]]
    if known is not None:
        rows += shape_rows(known)
    else:
        rows += [(name, _short(one)) for name, one in config.items() if name != "model_type" and one not in (None, ())]
    for part in ("tokens", "tokenizer"):
        rows += [(f"{part}: {name}", _short(value)) for name, value in report.get(part, {}).items()]
    rows += [(f"metadata: {name}", value) for name, value in report["metadata"].items()]
    if report["made"]:
        rows.append(("made by", f"llmctl {' '.join(map(str, report['made']['argv'] or []))}"))
    return rows


def _group(group: dict[str, Any]) -> str:
    """What some matrices are held in, in a line."""
    held = f"{group['kind']}{group['bits']}" if group["kind"] == "int" else group["kind"]
    shared = f"groups of {group['group_size']}" if group["group_size"] else "a scale a row"
    zeros = "" if group["symmetric"] else ", zero points"
    inputs = ", inputs too" if group["inputs"] else ""
    return f"{held}, {shared}{zeros}{inputs} ({group['layout']}): {', '.join(group['targets'][:3])}"


def shape_rows(config: ModelConfig) -> Rows:
    """The fields that say something about this model, and what it scores; --json has all of them."""
    usual = {field.name: field.default for field in fields(ModelConfig)}
    rows: Rows = []
    for name, value in asdict(config).items():
        said = name in ALWAYS or value != usual[name]
        if name in DEPENDS:
            other, needed = DEPENDS[name]
            said = getattr(config, other) == needed
        if said and name not in ("kind", "model_type", *HEADS):
            rows.append((name, _short(value)))
    return [*rows, ("scores", "; ".join(_scores(config)) or "nothing: hidden states only")]


def _scores(config: ModelConfig) -> list[str]:
    """What the model's heads are about."""
    found = []
    if config.lm_head:
        layer = ", after a layer of its own" if config.head_transform else ""
        found.append(f"tokens ({'by the embedding' if config.tie else 'by a matrix of its own'}{layer})")
    if config.next_sentence:
        found.append("whether a second text follows")
    if config.classifier != "none":
        about = "each token" if config.classifier == "token" else "a text"
        kinds = {"single_label": "one of", "multi_label": "any of", "regression": "numbers for"}
        named, more = ", ".join(config.labels[:MOST_LABELS]), len(config.labels) - MOST_LABELS
        found.append(f"{about}: {kinds[config.problem]} {named}{f' and {more} more' if more > 0 else ''}")
    return found


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(one)}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if type(value) is float:
        return f"{value:.6g}"
    return f"{value:,}" if type(value) is int else str(value)


def _parents(made: dict[str, Any]) -> list[dict[str, Any]]:
    """What an llmctl.json says of its parents, where it says it as llmctl does."""
    parents = made.get("parents")
    return [parent for parent in parents if isinstance(parent, dict)] if isinstance(parents, list) else []


def _ancestors(parents: list[dict[str, Any]], depth: int = 0) -> Any:
    """A row for each parent, each followed by its own."""
    for parent in parents:
        told = parent.get("metrics")
        metrics = (
            {name: value for name, value in told.items() if not isinstance(value, dict)}
            if isinstance(told, dict)
            else {}
        )
        yield "  " * depth + str(parent.get("path")), parent.get("command"), _short(metrics)
        yield from _ancestors(_parents(parent), depth + 1)


def _diff(console: Any, first: Contents, second: Contents) -> dict[str, Any]:
    """What differs: config, and tensors, or what there is to say of tokens and tokenizers.

    Raises:
        UserError: they are not of a kind.
    """
    kinds = {"tensors": "checkpoint"}
    if kinds.get(first.kind, first.kind) != kinds.get(second.kind, second.kind):
        problem = f"{first.path} holds a {first.kind}, and {second.path} a {second.kind}."
        problem = problem.replace("a tokens", "tokens").replace("a tensors", "tensors")
        raise UserError(problem, "Compare two of a kind.", Exit.MISMATCH)
    about = [_texts(contents) for contents in (first, second)]
    if first.json is not None and second.json is not None:
        known = first.config is not None and second.config is not None
        for texts, contents in zip(about, (first, second), strict=True):
            texts["config"] = _config(contents) if known else contents.json
    changes = _changes(_flat(about[0]), _flat(about[1]))
    here, there = first.tensors, second.tensors
    both = [name for name in here if name in there]
    shapes = [
        {"name": name, "shapes": [list(here[name].shape), list(there[name].shape)]}
        for name in both
        if here[name].shape != there[name].shape
    ]
    alike = [name for name in both if here[name].shape == there[name].shape]
    values = _values(console, first, second, alike)
    report = {
        "schema": "llmctl/inspect-diff/1",
        "path": str(first.path),
        "other": str(second.path),
        "config": {name.removeprefix("config."): pair for name, pair in changes.items()},
        "only_here": [name for name in here if name not in there],
        "only_there": [name for name in there if name not in here],
        "shapes": shapes,
        "values": values,
        "equal": len(alike) - len(values),
    }
    return report | {"same": not any(report[key] for key in ("config", "only_here", "only_there", "shapes", "values"))}


def _values(console: Any, first: Contents, second: Contents, names: list[str]) -> list[dict[str, Any]]:
    """The tensors whose bytes or dtypes differ, of those that have the same shape in both."""
    if not names:
        return []
    from llmctl.core.checkpoint.values import difference

    found, done = [], 0
    with console.progress(sum(first.tensors[name].bytes for name in names), "bytes", "compare") as progress:
        for name in names:
            here, there = first.tensors[name], second.tensors[name]
            differs = difference(first.folder, here, second.folder, there)
            if differs is not None:
                share = None if differs.changed is None else differs.changed / max(1, differs.elements)
                of = {"name": name, "shape": list(here.shape), "dtypes": [here.dtype, there.dtype]}
                found.append(of | {"changed": differs.changed, "share": share, "max_difference": differs.largest})
            done += here.bytes
            progress.update(done)
    return found


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, the names joined by dots."""
    flat: dict[str, Any] = {}
    for name, one in value.items():
        flat |= _flat(one, f"{prefix}{name}.") if isinstance(one, dict) else {f"{prefix}{name}": one}
    return flat


def _changes(first: dict[str, Any], second: dict[str, Any]) -> dict[str, list[Any]]:
    names = [*first, *(name for name in second if name not in first)]
    return {name: [first.get(name), second.get(name)] for name in names if first.get(name) != second.get(name)}


def _diff_table(console: Any, report: dict[str, Any]) -> Any:
    """What differs, for people."""
    from rich.console import Group

    title = f"{report['path']} and {report['other']}"
    summary = "the same" if report["same"] else f"{report['equal']:,} tensors equal"
    parts = [console.table(title, ("", ""), [("tensors" if report["values"] else "", summary)])]
    if report["config"]:
        rows = [(name, str(here), str(there)) for name, (here, there) in report["config"].items()]
        parts.append(console.table("", ("differs", "here", "there"), rows))
    rows = [(name, "here", "-") for name in report["only_here"]] + [
        (name, "-", "there") for name in report["only_there"]
    ]
    rows += [(one["name"], *(" x ".join(map(str, shape)) for shape in one["shapes"])) for one in report["shapes"]]
    if rows:
        parts.append(console.table("", ("tensor", "here", "there"), rows))
    if report["values"]:
        rows = [
            (
                one["name"],
                " / ".join(dict.fromkeys(one["dtypes"])),
                "" if one["share"] is None else f"{one['share']:.3%}",
                one["max_difference"],
            )
            for one in report["values"]
        ]
        parts.append(console.table("", ("tensor", "dtype", "changed", "max difference"), rows))
    return Group(*parts)
