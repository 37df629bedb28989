"""with_classifier: the same stacks under a fresh head that scores labels, as the published classes have it."""

from typing import Literal

from llmctl.errors import Exit, UserError
from llmctl.spec.families import family_for, fitted
from llmctl.spec.model import Level, ModelConfig, Problem

Labelling = Literal["classify", "tag"]
_LEVELS: dict[Labelling, Level] = {"classify": "sequence", "tag": "token"}
_NO_OTHER_HEAD = {
    "lm_head": False,
    "pooler": False,
    "next_sentence": False,
    "classifier_dense": "none",
    "classifier_pool": "first",
    "classifier_dropout": None,
    "prefix_lm": False,
}


def with_classifier(
    config: ModelConfig, task: Labelling, labels: tuple[str, ...], problem: Problem = "single_label"
) -> ModelConfig:
    """The shape of a model with a head for labels in place of those it has.

    What it describes is saved in the form that AutoModelForSequenceClassification or AutoModelForTokenClassification
    of transformers opens, except where transformers has no such class: that is a model of type llmctl. A T5 that
    labels words loses its decoder, as T5ForTokenClassification has none.

    A decoder's config gets a pad token if it names none, the one that ends a text: transformers finds a text's last
    token, whose scores count, as the last that is not the pad token, and without one refuses batches.

    Args:
        task: classify: labels of whole texts; tag: of their words.
        labels: names of the scores.
        problem: what scores of texts are.

    Raises:
        UserError: an encoder-decoder that labels words, and whose encoder does not stand alone in any published form;
            no labels, or one that is there twice.
    """
    if not labels or len(set(labels)) < len(labels):
        raise UserError(f"A classifier needs labels that differ; there are {len(labels)}: {', '.join(labels[:9])}.")
    level = _LEVELS[task]
    published = fitted(config)
    changes = family_for(config).classifiers(published).get(level) or _own(config, level)
    changes = {**_NO_OTHER_HEAD, **changes, "classifier": level, "labels": labels}
    changes["problem"] = problem if level == "sequence" else "single_label"
    if config.kind == "decoder":
        changes["pad"] = _pad(config)
    return published.resized(**changes)


def _own(config: ModelConfig, level: Level) -> dict[str, object]:
    """Of a model that has no such class in transformers."""
    if config.kind == "encoder-decoder" and level == "token":
        raise UserError(
            "An encoder-decoder of this family has no form that labels words.",
            "Use an encoder, a decoder or a T5, or teach it to write the entities: --task seq2seq.",
            Exit.MISMATCH,
        )
    if config.kind == "encoder":
        return {"pooler": config.pooler and level == "sequence"}
    return {"classifier_pool": "last"}


def _pad(config: ModelConfig) -> int | None:
    named = [id for id in (config.pad, *config.eos) if id is not None and 0 <= id < config.vocab]
    return next(iter(named), None)
