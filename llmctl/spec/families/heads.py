"""heads: what the class named in a config.json puts on top of the stream, and the labels of its classifier."""

from collections.abc import Mapping

from llmctl.errors import Exit, UserError
from llmctl.spec.families.family import pair
from llmctl.spec.families.fields import Fields
from llmctl.spec.model import Classifier, Level, ModelConfig
from llmctl.spec.names import Name

_MOST_LABELS = 1 << 20
_PROBLEMS = {
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}


SEQUENCE, TOKEN = "ForSequenceClassification", "ForTokenClassification"
_DECODER_DROPOUT = 0.1  # before the scores of tokens in a decoder, where its config.json says nothing
_DECODERS: dict[Level, dict[str, object]] = {
    "sequence": {"classifier": "sequence", "classifier_pool": "last", "lm_head": False},
    "token": {"classifier": "token", "classifier_pool": "last", "lm_head": False},
}


def read_heads(
    fields: Fields,
    prefix: str,
    known: dict[str, dict],
    default: str,
    labels: int = 2,
    dropout: tuple[str, float | None] = ("classifier_dropout", None),
) -> dict:
    """Fields of ModelConfig that follow from `architectures`, labels included.

    Args:
        prefix: of the classes' names: Bert.
        known: the fields of each class, by the rest of its name: ForMaskedLM.
        default: the class where none is named.
        labels: how many a classifier has where the file does not say.
        dropout: the key of the share that is dropped before the classifier, and what its absence means (None: as
            everywhere).
    """
    named = fields.json.get("architectures") or [prefix + default]
    if not isinstance(named, list) or not isinstance(named[0], str):
        fields.wrong.append(f"architectures is {str(named)[:60]!r}, wanted a list of names")
        return known[default]
    kind = named[0].removeprefix(prefix)
    if kind not in known:
        fields.refused.append(f"architectures {named[0]} (known: {', '.join(prefix + one for one in known)})")
        return known[default]
    return {**known[kind], **_classifier(fields, known[kind].get("classifier", "none"), labels, *dropout)}


def read_decoder_heads(
    fields: Fields, classes: Mapping[Classifier, str], dropout: float | None = _DECODER_DROPOUT
) -> dict:
    """Fields of ModelConfig that follow from the class of a decoder: anything but a classifier scores tokens.

    Args:
        classes: the names of its classes, by their classifier.
        dropout: what is dropped before the scores of tokens' labels where the file does not say; None: as everywhere.
    """
    named = fields.json.get("architectures")
    name = str(named[0]) if isinstance(named, list) and named else classes["none"]
    found: Classifier = next((level for level in _DECODERS if classes.get(level) == name), "none")
    if found == "none":
        if name.endswith((SEQUENCE, TOKEN)):
            fields.refused.append(f"architectures {name} (known: {', '.join(classes.values())})")
        return {}
    fields.refuse("token_classification_bias", True)
    return {**_DECODERS[found], **_classifier(fields, found, 2, "classifier_dropout", dropout)}


def decoder_classifiers(
    classes: Mapping[Classifier, str], dropout: float | None = _DECODER_DROPOUT
) -> dict[Level, dict[str, object]]:
    """What the classifiers of a decoder change, for `Family.classifiers`; arguments as for `read_decoder_heads`."""
    return {one: {**_DECODERS[one], "classifier_dropout": dropout} for one in _DECODERS if one in classes}


def decoder_heads_json(config: ModelConfig, classes: Mapping[Classifier, str]) -> dict:
    """The class of a decoder, its labels and what they mean.

    Raises:
        UserError: heads that no class of transformers has.
    """
    if config.classifier not in classes or (config.classifier != "none" and config.lm_head):
        raise UserError(f"No class of model_type {config.model_type} has these heads.", code=Exit.MISMATCH)
    made = {"architectures": [classes[config.classifier]], **heads_json(config)}
    return made | ({"classifier_dropout": classifier_dropout(config)} if config.classifier == "token" else {})


def decoder_head_names(config: ModelConfig, head: str = "lm_head", tokens: str = "score") -> list[Name]:
    """Rename rules of the heads of a decoder.

    Args:
        head: what its class calls the scores of tokens.
        tokens: and the labels of tokens; those of texts are `score` in every class.
    """
    if config.classifier == "sequence":
        return [Name("score.weight", ("classifier.out.weight",))]
    if config.classifier == "token":
        return pair(tokens, "classifier.out", bias=True)
    return [] if config.tie else [Name(f"{head}.weight", ("head.weight",))]


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


def classifier_dropout(config: ModelConfig) -> float:
    """The share that is dropped before a classifier's matrices, as config.json has it; 0 where there is none."""
    if config.classifier == "none":
        return 0.0
    return config.dropout if config.classifier_dropout is None else config.classifier_dropout


def _classifier(fields: Fields, classifier: Classifier, labels: int, key: str, dropout: float | None) -> dict:
    """Labels, what they mean, and the dropout before them; no key: as everywhere."""
    if classifier == "none":
        return {}
    share = fields.number(key, default=dropout) if key else None
    found = {"labels": _labels(fields, labels), "classifier_dropout": share}
    if classifier == "sequence":
        found["problem"] = fields.one_of("problem_type", _PROBLEMS, "single_label_classification")
    return found


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
