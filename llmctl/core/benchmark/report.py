"""Report: outcomes as results in the shape of lm-evaluation-harness, and samples in the shape that it writes."""

import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any

import orjson

from llmctl import __version__
from llmctl.core.benchmark.figures import Interval
from llmctl.core.benchmark.outcome import Outcome, Sample
from llmctl.core.benchmark.subject import Subject
from llmctl.spec.benchmark import Asking, Kind, Task
from llmctl.spec.sizes import parameters

# What the harness calls each kind of task; it has none for heads that label.
OUTPUT_TYPES: dict[Kind, str] = {
    "choice": "multiple_choice",
    "generate": "generate_until",
    "foretell": "loglikelihood",
    "classify": "classification",
    "tag": "tagging",
}


# Options that a signature has the digest of, where they are not as usual.
WORDED = (
    "map", "choice", "delimiter", "extract", "take", "threshold", "examples", "instruction", "separator", "system",
    "stop",
)  # fmt: skip
USUAL_ASKING = Asking()


def results(
    subject: Subject, outcomes: Sequence[Outcome], intervals: dict[str, dict[str, Interval]] | None = None
) -> dict[str, Any]:
    """The results of tasks: keys as lm-eval has them, and those of llmctl beside.

    A figure's key is its name and that of the filter: "acc,none"; its standard error's "acc_stderr,none", which is
    "N/A" where there is none.

    Args:
        intervals: of each task, of each figure.
    """
    names = [one.task.name for one in outcomes]
    return {
        "results": {one.task.name: _results(one, (intervals or {}).get(one.task.name, {})) for one in outcomes},
        "group_subtasks": {name: [] for name in names},
        "configs": {one.task.name: _config(one) for one in outcomes},
        "versions": {one.task.name: digest(one) for one in outcomes},
        "n-shot": {one.task.name: one.task.shots for one in outcomes},
        "higher_is_better": {
            one.task.name: {name: figure.higher_is_better for name, figure in one.figures.items()} for one in outcomes
        },
        "n-samples": {one.task.name: {"original": one.records, "effective": len(one.samples)} for one in outcomes},
        "config": {
            "model": "llmctl",
            "model_args": {"pretrained": str(subject.path)},
            "model_num_parameters": parameters(subject.config),
            "model_dtype": f"torch.{subject.dtype}",
            "batch_size": subject.rows,
            "device": str(subject.place.device),
            "limit": outcomes[0].task.limit if outcomes else None,
            "random_seed": outcomes[0].task.seed if outcomes else None,
            "fewshot_seed": outcomes[0].task.seed if outcomes else None,
        },
        "date": time.time(),
        "model_name": str(subject.path),
        "total_evaluation_time_seconds": str(sum(one.seconds for one in outcomes)),
        "signatures": {one.task.name: signature(subject, one) for one in outcomes},
    }


def sample_record(sample: Sample, outcome: Outcome) -> dict[str, Any]:
    """A sample as a line of a file: keys as lm-eval has them, and `task`, `prediction`, `references`,
    `chances`, `scores`."""
    made = {
        "doc_id": sample.number,
        "doc": sample.record,
        "target": sample.right[0] if outcome.kind == "choice" else sample.target,
        "arguments": {f"gen_args_{i}": {"arg_0": one, "arg_1": two} for i, (one, two) in enumerate(sample.asked)},
        "resps": [[reply] for reply in sample.replies],
        "filtered_resps": [sample.said] if outcome.kind == "generate" else list(sample.replies),
        "filter": _filter(outcome.task),
        "metrics": list(sample.scores),
        "doc_hash": _sha256(json.dumps(sample.record, indent=2, ensure_ascii=False)),
        "prompt_hash": _sha256(sample.asked[0][0]),
        "task": outcome.task.name,
        "prediction": sample.said,
        "references": sample.targets,
        "chances": sample.chances,
        "scores": sample.scores,
    }
    if sample.overlap is not None:
        made["overlap"] = sample.overlap
    made["target_hash"] = _sha256(str(made["target"]))
    return {**sample.scores, **made} if not made.keys() & sample.scores.keys() else made


def signature(subject: Subject, outcome: Outcome) -> str:
    """What was computed: name:value with | between."""
    task = outcome.task
    wording = task.template if task.template is None or "{" not in task.template else _sha256(task.template)[:12]
    parts: dict[str, object] = {
        "kind": outcome.kind,
        "records": len(outcome.samples),
        "data": digest(outcome),
        "template": wording or "none",
        "shots": task.shots,
    }
    if task.shots:
        parts |= {"choose": task.choose, "order": task.order}
    if outcome.kind == "generate":
        parts |= {"normalise": task.normalise, "max_tokens": task.max_tokens, "temperature": f"{task.temperature:g}"}
    if outcome.kind == "tag":
        parts["scheme"] = task.scheme
    parts |= {"chat": task.chat_template or "none", "seed": task.seed}
    other = {name: value for name in WORDED if (value := getattr(task, name)) != getattr(USUAL_ASKING, name)}
    if other:
        parts["options"] = _sha256(json.dumps(other))[:12]
    parts |= {"tokenizer": subject.tokenizer.sha256[:12], "dtype": subject.dtype}
    return "|".join(f"{name}:{value}" for name, value in {**parts, "version": f"llmctl-{__version__}"}.items())


def digest(outcome: Outcome) -> str:
    """The beginning of a SHA-256 of the records that were asked."""
    found = hashlib.sha256()
    for sample in outcome.samples:
        found.update(json.dumps(sample.record, sort_keys=True).encode() + b"\n")
    return found.hexdigest()[:12]


def line(record: dict[str, Any]) -> bytes:
    """A record as a line of JSON."""
    try:
        return orjson.dumps(record) + b"\n"
    except TypeError:  # half a surrogate pair, a number of more than 64 bits
        return json.dumps(record).encode() + b"\n"


def _results(outcome: Outcome, intervals: dict[str, Interval]) -> dict[str, Any]:
    name, filter_ = outcome.task.name, _filter(outcome.task)
    made: dict[str, Any] = {"name": name, "alias": name, "sample_len": len(outcome.samples)}
    for figure, (value, stderr, _) in outcome.figures.items():
        made[f"{figure},{filter_}"] = value
        made[f"{figure}_stderr,{filter_}"] = "N/A" if stderr is None else stderr
        if figure in intervals:
            made[f"{figure}_low,{filter_}"], made[f"{figure}_high,{filter_}"] = intervals[figure]
    return made


def _config(outcome: Outcome) -> dict[str, Any]:
    """The options of a task, under their own names and those of the harness."""
    task = outcome.task
    return {
        **vars(task),
        "task": task.name,
        "output_type": OUTPUT_TYPES[outcome.kind],
        "doc_to_text": task.template,
        "num_fewshot": task.shots,
        "fewshot_delimiter": task.separator,
        "target_delimiter": task.delimiter,
        "description": task.instruction,
        "metric_list": [
            {"metric": name, "higher_is_better": figure.higher_is_better} for name, figure in outcome.figures.items()
        ],
    }


def _filter(task: Task) -> str:
    return "none" if task.extract is None else "extract"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
