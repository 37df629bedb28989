"""Prompts: records put into words, each after some answered examples, for a model to go on from."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from llmctl.core.data.requests import read_objects
from llmctl.core.decode.room import Room
from llmctl.core.text.shots import Pool, Shot, rendered
from llmctl.errors import UserError
from llmctl.spec.shots import Shots

Worded = Callable[[dict[str, Any]], tuple[str, str | None]]  # a record as a question, and its answer


class Query(NamedTuple):
    """A record as it was read and put into words.

    Attributes:
        number: in its file, from 0; bad records count too.
        line: of its file, from 1.
        record: its fields.
        prompt: the question.
        answer: None where it has none.
        error: why there is no question; "" when there is one.
    """

    number: int
    line: int
    record: dict[str, Any]
    prompt: str = ""
    answer: str | None = None
    error: str = ""


def read_queries(path: str, worded: Worded) -> Iterator[Query]:
    """The records of a file of JSON lines, or of stdin for "-", put into words.

    Raises:
        UserError: the file cannot be read.
    """
    for number, (line, record, error) in enumerate(read_objects(path)):
        if error:
            yield Query(number, line, record, error=error)
            continue
        try:
            yield Query(number, line, record, *worded(record))
        except UserError as wrong:
            yield Query(number, line, record, error=f"line {line}: {wrong.problem}")


class Prompts:
    """What makes prompts of queries, and keeps count.

    Args:
        examples: to choose shots from; those without an answer are none.
        shots: how many, and how they are chosen and put.
        room: of the model that is to answer; None: tokens are not counted.
        fit: leave out shots until a prompt fits.

    Attributes:
        pool: the examples with an answer.
        reasoned: how many of them have a chain of thought.
        count: of the queries so far.
        failed: how many of them had no question.
        few: prompts with fewer shots than wanted, since there are no more.
        long: prompts that do not fit, with the shots that are left.
        dropped: shots left out, of so many prompts (`shortened`).
    """

    def __init__(self, examples: Iterable[Query], shots: Shots, room: Room | None = None, fit: bool = False):
        self.shots, self.room, self.fit = shots, room, fit
        self.pool = [
            Shot(query.number, query.prompt, query.answer, shots.reasoning(query.record))
            for query in examples
            if query.answer is not None and not query.error
        ]
        self.reasoned = sum(bool(shot.reasoning) for shot in self.pool)
        self.count = self.failed = self.few = self.long = self.dropped = self.shortened = 0
        self._chooser = Pool(self.pool, shots)

    def of(self, query: Query) -> dict[str, Any]:
        """A query's record with its prompt, its shots' numbers and its reference; or with an error."""
        self.count += 1
        made = self._made(query) if not query.error else {"error": query.error}
        self.failed += "error" in made
        if "error" in made:
            return query.record | made
        kept = {name: value for name, value in query.record.items() if name != "completion"}
        if query.answer is not None:
            kept.setdefault("reference", query.record.get("completion", query.answer.strip()))
        return kept | made

    def told(self) -> list[str]:
        """What a user should hear at the end."""
        wanted, queries = self.shots.shots, f"of {self.count}"
        said = {
            f"{self.failed} {queries} queries were not put as prompts.": self.failed,
            f"{self.few} {queries} prompts have fewer than {wanted} shots: there are no more examples.": self.few,
            f"{self.dropped} shots were left out of {self.shortened} {queries} prompts, to fit.": self.dropped,
        }
        if self.room is not None:
            limit, kept = self.room.config.context, self.room.completion
            more = "" if self.fit or not wanted else "; --fit leaves out shots"
            text = f"{self.long} {queries} prompts do not fit {limit} tokens of context, {kept} for the completion"
            said[f"{text}{more}."] = self.long
        return [text for text, times in said.items() if times]

    def _made(self, query: Query) -> dict[str, Any]:
        chosen = self._chooser.choose(query.number, query.prompt)
        self.few += len(chosen) < self.shots.shots
        if self.room is None:
            text, shown = self._text(query, chosen)
            return {"prompt": text, "shots": shown}
        found = len(chosen)
        while True:
            text, shown = self._text(query, chosen)
            try:
                tokens = self.room.tokens(text)
            except UserError as wrong:
                return {"error": f"line {query.line}: {wrong.problem}"}
            if self.room.holds(tokens) or not chosen or not self.fit:
                break
            chosen = chosen[:-1]
        self.long += not self.room.holds(tokens)
        self.dropped += found - len(chosen)
        self.shortened += found > len(chosen)
        return {"prompt": text, "shots": shown, "prompt_tokens": tokens}

    def _text(self, query: Query, chosen: list[Shot]) -> tuple[str, list[int]]:
        ordered = self._chooser.ordered(chosen, query.number, query.prompt)
        return rendered(self.shots, ordered, query.prompt), [shot.number for shot in ordered]
