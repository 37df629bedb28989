"""heads: what the class named in a config.json puts on top of the stream, and the labels of its classifier."""

from llmctl.spec.families.fields import Fields
from llmctl.spec.model import ModelConfig

_MOST_LABELS = 1 << 20
_PROBLEMS = {
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}


def read_heads(fields: Fields, prefix: str, known: dict[str, dict], default: str, labels: int = 2) -> dict:
    """Fields of ModelConfig that follow from `architectures`, labels included.

    Args:
        prefix: of the classes' names: Bert.
        known: the fields of each class, by the rest of its name: ForMaskedLM.
        default: the class where none is named.
        labels: how many a classifier has where the file does not say.
    """
    named = fields.json.get("architectures") or [prefix + default]
    if not isinstance(named, list) or not isinstance(named[0], str):
        fields.wrong.append(f"architectures is {str(named)[:60]!r}, wanted a list of names")
        return known[default]
    kind = named[0].removeprefix(prefix)
    if kind not in known:
        fields.refused.append(f"architectures {named[0]} (known: {', '.join(prefix + one for one in known)})")
        return known[default]
    heads = dict(known[kind])
    classifier = heads.get("classifier", "none")
    if classifier != "none":
        heads["labels"] = _labels(fields, labels)
    if classifier == "sequence":
        heads["problem"] = fields.one_of("problem_type", _PROBLEMS, "single_label_classification")
    return heads


def heads_json(config: ModelConfig) -> dict:
    """The labels and what they mean, for a model that has a classifier."""
    if not config.labels:
        return {}
    spelled = {ours: theirs for theirs, ours in _PROBLEMS.items()}
    said = config.classifier == "sequence" and (config.problem != "single_label" or len(config.labels) > 1)
    return {
        "id2label": {str(i): label for i, label in enumerate(config.labels)},
        "label2id": {label: i for i, label in enumerate(config.labels)},
        "problem_type": spelled[config.problem] if said else None,
    }


def _labels(fields: Fields, default: int) -> tuple[str, ...]:
    """id2label in the order of its numbers; absent, as many as num_labels, named as transformers names them."""
    given = fields.json.get("id2label")
    if given is None:
        count = fields.count("num_labels", default=default)
        if count > _MOST_LABELS:
            fields.wrong.append(f"num_labels is {count}, wanted at most {_MOST_LABELS}")
            count = default
        return tuple(f"LABEL_{i}" for i in range(count))
    numbers = {str(i) for i in range(len(given))} if isinstance(given, dict) else set()
    if not numbers or set(map(str, given)) != numbers:
        fields.wrong.append(f"id2label is {str(given)[:60]!r}, wanted names by the numbers from 0 up")
        return tuple(f"LABEL_{i}" for i in range(default))
    named = {str(number): str(label) for number, label in given.items()}
    return tuple(named[str(i)] for i in range(len(named)))
