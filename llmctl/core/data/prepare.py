"""Prepare: records become examples: one tokenization each, its mask from the characters, ends trained, cuts counted."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from llmctl.core.data.examples import Example, Examples, asked
from llmctl.core.data.labelled import Labeller
from llmctl.core.data.sets import Record
from llmctl.core.data.written import Layout, Written
from llmctl.core.decode.prompt import check_known, start_id
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.model import ModelConfig
from llmctl.spec.sets import Sets, Task, Truncate

TOGETHER = 1000  # records that are encoded at a time


def encode_examples(
    records: Iterable[Record],
    task: Task,
    tokenizer: Tokenizer,
    config: ModelConfig,
    sets: Sets,
    layout: Layout | None = None,
    seed: int = 0,
    may_lack: bool = False,
) -> Examples:
    """Records as examples.

    A text is tokenized once, as a whole, and which tokens are trained on follows from the characters that they stand
    for: a token that straddles the border of prompt and completion belongs to the completion. Special tokens are read
    as such where a template wrote them; typed in a record they are text. A text begins with the beginning-of-text
    token once, if the tokenizer puts one; a conversation as its template says. What is trained on ends with the token
    that ends a text, or a turn, and that is trained, unless the text is cut on the right.

    Args:
        records: as `read_sets` gives them.
        task: what they are for.
        tokenizer, config: of the model; for labels, with the head.
        sets: the options.
        layout: how they become texts, shared by the files of a run; one of its own when None.
        seed: of the choice of phrasings, where there is no layout.
        may_lack: they are not what is trained on, so all of them may be dropped.

    Raises:
        UserError: a record that does not suit the task; examples longer than the limit, where that is an error; no
            token that is trained on.
    """
    limit = limit_of(config, sets)
    if task in ("classify", "tag"):
        _for_labels(task, sets)
        made = _labelled(records, tokenizer, config, sets, limit)
    else:
        layout = layout or Layout(tokenizer, sets, task, seed)
        made = _texts(records, layout, config, limit)
    tally = _Tally(task, limit, sets.truncate)
    notes: list[str] = []
    kept = [one for one in map(tally.counted, made) if one is not None]
    if sets.truncate == "error" and tally.over:
        raise UserError(
            f"{tally.over} of {tally.read} examples ({tally.over / tally.read:.1%}) are longer than {limit} tokens; "
            f"the longest has {tally.longest}.",
            "Cut them with --truncate left or right, leave them out with --truncate drop"
            + (", or raise --max-length." if sets.max_length is not None else "."),
            Exit.USAGE,
        )
    for one in kept:
        check_known([int(part.max()) for part in (one.ids, one.source) if part is not None and len(part)], config)
    if tally.lost:
        notes.append(f"{tally.lost} words have no token of their own, or were cut off: their tags are not learnt.")
    if tally.empty:
        notes.append(f"{tally.empty} texts have no tokens: they are left out.")
    counts = {"truncated": tally.truncated, "dropped": tally.dropped, "over": tally.over}
    notes += () if layout is None else layout.notes
    examples = Examples.of(task, kept, counts, notes, config.prefix_lm)
    if tally.read and not examples.counts["trained_tokens"] and not may_lack:
        why = "all of them were longer than the limit, or cut" if tally.over else "no record says anything to learn"
        raise UserError(
            f"None of {tally.read} examples asks for anything: {why}.", "Look at the records, or --truncate."
        )
    return examples


def limit_of(config: ModelConfig, sets: Sets) -> int | None:
    """Tokens that an example may have, its beginning and end included; None: any number.

    Raises:
        UserError: more than the model has positions for.
    """
    if sets.max_length is None:
        return None if config.position == "relative" else config.context
    if config.position == "learned" and sets.max_length > config.context:
        raise UserError(
            f"--max-length is {sets.max_length}, but the model has positions for {config.context} tokens.",
            "Leave it out.",
            Exit.USAGE,
        )
    return sets.max_length


def shown(example: Example, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """An example as people read it, special tokens spelled out: runs of text, and whether they are trained on.

    What an encoder reads comes first. Characters whose bytes are split between runs are shown as U+FFFD.
    """
    runs: list[tuple[str, bool]] = []
    if example.source is not None:
        runs.append((tokenizer.decode(example.source.tolist(), skip_special=False) + "\n", False))
    borders = np.flatnonzero(np.diff(example.scored)) + 1
    for ids, scored in zip(np.split(example.ids, borders), np.split(example.scored, borders), strict=True):
        if len(ids):
            runs.append((tokenizer.decode(ids.tolist(), skip_special=False), bool(scored[0])))
    return runs


def _for_labels(task: Task, sets: Sets) -> None:
    """Whether no option is about texts to write."""
    for name in ("template", "chat_template", "system", "train_on"):
        if getattr(sets, name) != getattr(Sets, name):
            raise UserError(
                f"--{name.replace('_', '-')} is about texts to write, but --task {task} learns labels.",
                "Leave one out.",
                Exit.USAGE,
            )


class _Made(NamedTuple):
    """An example before and after it is cut to the limit, which may be the same.

    Attributes:
        example: cut on the side that was asked for, or whole.
        length: tokens of its longest side before that.
        lost: words whose tags are not asked for.
    """

    example: Example
    length: int
    lost: int = 0


class _Tally:
    """Counts examples, and says which are kept."""

    def __init__(self, task: Task, limit: int | None, truncate: Truncate):
        self.task, self.limit, self.truncate = task, limit, truncate
        self.read = self.over = self.truncated = self.dropped = self.longest = self.lost = self.empty = 0

    def counted(self, made: _Made) -> Example | None:
        """The example, or None where it is dropped."""
        self.read += 1
        self.lost += made.lost
        self.longest = max(self.longest, made.length)
        if self.limit is not None and made.length > self.limit:
            self.over += 1
            if self.truncate in ("error", "drop"):
                self.dropped += 1
                return None
            self.truncated += 1
        self.empty += not len(made.example.ids)
        if not len(made.example.ids) or not asked(self.task, made.example):
            self.dropped += 1
            return None
        return made.example


def _labelled(
    records: Iterable[Record], tokenizer: Tokenizer, config: ModelConfig, sets: Sets, limit: int | None
) -> Iterator[_Made]:
    labeller = Labeller(tokenizer, config, limit, sets.truncate)
    for some in _chunks(records):
        for record, made in zip(some, labeller([one.fields for one in some]), strict=True):
            if isinstance(made, str):
                raise UserError(f"{record.source} {made}.", "Name the fields with --map, or leave the record out.")
            yield _Made(*made)


def _texts(records: Iterable[Record], layout: Layout, config: ModelConfig, limit: int | None) -> Iterator[_Made]:
    one = _pair if layout.task == "seq2seq" else _text
    if layout.tokenizer.eos is None:
        raise UserError(
            "The tokenizer has no token that ends a text, so a model could not learn to stop.",
            'Name one as "eos_token" in its tokenizer_config.json.',
            Exit.MISMATCH,
        )
    for some in _chunks(records):
        written = []
        for record in some:
            try:
                written.append(layout(record.fields))
            except UserError as error:
                raise UserError(f"{record.source}: {error.problem}", error.hint, error.code) from error
        yield from one(written, layout, config, limit)


def _text(written: list[Written], layout: Layout, config: ModelConfig, limit: int | None) -> Iterator[_Made]:
    """What a decoder reads; an example without a prompt follows what generation begins with, so that it is learnt."""
    tokenizer, cut, first = layout.tokenizer, layout.sets.truncate, start_id(layout.tokenizer, config)
    marked = [layout.marks.marked(one.text) for one in written]
    for one, text, pieces in zip(written, marked, layout.marks.encode([one.text for one in marked]), strict=True):
        ids, scored = pieces.ids, pieces.within(text.spans)
        if one.chat and len(asked_for := np.flatnonzero(scored)):  # what follows the last turn trains nothing
            ids, scored = ids[: asked_for[-1] + 1], scored[: asked_for[-1] + 1]
        if not one.chat and tokenizer.begins and (not len(ids) or ids[0] != tokenizer.bos):
            ids, scored = np.insert(ids, 0, tokenizer.bos), np.insert(scored, 0, False)
        ended = layout.marks.end(text) is not None if one.chat else bool(len(ids)) and ids[-1] == tokenizer.eos
        if not ended:
            ids, scored = np.append(ids, tokenizer.eos), np.append(scored, True)
        if scored[0] and ids[0] == first and len(ids) > 1:  # where all is trained on, a template wrote it
            scored[0] = False
        elif scored[0] and first is not None:
            ids, scored = np.insert(ids, 0, first), np.insert(scored, 0, False)
        length = len(ids)
        if limit is not None and length > limit and cut == "right":
            ids, scored = ids[:limit], scored[:limit]
        elif limit is not None and length > limit and cut == "left":
            kept = 1 if ids[0] == tokenizer.bos else 0
            tail = slice(length - limit + kept, None)
            ids, scored = np.append(ids[:kept], ids[tail]), np.append(scored[:kept], scored[tail])
        yield _Made(Example(ids.astype(np.int32), scored), length)


def _pair(written: list[Written], layout: Layout, config: ModelConfig, limit: int | None) -> Iterator[_Made]:
    """What an encoder reads, framed as the tokenizer frames a text, and what the decoder says, as in pre-training."""
    tokenizer, cut = layout.tokenizer, layout.sets.truncate
    before, after = (np.array(part, np.int32) for part in tokenizer.frame)
    ends = after if len(after) else np.array([tokenizer.eos], np.int32)
    opens = before[:0] if np.array_equal(before, ends) else before  # an answer does not begin with what ends it
    for source, answer in _both(written, layout):
        read = len(before) + len(source) + len(after)
        length = max(read, len(opens) + len(answer) + len(ends))
        if limit is not None and cut in ("left", "right"):
            over = max(0, read - limit)
            source = source[over:] if cut == "left" else source[: len(source) - over]
        said = np.concatenate((opens, answer, ends))
        if cut in ("left", "right"):
            said = said[:limit]  # what is cut goes on, so it does not end
        yield _Made(Example(said, np.ones(len(said), bool), np.concatenate((before, source, after))), length)


def _both(written: list[Written], layout: Layout) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The ids of sources and of answers, without what frames them, unless a template wrote it already."""
    before, after = (list(part) for part in layout.tokenizer.frame)
    sides = [[layout.marks.marked(text).text for text in (one.source or "", one.text)] for one in written]
    found = iter(layout.marks.encode([text for side in sides for text in side]))
    for source, answer in zip(found, found, strict=True):
        yield tuple(_bare(pieces.ids, before, after) for pieces in (source, answer))


def _bare(ids: np.ndarray, before: list[int], after: list[int]) -> np.ndarray:
    if before and ids[: len(before)].tolist() == before:
        ids = ids[len(before) :]
    if after and len(ids) >= len(after) and ids[len(ids) - len(after) :].tolist() == after:
        ids = ids[: len(ids) - len(after)]
    return ids


def _chunks(records: Iterable[Record]) -> Iterator[list[Record]]:
    source = iter(records)
    while some := list(islice(source, TOGETHER)):
        yield some
