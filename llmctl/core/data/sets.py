"""Sets: records of files, with their fields under our names, and which of them are held out."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from llmctl.core.data.read import read_records
from llmctl.core.text.templates import Template, hashed, mapped, template_for
from llmctl.errors import UserError
from llmctl.spec.sets import LABELS, TAGS, Sets

# Fields that say something: two records with the same of these are the same, whatever number they have besides.
SAYING = (
    "messages", "conversations", "system", "tools", "prompt", "completion", "instruction", "input", "output", "text",
    "sentence", "text_pair", "tokens", *LABELS, *TAGS,
)  # fmt: skip


class Record(NamedTuple):
    """One record.

    Attributes:
        fields: under their own names, and those of `--map` under ours.
        source: where it was read: "a.jsonl:12".
    """

    fields: dict[str, Any]
    source: str


def read_sets(paths: Iterable[str], sets: Sets) -> Iterator[Record]:
    """The records of files in order: the first `sets.limit` of each; a plain text is a record with the field `text`.

    A field that is null is not there: parquet and joined sets have one for whatever other records say.

    Args:
        paths: files, directories, "-" for stdin, "hf:NAME"; `Weighted.parse` takes weights off.

    Raises:
        UserError: a file that cannot be read, a line that is no record, or that lacks a field of `--map`.
    """
    mapping = sets.mapping
    for path in paths:
        for document in islice(read_records([path], wanted=mapping.values()), sets.limit):
            try:
                fields = mapped(document.record or {}, mapping)
            except UserError as error:
                raise UserError(f"{document.source}: {error.problem}", error.hint, error.code) from error
            yield Record({name: value for name, value in fields.items() if value is not None}, document.source)


def divided(
    records: Iterable[Record], share: float, template: Template | None = None
) -> tuple[list[Record], list[Record]]:
    """Those to train on, and those held out: a record is in one or the other by a hash of what it says alone.

    So those that say the same are together, whatever files they are in and whatever number or name they bear.

    Args:
        share: of those to train on.
        template: what says what a record says; None: the fields that are known.
    """
    kept: list[Record] = []
    out: list[Record] = []
    for record in records:
        (kept if hashed(content(record.fields, template)) < share * 2**64 else out).append(record)
    return kept, out


def content(fields: Mapping[str, Any], template: Template | None = None) -> dict[str, Any]:
    """What a record says, without what only names it; all of its fields, where none of those known is there."""
    template = template_for(fields, template)
    said = {name: fields[name] for name in SAYING if name in fields} if template is None else template.values(fields)
    return said or dict(fields)
