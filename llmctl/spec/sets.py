"""Sets: which examples a fine-tuning learns from, how they are laid out as text, and what of it is asked for."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from llmctl.errors import Exit, UserError
from llmctl.spec.model import Kind

Task = Literal["lm", "seq2seq", "classify", "tag"]
Truncate = Literal["error", "left", "right", "drop"]
TrainOn = Literal["completion", "last", "all"]

# Fields that only texts to write have.
TEXTS = ("prompt", "completion", "messages", "conversations", "instruction", "template")
LABELS = ("label", "labels", "score")  # fields of which one says what a text is
TAGS = ("tags", "ner_tags", "labels")  # fields of which one says what each word is


class Weighted(NamedTuple):
    """A file of examples, and how many are drawn from it beside others.

    Attributes:
        path: as it is typed; "-" is stdin.
        weight: examples drawn from it for each one of a file of weight 1; None: each of its examples once a pass.
    """

    path: str
    weight: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Weighted":
        """What is typed as FILE or FILE:WEIGHT; a file that has such a name is that file.

        Raises:
            UserError: a weight that is not more than 0.
        """
        path, colon, number = text.rpartition(":")
        if not colon or not path or Path(text).exists() or (text.startswith("hf:") and text.count(":") < 4):
            return cls(text)
        try:
            weight = float(number)
        except ValueError:
            return cls(text)
        if not 0 < weight < math.inf:
            raise UserError(
                f"{text} has the weight {number}, wanted more than 0.", "Leave the file out to draw none.", Exit.USAGE
            )
        return cls(path, weight)


def shares(files: Collection[Weighted], sizes: Collection[int]) -> list[float]:
    """What share of the examples is drawn from each file; they sum to 1.

    Where no file has a weight, that of its size, so that a pass has every example once. Else by the weights alone,
    1 where none is given, whatever the sizes.

    Args:
        sizes: examples of each file; of an empty one nothing is drawn.

    Raises:
        UserError: no file has an example.
    """
    plain = all(file.weight is None for file in files)
    drawn = [
        float(size) if plain or not size else (1.0 if file.weight is None else file.weight)
        for file, size in zip(files, sizes, strict=True)
    ]
    if not sum(drawn):
        raise UserError("There are no examples to learn from.", "The files are empty, or all was held out or dropped.")
    return [one / sum(drawn) for one in drawn]


@dataclass(frozen=True)
class Sets:
    """Examples.

    Records are known by their fields: `prompt` and `completion`; `messages` (or `conversations`) of a chat;
    `instruction`, `input` and `output`; `text` with `label`; `tokens` with `tags`; `text` alone.

    Raises:
        UserError: a value out of range, or options that exclude each other.
    """

    template: Annotated[
        str | None,
        "How a record becomes a prompt and its completion: alpaca, summarise, translate, qa, nli, sentiment, entities, "
        "or a file in Jinja with ||| between the two. NAME phrases each record in one of several ways, NAME/2 all in "
        "the second; the field `template` of a record comes first.",
    ] = None
    map: Annotated[
        tuple[str, ...],
        "OURS=THEIRS: the field of a record that stands for one of ours, such as source=en or source=translation.en; "
        "of CSV and TSV without a line of names, the number of a column: text=1; repeatable.",
    ] = ()
    chat_template: Annotated[
        str | None,
        "Layout of conversations: own (the tokenizer's), chatml, llama2, llama3, zephyr, plain, or a file in Jinja; "
        "prompts and completions become conversations with it. Default: own, else chatml where the tokenizer has its "
        "tokens, else plain.",
    ] = None
    system: Annotated[str | None, "System message of conversations that have none."] = None
    train_on: Annotated[
        TrainOn, "completion: what answers prompts, in a chat every turn of the assistant; last: its last turn; all."
    ] = "completion"
    limit: Annotated[int | None, "Use no more than so many records of each file, the first ones."] = None
    split: Annotated[
        float, "Share of the records that is trained on, chosen by a hash of what they say; the rest is held out."
    ] = 0.95
    eval: Annotated[str | None, "File of records to evaluate on, in place of --split."] = None
    max_length: Annotated[int | None, "Tokens of an example, at most; default: the model's context."] = None
    truncate: Annotated[
        Truncate, "Examples longer than that: stop there, cut them on the left or right, or drop them."
    ] = "error"
    pack: Annotated[bool, "Decoders: put several short examples in a row; none sees another."] = True

    def __post_init__(self) -> None:
        bad = [
            f"--{name.replace('_', '-')} is {getattr(self, name)}, wanted {wanted}"
            for name, good, wanted in (
                ("limit", self.limit is None or self.limit >= 1, "1 or more"),
                ("split", 0 < self.split <= 1, "more than 0, at most 1"),
                ("max_length", self.max_length is None or self.max_length >= 2, "2 or more"),
            )
            if not good
        ]
        if bad:
            raise UserError("; ".join(bad) + ".", code=Exit.USAGE)
        for pair in self.map:
            ours, equals, theirs = pair.partition("=")
            if not equals or not ours.strip() or not theirs.strip():
                raise UserError(
                    f"--map is {pair!r}, wanted OURS=THEIRS.", "Such as --map completion=answer", Exit.USAGE
                )

    @property
    def mapping(self) -> dict[str, str]:
        """The fields of `map`: ours to theirs."""
        pairs = (pair.partition("=") for pair in self.map)
        return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}

    @property
    def trained(self) -> float:
        """Share of the records of the files that is trained on: all where --eval names others."""
        return 1.0 if self.eval is not None else self.split


def task_of(kind: Kind, classifier: bool, fields: Collection[str], template: str | None = None) -> Task:
    """What is learnt where --task does not say: what the fields of the records are about, or else what the model does.

    Args:
        kind: of the model.
        classifier: whether it has, or is to have, a head that scores labels.
        fields: of the records, after `map`.
        template: of the records, which then are texts to write.

    Raises:
        UserError: records of texts to write, for a model that only reads.
    """
    writes = template is not None or any(name in fields for name in TEXTS)
    if not writes and "tokens" in fields and any(name in fields for name in TAGS):
        return "tag"
    labelled = any(name in fields for name in LABELS)
    if not writes and labelled and (classifier or any(name in fields for name in ("text", "text_pair", "sentence"))):
        return "classify"
    if kind == "encoder":
        raise UserError(
            "The model is an encoder, which does not write, and the records have no labels; their fields are "
            f"{', '.join(map(repr, fields)) or 'none'}.",
            "Name the fields: --map text=THEIRS --map label=THEIRS, or --map tokens=THEIRS --map tags=THEIRS; columns "
            "that the first line does not name, by number: --map text=1 --map label=2",
            Exit.MISMATCH,
        )
    return "seq2seq" if kind == "encoder-decoder" else "lm"
